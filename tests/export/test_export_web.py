"""The web page in Chromium without a network: it answers as `predict` does."""

import base64
import json
import shutil
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from helpers.chromium import CLASSIFY, drop, needs_chromium, served
from helpers.commands import command
from helpers.exports import files_in, refused, train
from helpers.looks import low_contrasts, overflows

import clip_randlora as cr
from clip_randlora.data import decode_image
from clip_randlora.export import web_format
from clip_randlora.export.web_runtime import CDN, copy_runtime

onnxruntime = pytest.importorskip("onnxruntime")

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
CLIPART = Path(cr.__file__).parent / "bundled" / "clipart" / "test"
MINUTE = 60_000
BROWSERS_CANNOT = (".tif", ".pgm")

SQUARE = """async ([files, side, keepsShape, filter]) => {
  const { decode } = await import("/decode.js");
  const { square } = await import("/pixels.js");
  const all = [];
  for (const file of files) {
    const blob = await (await fetch(`data:;base64,${file}`)).blob();
    const pixels = square(await decode(blob), side, keepsShape, filter);
    all.push(btoa(pixels.reduce((text, value) => text + String.fromCharCode(value), "")));
  }
  return all;
}"""


@pytest.fixture(scope="module")
def page_of(browser):
    """Open a folder that is served on loopback, and allow no other address."""
    opened = []

    def open_folder(url: str, path: str = "", **options):
        context = browser.new_context(permissions=["camera"], **options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(MINUTE)
        page.on("request", lambda asked: page.asked.append(asked.url))
        page.asked = []
        page.goto(url + path)
        return page

    yield open_folder
    for context in opened:
        context.close()


def encoded(paths) -> list[str]:
    return [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]


def bars(page, which: str) -> dict[str, float]:
    rows = page.locator(f"#{which} li").all_inner_texts()
    names = [(row.splitlines()[0].removesuffix(" changed"), row.splitlines()[-1]) for row in rows]
    return {name: float(value.removesuffix(" %")) / 100 for name, value in names}


@needs_chromium
@pytest.mark.parametrize("side", [32, 192])
def test_the_page_prepares_images_as_predict_does(side, quick_folder, photographs, page_of):
    """Bit for bit, but for decoders and transparency, which differ by a few grey levels."""
    model = cr.load_model(str(quick_folder) if side == 32 else "lite0", device="cpu")
    assert model.image_size == side
    to_square = model.square()
    paths = [path for path in photographs if not path.endswith(BROWSERS_CANNOT)]
    with served(web_format._PAGE) as url:
        got = page_of(url, "pixels.js").evaluate(SQUARE, [encoded(paths), side, True, "bicubic"])
    exact = set()
    for path, pixels in zip(paths, got, strict=True):
        ours = to_square(decode_image(path)).permute(1, 2, 0).numpy()
        theirs = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(side, side, 3)
        difference = np.abs(ours - theirs.astype(np.int16)).max()
        name = Path(path).name
        if difference == 0:
            exact.add(name)
        assert difference <= 4, name
    print(f"{len(exact)} of {len(paths)} images are equal bit for bit")
    assert len(exact) >= len(paths) - 4


@pytest.mark.slow
def test_the_classifier_of_a_page_says_what_predict_says(tiny_run, exported, photographs, tmp_path):
    """Before, after, and how much an image is of one of the classes."""
    out = exported(tiny_run, "web", tmp_path)
    classifier = cr.Classifier.load(tiny_run, device="cpu")
    facts = json.loads((out / "classifier.json").read_text())
    assert facts["least_likeness"] == classifier.unknown_threshold
    assert (facts["runtime"], facts["precision"]) == (CDN, "fp32")
    images = torch.stack([classifier.model.square()(decode_image(path)) for path in photographs])
    both = classifier.side_by_side()
    features = both.zero_shot_features(images)
    before, after = both.probabilities(images, features)
    likeness = classifier.unknown_scores(features, after)
    session = onnxruntime.InferenceSession(out / "classifier.onnx")
    pixels = classifier.model.normalize(images / 255).numpy()
    got = session.run(["before", "after", "likeness"], {"pixels": pixels})
    for found, wanted in zip(got, (before, after, likeness), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_page_of_a_run_that_tunes_the_text_tower_has_one_encoder(
    quick_folder, drawings, tmp_path
):
    model = cr.load_model(str(quick_folder))
    method = {"method": "lora", "rank": 2, "towers": ["text"]}
    run = train(model, drawings, tmp_path / "run", spread=0.1, method=method)
    out = cr.export_run(run, "web", tmp_path / "page")
    weights = sum(tensor.numel() for tensor in model.net.visual.state_dict().values())
    content = (out / "classifier.onnx").read_bytes()
    assert len(content) < 1.5 * 4 * weights
    assert str(Path(cr.__file__).parent).encode() not in content  # no path of this machine


@pytest.mark.slow
@needs_chromium
@needs_npm
def test_the_page_answers_without_a_network(lite0_run, page_of, tmp_path):
    """100 drawings, the camera, a drop and a paste, on a phone in the dark."""
    out, paths = tmp_path / "page", files_in(CLIPART)[::2][:100]
    done = command("export", lite0_run, "--format", "web", "--out", out, "--offline")
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    assert json.loads((out / "classifier.json").read_text())["precision"] == "fp16"
    print(f"{size / 1e6:.1f} MB without the runtime")
    assert size <= 20e6
    with served(out) as url:
        started = time.monotonic()
        page = page_of(url, viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.set_input_files("#files", paths[0])
        page.locator("#after li").first.wait_for()
        print(f"first answer {time.monotonic() - started:.1f} s after opening")
        answers = page.evaluate(CLASSIFY, encoded(paths))
        median = statistics.median(answer["seconds"] for answer in answers)
        print(f"then {1000 * median:.0f} ms an image, the median of {len(paths)}")
        require_same(lite0_run, paths, answers)
        check_the_page(page, dict(answers[0]["tuned"]), paths[1], tmp_path)
        assert {urlsplit(asked).hostname for asked in page.asked} == {"127.0.0.1", None}


def require_same(run: Path, paths: list[str], answers: list[dict]) -> None:
    """The same first class and the same verdict as of `predict`, and probabilities to 2e-2."""
    wanted = cr.Classifier.load(run, device="cpu").predict(paths, reject=True)
    assert len({next(iter(row["tuned"])) for row in wanted}) > 1
    assert {row["unknown"] for row in wanted} == {True, False}
    largest = 0.0
    for row, answer in zip(wanted, answers, strict=True):
        for which in ("zero_shot", "tuned"):
            got = dict(answer[which])
            assert answer[which][0][0] == next(iter(row[which]))
            largest = max(largest, *(abs(got[name] - p) for name, p in row[which].items()))
        assert answer["unknown"] == row["unknown"]
    print(f"probabilities differ by {largest:.1e} at most")
    assert largest <= 2e-2


def check_the_page(page, first: dict[str, float], other: str, folder: Path) -> None:
    """What is shown for the first image; another one dropped and pasted; a broken one; a camera."""
    for name, shown in bars(page, "after").items():
        assert shown == pytest.approx(first[name], abs=1e-3)
    assert not low_contrasts(page)
    assert not overflows(page)
    drop(page, [other])
    page.locator(".tile").nth(1).wait_for()
    paste(page, other)
    page.locator(".tile").nth(2).wait_for()
    (folder / "broken.png").write_bytes(Path(other).read_bytes()[:100])
    page.set_input_files("#files", str(folder / "broken.png"))
    page.get_by_text("broken.png: The browser cannot read this file").wait_for()
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    seen = set()
    while len(seen) < 3:  # a moving picture, whose answers move too
        seen.add(page.locator("#after").inner_text())
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Stop the camera").click()
    page.locator("video").wait_for(state="hidden")
    assert page.locator("#shown").is_visible()


def paste(page, path: str) -> None:
    page.evaluate(
        """async (file) => {
          const blob = await (await fetch(`data:image/webp;base64,${file}`)).blob();
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([blob], "pasted.webp", { type: "image/webp" }));
          dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        encoded([path])[0],
    )


@pytest.mark.slow
@needs_chromium
@needs_npm
def test_the_runtime_comes_from_the_cdn_in_a_pinned_version(
    tiny_run, exported, photographs, page_of, tmp_path
):
    """What the page asks the CDN for is what npm has; without it, it says what is missing."""
    out = exported(tiny_run, "web", tmp_path)
    copy_runtime(tmp_path / "npm")
    with served(out) as url, served(tmp_path / "npm") as npm:
        page = page_of(url)
        page.get_by_text("could not load its runtime from cdn.jsdelivr.net").wait_for()
        page.context.route(f"{CDN}*", lambda route: give(route, npm))
        page.reload()
        page.set_input_files("#files", photographs[0])
        page.locator("#after li").first.wait_for()


def give(route, npm: str) -> None:
    """Answer a request to the CDN with the file of npm's package, which any page may load."""
    answer = route.fetch(url=npm + route.request.url.removeprefix(CDN))
    headers = {**answer.headers, "access-control-allow-origin": "*"}
    route.fulfill(response=answer, headers=headers)


def test_what_a_page_cannot_have_is_one_line(tiny_run, tmp_path, monkeypatch, capsys):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (wrong / name).write_text("of another version")
    fails = tmp_path / "bin" / "npm"
    fails.parent.mkdir()
    fails.write_text("#!/bin/sh\necho npm error network >&2\nexit 1\n")
    fails.chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    for format, path, options, says in (
        ("web", "", ["--offline"], "--offline: needs npm, which is not installed"),
        ("web", fails.parent, ["--offline"], "npm could not get onnxruntime-web@1.30.0 (npm error"),
        ("web", "", ["--runtime", fails.parent], "has no ort.wasm.bundle.min.mjs; give the folder"),
        ("web", "", ["--runtime", wrong], "is not that of onnxruntime-web@1.30.0"),
        ("web", "", ["--precision", "bf16"], "web is written in fp16 or int8 or fp32"),
        ("onnx", "", ["--offline"], "--offline, --runtime: are for --format web"),
    ):
        monkeypatch.setenv("PATH", str(path))
        options = ["--format", format, "--out", tmp_path / "out", *options]
        assert says in refused(monkeypatch, capsys, "export", tiny_run, *options)
        assert sorted(tmp_path.rglob("*")) == before
