"""``web``: how large an exported web page is, how fast it answers, and how near to `predict`."""

from __future__ import annotations

import base64
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import clip_randlora as cr
from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.options import OutOption
from benchmarks.common.processes import Row
from clip_randlora.errors import UserError

_TESTS = Path(__file__).parents[1] / "tests"


def web(
    run: Annotated[
        Path | None, typer.Option(help="A finished run. Default: lite0 on the drawings.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Bundled drawings to classify.")] = 239,
    runtime: Annotated[
        Path | None, typer.Option(help="Folder dist of onnxruntime-web. Default: from npm.")
    ] = None,
    out: OutOption = None,
) -> None:
    """Size, first answer, time of an image and agreement with `predict`, of a page in Chromium."""
    if not _TESTS.is_dir():
        raise UserError(f"{_TESTS}: not there; run this in a checkout")
    sys.path.insert(0, str(_TESTS))
    benchmark = Benchmark("web", {"images": images}, out)
    data = cr.load_data("clipart")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if run is None:
            with messages.status("training"):
                model = cr.load_model("lite0", device="cpu")
                cr.fit(model, data, cr.TrainConfig(shots=4, steps=20), out=folder / "run")
            run = folder / "run"
        files = sorted((Path(cr.__file__).parent / "bundled/clipart/test").rglob("*.webp"))
        step = max(1, len(files) // images)
        paths = [str(path) for path in files[::step][:images]]
        wanted = cr.Classifier.load(run, device="cpu").predict(paths)

        rows = []
        for precision in cr.export_precisions("web"):
            page, options = folder / precision, {"offline": True, "runtime": runtime}
            try:
                cr.export_run(run, "web", page, precision=precision, **options)
                rows.append(Row(precision, {"precision": precision}))
            except UserError as error:  # int8 that changes answers
                messages.print(str(error), markup=False)
        found = benchmark.measure(
            rows, run=lambda row, _: {"result": _measure(folder / row.key, paths, wanted)}
        )
    columns = {
        "MB without the runtime": lambda row: f"{row.values['size_bytes']['median'] / 1e6:.1f}",
        "first answer, s": lambda row: f"{row.values['first']['median']:.1f}",
        "an image, s": lambda row: report.seconds(row.values["seconds"]),
        "same class": lambda row: f"{row.values['same']['median']:.0%}",
        "largest difference": lambda row: f"{row.values['difference']['median']:.4f}",
    }
    notes = [
        f"In Chromium on the same machine, {len(paths)} bundled drawings. The first answer is "
        f"counted from the page's opening. Same class and the largest difference of a probability "
        f"are to predict, before and after.",
    ]
    benchmark.publish(report.table(found, columns), notes, report.figure(found, {"seconds": "s"}))


def _measure(folder: Path, paths: list[str], wanted: list[dict[str, Any]]) -> dict[str, Any]:
    from helpers.chromium import CHROMIUM, CHROMIUM_FLAGS, CLASSIFY, NO_NETWORK, served
    from playwright.sync_api import sync_playwright

    encoded = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
    with served(folder) as url, sync_playwright() as playwright:
        flags = [*CHROMIUM_FLAGS, NO_NETWORK]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(url)
        page.set_input_files("#files", paths[0])
        page.locator("#after li").first.wait_for()
        first = time.perf_counter() - started
        answers = page.evaluate(CLASSIFY, encoded)
        browser.close()
    same, difference = [], 0.0
    for row, answer in zip(wanted, answers, strict=True):
        for which in ("zero_shot", "tuned"):
            got = dict(answer[which])
            same.append(answer[which][0][0] == next(iter(row[which])))
            difference = max(difference, *(abs(got[name] - p) for name, p in row[which].items()))
    files = [path for path in folder.iterdir() if path.is_file()]
    return {
        "size_bytes": sum(path.stat().st_size for path in files),
        "first": first,
        "seconds": [answer["seconds"] for answer in answers],
        "same": sum(same) / len(same),
        "difference": difference,
    }
