"""``blocks``: adapting the last blocks of both towers against all of them, end to end."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import DeviceOption, OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row


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
    """Train all blocks, and the last ones, through `fit` on generated images."""
    job = {
        "epochs": epochs,
        "images": images,
        "classes": classes,
        "model": model,
        "precision": precision,
        "device": device,
    }
    benchmark = Benchmark("blocks", job, out, threads, resume)
    rows = [
        Row(name, {"adapted": name}, "benchmarks.blocks:run_fit", {**job, "blocks": count})
        for name, count in (("all blocks", None), (f"last {last} blocks", last))
    ]
    found = benchmark.measure(rows, repeats)
    table = report.table(
        found,
        {
            "end to end, s": lambda row: report.seconds(row.values["seconds"]),
            "time ratio": lambda row: report.ratio(row, "seconds"),
            "training, s": lambda row: report.seconds(row.values["train_seconds"]),
            "a step, s": lambda row: report.seconds(row.values["step_seconds_median"]),
            "steps": lambda row: str(row.values["steps"]),
            "peak GB": lambda row: report.gigabytes(row.values["memory"]),
            "trainable parameters": lambda row: f"{row.values['trained']:,}",
        },
    )
    notes = [
        f"{model} with random weights, RandLoRA r=6, both towers, {epochs:g} epochs of {images} "
        f"generated images in {classes} classes, batches of 32, {precision}.",
        "End to end is `fit`: decoding, training, classifying two test images of each class "
        "zero-shot and tuned, and writing the run. Loading the model is left out.",
    ]
    benchmark.publish(table, notes, report.figure(found, {"seconds": "seconds, end to end"}))


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
    from benchmarks.common.images import class_names, write_images

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
    }
