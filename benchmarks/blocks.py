"""``blocks``: adapting the last blocks of both towers against all of them, end to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    folder_of,
    threads_of,
)
from benchmarks.common.processes import Row, measure_rounds, run_row
from benchmarks.common.ratios import Ratio, divide
from benchmarks.common.results import Results, spread

_TARGET = 3.0
_ALL = "all blocks"


def blocks(
    last: Annotated[int, typer.Option(min=1, help="Blocks adapted in each tower.")] = 4,
    epochs: Annotated[float, typer.Option(min=0.1, help="Passes over the images.")] = 20,
    images: Annotated[int, typer.Option(min=10, help="Training images.")] = 160,
    classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 10,
    model: Annotated[str, typer.Option(help="open_clip name or folder.")] = "ViT-B-32",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over both.")] = 1,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train the last blocks, and all of them, through `fit` on generated images."""
    job = {
        "epochs": epochs,
        "images": images,
        "classes": classes,
        "model": model,
        "precision": precision,
        "device": device,
    }
    threads = threads_of(threads)
    few = f"last {last} blocks"
    results = Results("blocks", folder_of("blocks", out), {**job, "threads": threads}, resume)
    rows = [
        Row(name, "benchmarks.blocks:run_fit", {**job, "blocks": count})
        for name, count in ((few, last), (_ALL, None))
    ]
    measure_rounds(rows, repeats, results, lambda row: run_row(row, threads), _progress)
    found = summarize(results)
    ratio = compare(found, few)
    report.publish(
        results,
        threads,
        [_table(found), report.ratio_table([("6", ratio)])],
        [
            f"{model} with random weights, RandLoRA r=6, both towers, {epochs:g} epochs of "
            f"{images} generated images in {classes} classes, batches of 32, {precision}.",
            "End to end is `fit`: decoding, training, classifying two test images of each class "
            "zero-shot and tuned, and writing the run; loading the model is left out.",
        ],
        _figure(found),
        {"rows": found, "ratios": [{"line": "6", **ratio.as_json()}]},
    )


def run_fit(
    blocks: int | None,
    epochs: float,
    images: int,
    classes: int,
    model: str,
    precision: str,
    device: str | None = None,
) -> dict[str, Any]:
    """Train on generated images in this process, and time `clip_randlora.fit`."""
    import torch

    import clip_randlora as cr
    from benchmarks.common.images import write_images
    from benchmarks.common.training_steps import class_names

    torch.manual_seed(0)
    loaded = cr.load_model(model, None, device)
    config = cr.TrainConfig.parse(
        {
            "method": {"method": "randlora", "rank": 6, "blocks": blocks},
            "shots": None,
            "epochs": epochs,
            "min_steps": 1,
            "precision": precision,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "data", class_names(classes), images // classes, tests=2)
        data = cr.load_data(Path(folder) / "data")
        start = time.perf_counter()
        run = cr.fit(loaded, data, config, Path(folder) / "run")
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "train_seconds": run.metrics["train_seconds"],
        "steps": run.metrics["steps"],
        "step_seconds_median": run.metrics["step_seconds_median"],
        "trained": run.metrics["trainable_parameters"],
        "device": run.metrics["device"],
    }


def summarize(results: Results) -> list[dict[str, Any]]:
    """Put the rounds of both rows together."""
    found = []
    for name in dict.fromkeys(sample["row"] for sample in results.samples):
        rounds = results.of(name)
        if not rounds:
            found.append({"name": name, "failed": results.failure(name)})
            continue
        row = {"name": name}
        for key in ("seconds", "train_seconds", "step_seconds_median"):
            row[key] = spread(one[key] for one in rounds)
        row["memory"] = spread(one["peak_memory_bytes"] for one in rounds)
        found.append(row | {key: rounds[0][key] for key in ("steps", "trained", "device")})
    return found


def compare(found: Sequence[Mapping[str, Any]], few: str) -> Ratio:
    """Return how many times faster the last blocks are than all of them, end to end."""
    times = {row["name"]: row.get("seconds") for row in found}
    value = divide(times.get(_ALL), times.get(few))
    return Ratio(f"end to end: {_ALL} / {few}", value, _TARGET, at_least=True)


def _progress(result: Mapping[str, Any]) -> str:
    return f"{result['seconds']:.1f} s, of it {result['train_seconds']:.1f} s training"


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    columns = ("adapted", "end to end, s", "training, s", "a step, s", "steps", "peak GB")
    columns += ("trained numbers",)
    lines = []
    for row in found:
        if "failed" in row:
            lines.append([row["name"], f"failed: {row['failed']}", *[""] * (len(columns) - 2)])
            continue
        times = (row[key] for key in ("seconds", "train_seconds", "step_seconds_median"))
        lines.append(
            [
                row["name"],
                *map(report.seconds, times),
                str(row["steps"]),
                report.gigabytes(row["memory"]["median"]),
                f"{row['trained']:,}",
            ]
        )
    return report.markdown_table(columns, lines)


def _figure(found: Sequence[Mapping[str, Any]]) -> Figure | None:
    measured = [row for row in found if "seconds" in row]
    if not measured:
        return None
    figure = Figure(figsize=(8, 0.9 + 0.45 * len(measured)), layout="constrained")
    report.bars(
        figure.subplots(),
        [row["name"] for row in measured],
        [row["seconds"] for row in measured],
        [report.PEER if row["name"] == _ALL else report.OURS for row in measured],
        "seconds, end to end",
    )
    return figure
