"""The figures of a report: accuracy by shots and by trainable parameters, and the gap closed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_randlora.report.results import AVERAGE, ModelResults
from clip_randlora.utils.plotting import Figure
from clip_randlora.utils.wording import shots_in_words

_COLORS = (
    "#1f6feb", "#d9730d", "#2e9e5b", "#8e44ad", "#c0392b", "#16a2b8", "#b8860b", "#d63384",
    "#5d6d7e", "#6b8e23",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"
_ZERO_SHOT = "#8a94a6"
_COLUMNS = 3
_SHIFT = 0.025  # between neighbouring methods, so that their error bars do not overlap


def draw(models: Sequence[ModelResults]) -> dict[str, Figure]:
    """Draw the figures of every model, by file name; figures without a number are left out."""
    drawn = {}
    for model in models:
        slug = re.sub(r"[^\w.-]+", "-", model.model)
        suffix = f"-{slug}" if len(models) > 1 else ""
        for name, figure in (
            ("accuracy-by-shots", accuracy_by_shots(model)),
            ("accuracy-by-trained-numbers", accuracy_by_parameters(model)),
            ("gap-closed", gap_closed(model)),
        ):
            if figure is not None:
                drawn[f"{name}{suffix}.png"] = figure
    return drawn


def accuracy_by_shots(model: ModelResults) -> Figure | None:
    """Draw a panel for each data set and one for the average; bars are one deviation."""
    if not model.table["finished"].any():
        return None
    panels = [*model.datasets, *([AVERAGE] if len(model.datasets) > 1 else [])]
    places = np.arange(len(model.shots))
    figure, grid = _panels(len(panels))
    for axes, data in zip(grid, panels, strict=True):
        for number, method in enumerate(model.methods):
            entries = model.entries(data).query("method == @method")
            if not entries["finished"].any():
                continue
            is_trained = method in model.trained
            shift = (number - (len(model.methods) - 1) / 2) * _SHIFT if is_trained else 0
            is_known = entries["top1_mean"].notna().to_numpy()
            known = entries[is_known]
            axes.errorbar(
                places[is_known] + shift,
                known["top1_mean"] * 100,
                yerr=known["top1_std"].fillna(0) * 100 if is_trained else None,
                capsize=3 if is_trained else 0,
                linestyle="-" if is_trained else "--",
                linewidth=1.4,
                label=method,
                **_style(model, method),
            )
        axes.set_title(data, fontweight="bold" if data == AVERAGE else "normal")
        axes.set_xticks(places, map(str, model.shots))
        axes.set_xlim(-0.3, len(model.shots) - 0.7)
        axes.set(xlabel="images per class", ylabel="top-1 accuracy, %")
    _legend(figure, grid)
    return figure


def accuracy_by_parameters(model: ModelResults) -> Figure | None:
    """Draw the average accuracy by trainable parameters (logarithmic), a panel for each shots."""
    averages = model.entries(AVERAGE).dropna(subset="top1_mean")
    shown = [
        (shots, entries)
        for shots, entries in averages.groupby("shots", observed=True)
        if (entries["trainable_parameters"] > 0).any()
    ]
    if not shown:
        return None
    figure, grid = _panels(len(shown))
    for axes, (shots, entries) in zip(grid, shown, strict=True):
        entry: Any
        for entry in entries.itertuples():
            style = _style(model, entry.method)
            top1 = entry.top1_mean * 100
            if entry.trainable_parameters:
                yerr = 0 if math.isnan(entry.top1_std) else entry.top1_std * 100
                x = entry.trainable_parameters
                axes.errorbar(x, top1, yerr, linestyle="", capsize=3, label=entry.method, **style)
            else:  # zero has no place on a logarithmic axis
                line = {"linestyle": "--", "linewidth": 1, "label": entry.method}
                axes.axhline(top1, color=style["color"], **line)
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set_title(shots_in_words(shots))
        axes.set(xlabel="trainable parameters", ylabel="top-1 accuracy, %")
    _legend(figure, grid)
    return figure


def gap_closed(model: ModelResults) -> Figure | None:
    """Draw the share of the gap between zero-shot and full fine-tuning, a group for each shots."""
    methods = [method for method in model.trained if method != model.full]
    gaps = model.gaps.loc[methods].dropna(axis="columns", how="all") * 100
    if gaps.empty:
        return None
    figure = Figure(figsize=(max(5.0, 1.2 + 0.34 * gaps.size), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        middles = np.arange(gaps.shape[1]) - 0.4 + (number + 0.5) * width
        color = _style(model, method)["color"]
        axes.bar(middles, gaps.loc[method], width * 0.9, color=color, label=method)
    axes.axhline(100, color="black", linewidth=1, linestyle="--", label=model.full)
    axes.axhline(0, color=_ZERO_SHOT, linewidth=1)
    axes.set_xticks(range(gaps.shape[1]), map(str, gaps))
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


def _style(model: ModelResults, method: str) -> dict[str, Any]:
    """Return the method's colour and marker, the same in every figure."""
    if method not in model.trained:
        return {"color": _ZERO_SHOT, "marker": ""}
    place = model.trained.index(method)
    return {
        "color": _COLORS[place % len(_COLORS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 5,
    }


def _legend(figure: Figure, grid: Sequence[Any]) -> None:
    """Put one legend below all panels."""
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        [*handles.values()],
        [*handles],
        loc="outside lower center",
        ncols=min(len(handles), max(2, int(figure.get_figwidth() / 1.5))),
        fontsize=8,
        frameon=False,
    )
