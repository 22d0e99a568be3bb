"""The figures of a report: accuracy by shots and by trained numbers, and the gap closed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from clip_randlora.report.results import Entry, ModelResults, Results
from clip_randlora.utils.plotting import Figure

_COLORS = (
    "#1f6feb", "#d9730d", "#2e9e5b", "#8e44ad", "#c0392b", "#16a2b8", "#b8860b", "#d63384",
    "#5d6d7e", "#6b8e23",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"
_ZERO_SHOT = "#8a94a6"
_COLUMNS = 3
_DODGE = 0.025  # what lies between neighbouring methods, so that error bars do not cover others


def draw(results: Results) -> dict[str, Figure]:
    """Draw the figures of every model, by file name; those without a number are left out."""
    drawn = {}
    for model in results.models:
        slug = re.sub(r"[^\w.-]+", "-", model.model)
        suffix = f"-{slug}" if len(results.models) > 1 else ""
        for name, figure in (
            ("accuracy-by-shots", accuracy_by_shots(model)),
            ("accuracy-by-trained-numbers", accuracy_by_parameters(model)),
            ("gap-closed", gap_closed(model)),
        ):
            if figure is not None:
                drawn[f"{name}{suffix}.png"] = figure
    return drawn


def accuracy_by_shots(model: ModelResults) -> Figure | None:
    """Draw one panel for each data set and one for their average; bars are one deviation."""
    panels: dict[str, Callable[[str, Any], Entry]] = {
        data: lambda method, shots, data=data: model.entry(data, method, shots)
        for data in model.datasets
    }
    if len(panels) > 1:
        panels["average"] = model.average
    if not any(entry.measured for entry in model.entries.values()):
        return None
    figure, grid = _panels(len(panels))
    for axes, (title, entry_of) in zip(grid, panels.items(), strict=False):
        for place, method in enumerate(model.methods):
            entries = [entry_of(method, shots) for shots in model.shots]
            beside = (place - (len(model.methods) - 1) / 2) * _DODGE
            _line(axes, model, method, entries, beside)
        axes.set_title(title, fontweight="bold" if title == "average" else "normal")
        axes.set_xticks(range(len(model.shots)), map(str, model.shots))
        axes.set_xlim(-0.3, len(model.shots) - 0.7)
        axes.set(xlabel="images per class", ylabel="top-1 accuracy, %")
    _legend(figure, grid)
    return figure


def accuracy_by_parameters(model: ModelResults) -> Figure | None:
    """Draw the average accuracy over the logarithm of trained numbers, a panel for each shots."""
    shown = [
        shots
        for shots in model.shots
        if any(_point(model.average(method, shots)) for method in model.methods)
    ]
    if not shown:
        return None
    figure, grid = _panels(len(shown))
    for axes, shots in zip(grid, shown, strict=False):
        for method in model.methods:
            entry = model.average(method, shots)
            style = _style(model, method)
            point = _point(entry)
            if point is not None:
                axes.errorbar(
                    *point,
                    yerr=(entry.spread or 0) * 100,
                    linestyle="",
                    capsize=3,
                    label=method,
                    **style,
                )
            elif entry.mean is not None:  # nothing is trained: no place on a logarithmic axis
                axes.axhline(
                    entry.mean * 100,
                    color=style["color"],
                    linestyle="--",
                    linewidth=1,
                    label=method,
                )
        axes.set_xscale("log")
        axes.margins(x=0.12)
        images = "image" if shots == 1 else "images"
        axes.set_title("all images" if shots == "all" else f"{shots} {images} per class")
        axes.set(xlabel="trained numbers", ylabel="top-1 accuracy, %")
    _legend(figure, grid)
    return figure


def gap_closed(model: ModelResults) -> Figure | None:
    """Draw the share of the gap between zero-shot and full fine-tuning, a group for each shots."""
    methods = [
        method
        for method in model.methods
        if method != model.full and any(_parameters(model, method))
    ]
    gaps = {shots: [model.gap_closed(method, shots) for method in methods] for shots in model.shots}
    gaps = {shots: row for shots, row in gaps.items() if any(gap is not None for gap in row)}
    if not gaps:
        return None
    figure = Figure(figsize=(max(5.0, 1.2 + 0.34 * len(methods) * len(gaps)), 3.8))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        heights = [math.nan if row[place] is None else row[place] * 100 for row in gaps.values()]
        middles = [group - 0.4 + (place + 0.5) * width for group in range(len(gaps))]
        axes.bar(middles, heights, width * 0.9, color=_style(model, method)["color"], label=method)
    axes.axhline(100, color="black", linewidth=1, linestyle="--", label=model.full)
    axes.axhline(0, color=_ZERO_SHOT, linewidth=1)
    axes.set_xticks(range(len(gaps)), map(str, gaps))
    axes.set(xlabel="images per class", ylabel="gap to full fine-tuning closed, %")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, [axes])
    return figure


def _panels(count: int) -> tuple[Figure, list[Any]]:
    """Make a figure of ``count`` panels, in rows of three."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.0), 3.2 * rows + 0.6), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, grid[:count]


def _line(axes: Any, model: ModelResults, method: str, entries: list[Entry], beside: float) -> None:
    known = [(place, entry) for place, entry in enumerate(entries) if entry.mean is not None]
    if not known:
        return
    style = _style(model, method)
    trained = any(_parameters(model, method))
    axes.errorbar(
        [place + beside * trained for place, _ in known],
        [entry.mean * 100 for _, entry in known],
        yerr=[(entry.spread or 0) * 100 for _, entry in known] if trained else None,
        capsize=3 if trained else 0,
        linestyle="-" if trained else "--",
        linewidth=1.4,
        label=method,
        **(style if trained else {"color": _ZERO_SHOT}),
    )


def _point(entry: Entry) -> tuple[float, float] | None:
    numbers = entry.mean_of("parameters")
    return (numbers, entry.mean * 100) if numbers else None


def _parameters(model: ModelResults, method: str) -> list[int]:
    return [
        run.parameters
        for (_, name, _), entry in model.entries.items()
        if name == method
        for run in entry.measured.values()
    ]


def _style(model: ModelResults, method: str) -> dict[str, Any]:
    """Return the method's colour and marker, the same in every figure."""
    trained = [name for name in model.methods if any(_parameters(model, name))]
    if method not in trained:
        return {"color": _ZERO_SHOT, "marker": "", "markersize": 5}
    place = trained.index(method)
    return {
        "color": _COLORS[place % len(_COLORS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 5,
    }


def _legend(figure: Figure, grid: list[Any]) -> None:
    """Put one legend below all panels."""
    handles = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), max(2, int(figure.get_figwidth() / 1.5))),
        fontsize=8,
        frameon=False,
    )
