"""``step``: one training step, against peft, CLIP-LoRA's recipe, full fine-tuning and a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.measured import Measured
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    require_known,
)
from benchmarks.common.processes import Row
from benchmarks.common.training_steps import (
    FIT,
    FIT_LABEL,
    GPU_WARMUP,
    ROWS,
    peft_on_transformers,
)

LABELS = {name: row.label for name, row in ROWS.items()} | {FIT: FIT_LABEL}
_COLORS = {"ours": report.OURS, "peer": report.PEER, "bound": report.BOUND}
_UNUSED = ("peft", "transformers")  # open_clip imports transformers where it is installed
# unless rows are named, only these are measured with more than 32 images
_LARGE_BATCH_ROWS = ("randlora", "randlora-very-sparse", "bound", "bound-tight")


def step(
    row: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(LABELS)}. Default: all.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; may be repeated. Default: both.")
    ] = None,
    images: Annotated[
        list[int] | None,
        typer.Option(
            help="In a step; may be repeated. Default: 32, and in fp32 also 128; beyond 32 only "
            f"for {', '.join(_LARGE_BATCH_ROWS)}, unless rows are named."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Prompts in a step.")] = 100,
    model: Annotated[str, typer.Option(help="open_clip name or folder of a ViT.")] = "ViT-B-32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before those, not timed.")] = 1,
    plain_malloc: Annotated[
        bool,
        typer.Option(
            "--plain-malloc",
            help="Do not keep freed memory in the rows of this project and of the bounds, as `fit` "
            "does on CPUs.",
        ),
    ] = False,
    plain_launches: Annotated[
        bool,
        typer.Option(
            "--plain-launches",
            help="Do not record the steps of this project's rows as a CUDA graph, as `fit` does.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """One training step of both towers: q k v out mlp, random weights, offline."""
    require_known("--row", row, LABELS)
    require_known("--precision", precision, ("fp32", "bf16"))
    workload = {
        "model": model,
        "classes": classes,
        "warmup": warmup,
        "steps": steps,
        "device": device,
    }
    ours = {"plain_malloc": plain_malloc, "recorded": not plain_launches}
    benchmark = Benchmark("step", workload | ours, out, threads, resume)
    rows = [_row(*cell, workload, ours) for cell in plan(row, precision, images)]
    found = benchmark.measure(rows, repeats)
    figure = report.figure(
        found, {"seconds": "seconds a step", "memory": "peak memory, GB"}, _color
    )
    benchmark.publish(_table(found), _notes(found, benchmark.settings), figure)


def plan(
    rows: Sequence[str] | None, precisions: Sequence[str] | None, images: Sequence[int] | None
) -> list[tuple[str, str, int]]:
    """List what to measure, as ``(row, precision, images)``."""
    planned = []
    for precision in precisions or ("fp32", "bf16"):
        for count in images or ((32, 128) if precision == "fp32" else (32,)):
            usual = LABELS if count <= 32 else _LARGE_BATCH_ROWS
            planned += [(name, precision, count) for name in rows or usual]
    return planned


def _row(
    name: str, precision: str, images: int, workload: dict[str, Any], ours: dict[str, bool]
) -> Row:
    group = f"{precision}, {images} images"
    label = {
        "one training step": LABELS[name],
        "precision": precision,
        "images": str(images),
    }
    settings = {**workload, "images": images, "precision": precision}
    function, hidden = "measure_fit", _UNUSED
    if name != FIT:
        function, settings = "measure_step", {**settings, "row": name, **ours}
        hidden = () if ROWS[name].build is peft_on_transformers else _UNUSED
    module = "benchmarks.common.training_steps"
    return Row(f"{name}, {group}", label, f"{module}:{function}", settings, group, hidden)


def _table(found: Sequence[Measured]) -> str:
    columns = report.time_and_memory()
    if any("peak_cuda_bytes" in row.values for row in found):
        columns["peak resident GB"] = lambda row: report.gigabytes(row.values["peak_memory_bytes"])
    columns["trainable parameters"] = lambda row: f"{row.values['trained']:,}"
    columns["text tokens"] = lambda row: str(row.values["text_tokens"])
    return report.table(found, columns)


def _color(row: Measured) -> str:
    name = row.settings.get("row", FIT)
    return _COLORS[ROWS[name].owner if name in ROWS else "ours"]


def _notes(found: Sequence[Measured], settings: dict[str, Any]) -> list[str]:
    counts = sorted({row.values["seconds"]["count"] for row in found if row.values})
    on_gpu = any("peak_cuda_bytes" in row.values for row in found)
    warmup = max(settings["warmup"], GPU_WARMUP) if on_gpu else settings["warmup"]
    notes = [
        f"{settings['model']} with random weights, {settings['classes']} classes, both towers. A "
        f"step is forward, cross entropy, backward and AdamW, on images that are on the device. "
        f"Every row ran in processes of its own, in interleaved rounds. Medians, with smallest and "
        f"largest, over {' or '.join(map(str, counts)) or 'no'} timed steps, after {warmup} of "
        f"warm-up in each process. Ratios are to the first row of the same precision and images.",
        "peft and CLIP-LoRA's recipe: transformers' CLIPModel of the same sizes and activation, "
        "with prompts padded to the context length unless the row says trimmed. The other rows: "
        "open_clip's model with trimmed prompts, without transformers installed.",
        "bf16 is autocast over fp32 weights. The bounds' frozen weights are bf16.",
    ]
    if on_gpu and settings["recorded"]:
        notes.append("This project's steps are recorded as a CUDA graph, as `fit` does on GPUs.")
    if not on_gpu and not settings["plain_malloc"]:
        notes.append(
            "This project's rows and the bounds keep freed memory for the next step, as `fit` does "
            "on CPUs."
        )
    return notes
