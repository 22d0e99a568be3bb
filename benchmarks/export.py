"""``export``: how large every export is, and how long the library that it is for loads it."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import clip_randlora as cr
from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.options import OutOption, ThreadsOption, require_known
from benchmarks.common.processes import Row
from clip_randlora.utils.quiet import without_warnings

_BASES = ("lite0", "ViT-B-32")
_PEFT = {"peft's own file": True, "peft's own file, without bases": False}  # save_projection


def export(
    base: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated. Default: {', '.join(_BASES)}.")
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Default: all, and peft's own files.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Loads, each in a new process.")] = 3,
    threads: ThreadsOption = None,
    out: OutOption = None,
) -> None:
    """Size and load time of every export; needs 8 GB of disk for a while.

    The adapters have rank 6 and random coefficients; other bases than lite0 have random weights.
    """
    formats = [*cr.export_formats(), *_PEFT]
    require_known("--format", format, formats)
    benchmark = Benchmark("export", {}, out, threads)
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for name in base or _BASES:
            folder = Path(temporary) / name
            folder.mkdir()
            with messages.status(f"a run on {name}"):
                _make_run(name, folder)
            for of in format or formats:
                rows += _export(name, folder, of)
        found = benchmark.measure(rows, repeats, progress=_progress)
    table = report.table(
        found,
        {
            "MB": lambda row: f"{row.values['size_bytes']['median'] / 1e6:.2f}",
            "size ratio": lambda row: report.ratio(row, "size_bytes"),
            "load, s": lambda row: report.seconds(row.values["seconds"]),
        },
    )
    notes = [
        "Sizes are of the whole folder, but for peft's own files without the model card; ratios "
        "are to the first row of the same base.",
        "Load times are of new processes that have imported the library and, for adapters, loaded "
        "the base model; files are in the system's cache.",
    ]
    benchmark.publish(table, notes, report.figure(found, {"seconds": "seconds to load"}))


def _make_run(base: str, folder: Path) -> None:
    """Train for one step, and give the adapter random coefficients."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights: str | Path = "default"
    if base != "lite0":
        weights = folder / "weights.safetensors"
        save_file(cr.load_model(base, None, "cpu").net.state_dict(), weights)
    config = cr.TrainConfig.parse(
        {"method": {"method": "randlora", "rank": 6}, "shots": 1, "steps": 1, "batch_size": 2}
    )
    model = cr.load_model(base, weights, "cpu")
    run = cr.fit(model, cr.load_data("clipart"), config, out=folder / "run")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.adapter.parameters():
            parameter.normal_(0, 0.01, generator=generator)
    run.adapter.save(folder / "run" / "adapter.safetensors")


def _export(base: str, folder: Path, format: str) -> list[Row]:
    """Write the exports in one format; return the rows that load them, none if it does not fit."""
    rows = []
    run = folder / "run"
    try:
        if format.startswith("peft") and not (folder / "base").exists():
            cr.export_run(run, "transformers", folder / "base", strength=0)
        for precision in cr.export_precisions(format) if format not in _PEFT else ("fp32",):
            out = folder / f"{format} {precision}"
            if format in _PEFT:
                _save_with_peft(run, folder, out, _PEFT[format])
            else:
                cr.export_run(run, format, out, precision=precision)
            label = {"base": base, "format": format, "precision": precision}
            settings = {"folder": str(out), "format": format, "run": str(run)}
            key = " ".join(label.values())
            rows.append(Row(key, label, "benchmarks.export:load", settings, base))
    except cr.UserError as error:
        messages.print(f"{base}, {format}: {error}", markup=False)
    return rows


def _save_with_peft(run: Path, folder: Path, out: Path, save_projection: bool) -> None:
    """Save parameters of the same shapes by peft's ``save_pretrained``."""
    from peft import PeftConfig, get_peft_model
    from transformers import CLIPModel

    ours = folder / "peft fp32"
    if not ours.exists():
        cr.export_run(run, "peft", ours)
    config = PeftConfig.from_pretrained(ours)
    config.save_projection = save_projection  # read when the model is made, not when it is saved
    with without_warnings():
        get_peft_model(CLIPModel.from_pretrained(folder / "base"), config).save_pretrained(out)


def load(folder: str, format: str, run: str) -> dict[str, Any]:
    """Load an export in this process; return its size and the seconds."""
    warnings.simplefilter("ignore")
    loads = _loader(Path(folder), format, run)
    start = time.perf_counter()
    loads()
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"seconds": seconds, "size_bytes": size}


def _loader(folder: Path, format: str, run: str) -> Callable[[], Any]:
    """Import a format's library, load the base of adapters, and return what loads the export."""
    if format == "adapter":
        task = cr.read_task(run)
        net = cr.load_model(task.model, task.pretrained, "cpu").net
        return lambda: cr.load_adapter(net, folder)
    if format == "open_clip":
        import open_clip

        return lambda: open_clip.create_model_and_transforms(f"local-dir:{folder}")
    if format in ("onnx", "web"):
        import onnxruntime

        names = ("image_encoder", "text_encoder") if format == "onnx" else ("classifier",)
        return lambda: [onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names]
    if format == "head":
        from safetensors.numpy import load_file

        return lambda: load_file(folder / "class_embeddings.safetensors")
    from transformers import CLIPModel, CLIPProcessor

    if format == "transformers":
        return lambda: (CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder))
    from peft import PeftModel

    base = CLIPModel.from_pretrained(folder.parent / "base")
    return lambda: PeftModel.from_pretrained(base, folder)


def _progress(result: dict[str, Any]) -> str:
    return f"{result['size_bytes'] / 1e6:.2f} MB, {result['seconds']:.2f} s"
