"""``scale``: how the cost of a step grows with images, classes, rank, depth and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

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
from clip_randlora.errors import UserError

_OURS, _BOUND = "RandLoRA", "lower bound"
_MODEL_AXIS_IMAGES = 8  # ViT-L-14 keeps about 0.5 GB of activations for each image


@dataclass(frozen=True)
class Axis:
    """What is varied, its label in the figure, its values, and whether the bound depends on it."""

    label: str
    values: tuple[Any, ...]
    has_bound: bool


AXES = {
    "images": Axis("images in a step", (4, 8, 16, 32, 64, 128), True),
    "classes": Axis("classes", (10, 50, 100, 200, 400), True),
    "rank": Axis("rank r", (1, 2, 4, 6, 16, 32, 64), False),
    "blocks": Axis("last blocks adapted, of 12, in fit", (1, 2, 4, 6, 8, 10, 12), False),
    "model": Axis(
        f"model, {_MODEL_AXIS_IMAGES} images", ("ViT-B-32", "ViT-B-16", "ViT-L-14"), True
    ),
}


def scale(
    axis: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(AXES)}. Default: all.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="Only these values of the axis; may be repeated.")
    ] = None,
    bound: Annotated[bool, typer.Option(help="Measure the lower bound beside it.")] = True,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    model: Annotated[str, typer.Option(help="open_clip name or folder of a ViT.")] = "ViT-B-32",
    images: Annotated[int, typer.Option(min=1, help="In a step, where not varied.")] = 32,
    classes: Annotated[int, typer.Option(min=2, help="Where not varied.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all points.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before those, not timed.")] = 1,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """How a RandLoRA step (dense bases, r=6, both towers) grows along each axis."""
    require_known("--precision", [precision], ("fp32", "bf16"))
    require_known("--axis", axis, AXES)
    workload = {
        "model": model,
        "images": images,
        "classes": classes,
        "precision": precision,
        "warmup": warmup,
        "steps": steps,
        "device": device,
    }
    benchmark = Benchmark("scale", workload, out, threads, resume)
    rows = [
        _row(name, chosen, series, workload)
        for name, chosen in choose_values(axis, value)
        for series in ((_OURS, _BOUND) if bound and AXES[name].has_bound else (_OURS,))
    ]
    found = benchmark.measure(rows, repeats)
    notes = [
        f"Where not varied: {model} with random weights, {images} images, {classes} classes, r=6, "
        f"all blocks, {precision}; the models are compared at {_MODEL_AXIS_IMAGES} images. Medians "
        f"of the timed steps, with smallest and largest; ratios are to the first value of an axis.",
        "Blocks are measured through `fit`, augmentation included, which may run the frozen blocks "
        "less often than once a step; the other axes on images that are on the device.",
        "The lower bound is a frozen model with gradients to the inputs only.",
    ]
    benchmark.publish(report.table(found, report.time_and_memory()), notes, _figure(found))


def choose_values(axes: Sequence[str] | None, values: Sequence[str] | None) -> list[tuple]:
    """List ``(axis, value)`` to measure.

    Raises:
        UserError: a value is not of the axis's kind, or it is not clear of which axis it is.
    """
    if not values:
        return [(name, value) for name in axes or AXES for value in AXES[name].values]
    if axes is None or len(axes) != 1:
        raise UserError("--value: name the one --axis that it is of")
    for text in values:
        if axes[0] != "model" and not (text.isdecimal() and int(text)):
            raise UserError(f"--value {text}: {axes[0]} is a number from 1")
    return [(axes[0], text if axes[0] == "model" else int(text)) for text in values]


def _row(axis: str, value: Any, series: str, workload: dict[str, Any]) -> Row:
    settings = dict(workload)
    function = "measure_step"
    if axis in ("images", "classes", "model"):
        settings[axis] = value
    else:
        settings["changes"] = {axis: value}
    if axis == "model":
        settings["images"] = min(_MODEL_AXIS_IMAGES, settings["images"])
    if axis == "blocks":
        function = "measure_fit"
        # more than an epoch of warm-up, in which the frozen blocks may run for the last time
        epoch = -(-settings["classes"] // settings["images"])
        settings["warmup"] = max(settings["warmup"], epoch + 1)
    else:
        settings["row"] = "bound" if series == _BOUND else "randlora"
    label = {"varied": axis, "value": str(value), "": series}
    name = f"benchmarks.common.training_steps:{function}"
    return Row(f"{axis} {value}, {series}", label, name, settings, f"{axis}, {series}")


def _figure(found: Sequence[Measured]) -> Figure | None:
    """Draw the seconds over the values, a panel for each axis."""
    measured = [row for row in found if row.values]
    axes = [name for name in AXES if any(row.label["varied"] == name for row in measured)]
    if not axes:
        return None
    lines, columns = -(-len(axes) // 3), min(len(axes), 3)
    figure = Figure(figsize=(4.2 * columns, 3.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for name, plot in zip(axes, grid, strict=False):
        for series, color in ((_OURS, report.OURS), (_BOUND, report.BOUND)):
            rows = [row for row in measured if row.group == f"{name}, {series}"]
            points = [(_position(row.label["value"]), row.values["seconds"]) for row in rows]
            points = points if name == "model" else sorted(points, key=lambda point: point[0])
            if points:
                medians = [seconds["median"] for _, seconds in points]
                below = [seconds["median"] - seconds["min"] for _, seconds in points]
                above = [seconds["max"] - seconds["median"] for _, seconds in points]
                plot.errorbar(
                    [position for position, _ in points],
                    medians,
                    (below, above),
                    fmt="o" if name == "model" else "o-",
                    color=color,
                    capsize=2,
                    label=series,
                )
        plot.set(xlabel=AXES[name].label, ylabel="seconds a step")
        plot.set_ylim(bottom=0)
        plot.spines[["top", "right"]].set_visible(False)
        plot.legend(fontsize=8, frameon=False)
    for plot in grid[len(axes) :]:
        plot.set_axis_off()
    return figure


def _position(value: str) -> int | str:
    return int(value) if value.isdecimal() else value
