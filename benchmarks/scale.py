"""``scale``: how the cost of a step grows with images, classes, rank, depth and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from benchmarks.common.results import Results, spread
from clip_randlora.errors import UserError

_STEPS = "benchmarks.common.training_steps"
_OURS, _BOUND = "RandLoRA", "lower bound"
_MODEL_AXIS_IMAGES = 8  # ViT-L-14 keeps about 0.5 GB of activations for each image


@dataclass(frozen=True)
class Axis:
    """What is varied, over which values, and what the figure calls it.

    ``has_bound`` tells whether the bound changes along it.
    """

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


@dataclass(frozen=True)
class Point:
    """One measurement: a value of an axis, of this project or the bound."""

    axis: str
    value: Any
    series: str

    @property
    def key(self) -> str:
        """Identify it."""
        return f"{self.axis} {self.value}, {self.series}"


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
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: fp32 or bf16")
    workload = {
        "model": model,
        "images": images,
        "classes": classes,
        "precision": precision,
        "warmup": warmup,
        "steps": steps,
        "device": device,
    }
    threads = threads_of(threads)
    settings = {**workload, "threads": threads, "repeats": repeats}
    results = Results("scale", folder_of("scale", out), settings, resume)
    points = {point.key: point for point in choose_points(axis, value, bound)}
    rows = [_row(point, workload) for point in points.values()]
    measure_rounds(
        rows,
        repeats,
        results,
        lambda row: run_row(row, threads),
        lambda result: f"{report.seconds(spread(result['seconds']))} s",
    )
    found = _summarize(results, choose_points(None, None, True), points.values())
    report.publish(
        results,
        threads,
        [_table(found)],
        [
            f"Where not varied: {model} with random weights, {images} images, {classes} classes, "
            f"r=6, all blocks, {precision}; the models are compared at {_MODEL_AXIS_IMAGES} "
            f"images. Medians of the timed steps, with smallest and largest.",
            "Blocks are measured through `fit` itself, augmentation included, which may run the "
            "frozen blocks less often than once a step; the other axes on images that are ready.",
            "The lower bound is a frozen model with gradients to the inputs only.",
        ],
        _figure(found, precision),
        {"rows": found},
    )


def choose_points(
    axes: Sequence[str] | None, values: Sequence[str] | None, bound: bool
) -> list[Point]:
    """List what to measure.

    Raises:
        UserError: an axis is unknown, or a value is none of the axis's kind.
    """
    if values and len(axes or ()) != 1:
        raise UserError("--value: name the one --axis that it is of")
    points = []
    for name in axes or AXES:
        if name not in AXES:
            raise UserError(f"--axis {name}: one of {', '.join(AXES)}")
        chosen = AXES[name].values if not values else [_parse(name, text) for text in values]
        for value in chosen:
            points.append(Point(name, value, _OURS))
            if bound and AXES[name].has_bound:
                points.append(Point(name, value, _BOUND))
    return points


def _parse(axis: str, text: str) -> Any:
    if axis == "model":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--value {text}: {axis} is a number from 1")
    return int(text)


def _row(point: Point, workload: Mapping[str, Any]) -> Row:
    settings = dict(workload)
    if point.axis in ("images", "classes", "model"):
        settings[point.axis] = point.value
    if point.axis == "model":
        settings["images"] = min(_MODEL_AXIS_IMAGES, settings["images"])
    if point.axis in ("rank", "blocks"):
        settings["changes"] = {point.axis: point.value}
    if point.axis == "blocks":
        # an epoch and more of warm-up: frozen blocks may be run then and never again
        epoch = -(-settings["classes"] // settings["images"])
        settings["warmup"] = max(settings["warmup"], epoch + 1)
        return Row(point.key, f"{_STEPS}:measure_fit", settings)
    settings["row"] = "bound" if point.series == _BOUND else "randlora"
    return Row(point.key, f"{_STEPS}:measure_step", settings)


def _summarize(results: Results, *points: Sequence[Point]) -> list[dict[str, Any]]:
    """Put the rounds together, axis by axis in rising order, those measured earlier included."""
    every = {point.key: point for some in points for point in some}
    found = []
    for sample in results.samples:
        point = every.get(sample["row"])
        if point is None or any(row["key"] == point.key for row in found):
            continue
        row = {"key": point.key, **vars(point)}
        rounds = results.of(point.key)
        if rounds:
            row["seconds"] = spread(second for one in rounds for second in one["seconds"])
            memory = [one.get("peak_cuda_bytes") or one["peak_memory_bytes"] for one in rounds]
            row["memory"] = spread(memory)
        else:
            row["failed"] = sample["failed"]
        found.append(row)
    order = list(AXES)
    sizes = {name: place for place, name in enumerate(AXES["model"].values)}
    return sorted(
        found,
        key=lambda row: (
            (order.index(row["axis"]), sizes.get(row["value"], 0), row["series"])
            if row["axis"] == "model"
            else (order.index(row["axis"]), row["value"], row["series"])
        ),
    )


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in found:
        start = [row["axis"], str(row["value"]), row["series"]]
        if "failed" in row:
            lines.append([*start, f"failed: {row['failed']}", ""])
        else:
            memory = report.gigabytes(row["memory"]["median"])
            lines.append([*start, report.seconds(row["seconds"]), memory])
    columns = ("varied", "value", "", "seconds a step: median (min - max)", "peak GB")
    return report.markdown_table(columns, lines)


def _figure(found: Sequence[Mapping[str, Any]], precision: str) -> Figure | None:
    measured = [row for row in found if "seconds" in row]
    axes = [name for name in AXES if any(row["axis"] == name for row in measured)]
    if not axes:
        return None
    figure = Figure(figsize=(4.2 * min(len(axes), 3), 3.3 * -(-len(axes) // 3)))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(-(-len(axes) // 3), min(len(axes), 3), squeeze=False).flatten()
    for name, plot in zip(axes, grid, strict=False):
        for series, color in ((_OURS, report.OURS), (_BOUND, report.BOUND)):
            rows = [r for r in measured if r["axis"] == name and r["series"] == series]
            if rows:
                _draw(plot, rows, series, color)
        plot.set(xlabel=AXES[name].label, ylabel="seconds a step")
        most = max(r["seconds"]["max"] for r in measured if r["axis"] == name)
        plot.set_ylim(0, 1.08 * most)
        plot.spines[["top", "right"]].set_visible(False)
        plot.legend(fontsize=8, frameon=False)
    for plot in grid[len(axes) :]:
        plot.set_axis_off()
    figure.suptitle(f"One training step, {precision}", fontsize=11)
    return figure


def _draw(plot: Any, rows: Sequence[Mapping[str, Any]], series: str, color: str) -> None:
    values = [row["value"] for row in rows]
    medians = [row["seconds"]["median"] for row in rows]
    below = [row["seconds"]["median"] - row["seconds"]["min"] for row in rows]
    above = [row["seconds"]["max"] - row["seconds"]["median"] for row in rows]
    style = "o" if isinstance(values[0], str) else "o-"
    plot.errorbar(values, medians, (below, above), fmt=style, color=color, capsize=2, label=series)
    if not isinstance(values[0], str):
        plot.set_xlim(0, max(values) * 1.05)
