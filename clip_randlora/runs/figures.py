"""The figures of a run: curves, confusion matrices, calibration, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image

from clip_randlora.data import Split
from clip_randlora.evaluation import (
    Predictions,
    as_mapping,
    calibration_bins,
    confusion,
    expected_calibration_error,
)
from clip_randlora.utils.outputs import atomic_write
from clip_randlora.utils.plotting import Figure, FigureCanvasAgg
from clip_randlora.utils.quiet import without_warnings

_ZERO_SHOT, _TUNED, _WRONG = "#8a94a6", "#1f6feb", "#c0392b"
_BARS = 5


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG atomically."""
    FigureCanvasAgg(figure)
    # matplotlib warns of characters that its font lacks
    with atomic_write(path) as temporary, without_warnings():
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1)


def curves(history: Sequence[Mapping[str, float]], metrics: Mapping[str, Any]) -> Figure:
    """Draw the loss and the training accuracy by step, and both test accuracies as lines."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color=_TUNED)
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    if not history:
        left.text(0.5, 0.5, "no optimiser steps", ha="center", transform=left.transAxes)
    right.plot(
        steps, [row["accuracy"] for row in history], color=_TUNED, alpha=0.5, label="training batch"
    )
    for which, color in (("tuned", _TUNED), ("zero_shot", _ZERO_SHOT)):
        top1 = metrics[which]["top1"]
        name = which.replace("_", "-")
        right.axhline(top1, color=color, linestyle="--", label=f"{name} on test: {top1:.1%}")
    right.set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
    right.legend(loc="lower right", fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusions(predictions: Predictions) -> Figure:
    """Draw both confusion matrices, each row as shares of the true class."""
    count = len(predictions.classes)
    side = min(4 + 0.22 * count, 14)
    figure = Figure(figsize=(2 * side, side), layout="constrained")
    names = [_label(name) for name in predictions.classes]
    both = zip(("zero-shot", "tuned"), confusion(predictions), strict=True)
    for axes, (title, counts) in zip(figure.subplots(1, 2), both, strict=True):
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        top1 = counts.trace() / counts.sum()
        axes.set(title=f"{title}: {top1:.1%}", xlabel="answer", ylabel="true class")
        if count <= 50:
            axes.set_xticks(range(count), names, rotation=60, ha="right", fontsize=8)
            axes.set_yticks(range(count), names, fontsize=8)
        if count <= 15:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > 0.6 else "black"
                number = counts[row, column]
                axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
    return figure


def calibration(predictions: Predictions) -> Figure:
    """Draw the accuracy by confidence, zero-shot and tuned (reliability diagrams)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    both = (("zero_shot", _ZERO_SHOT), ("tuned", _TUNED))
    for axes, (which, color) in zip(figure.subplots(1, 2), both, strict=True):
        probabilities = getattr(predictions, which)
        bins = [row for row in calibration_bins(probabilities, predictions.labels) if row.images]
        axes.plot((0, 1), (0, 1), color="#b0b7c3", linestyle="--", linewidth=1)
        axes.bar(
            [row.center for row in bins],
            [row.accuracy for row in bins],
            1 / 15,
            color=color,
            alpha=0.75,
            edgecolor="white",
        )
        largest = max(row.images for row in bins)
        axes.scatter(
            [row.confidence for row in bins],
            [row.accuracy for row in bins],
            color="black",
            s=[8 + 60 * row.images / largest for row in bins],
            zorder=3,
        )
        error = expected_calibration_error(probabilities, predictions.labels)
        axes.set(title=f"{which.replace('_', '-')}: calibration error {error:.3f}", xlim=(0, 1))
        axes.set(xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def examples(predictions: Predictions, split: Split, most: int = 4) -> Figure:
    """Draw test images with both answers, see `pick_examples`."""
    items = {item.name: item for item in split.items}
    chosen = pick_examples(predictions, most)
    images = [items[predictions.names[index]].open() for index in chosen]
    answers = [
        {
            "zero_shot": as_mapping(predictions.classes, predictions.zero_shot[index]),
            "tuned": as_mapping(predictions.classes, predictions.tuned[index]),
        }
        for index in chosen
    ]
    truths = [predictions.classes[predictions.labels[index]] for index in chosen]
    return compare_answers(images, answers, truths)


def compare_answers(
    images: Sequence[Image.Image],
    answers: Sequence[Mapping[str, Mapping[str, float]]],
    truths: Sequence[str | None],
) -> Figure:
    """Draw each image with its most probable classes, zero-shot and tuned, as bars.

    Args:
        images: N images.
        answers: N mappings ``{"zero_shot": {class: p}, "tuned": {class: p}}``.
        truths: N true classes, None where unknown; a wrong first answer is red.
    """
    figure = Figure(figsize=(9, 1.75 * len(images) + 0.35), layout="constrained")
    grid = figure.subplots(len(images), 3, squeeze=False, width_ratios=(1.1, 2, 2))
    for row, (image, answer, truth) in enumerate(zip(images, answers, truths, strict=True)):
        shown, *bars = grid[row]
        shown.imshow(image)
        shown.set_axis_off()
        if truth is not None:
            shown.set_title(_label(truth), fontsize=9)
        for axes, which, color in zip(bars, ("zero_shot", "tuned"), (_ZERO_SHOT, _TUNED)):  # noqa: B905
            _bar_list(axes, answer[which], truth, color)
            if row == 0:
                axes.set_title(which.replace("_", "-"), fontsize=11, fontweight="bold")
    return figure


def _bar_list(axes: Any, answer: Mapping[str, float], truth: str | None, color: str) -> None:
    top = sorted(answer.items(), key=lambda pair: -pair[1])[:_BARS]
    names = [_label(name) for name, _ in top]
    wrong = truth is not None and top[0][0] != truth
    colors = [_WRONG if wrong and place == 0 else color for place in range(len(top))]
    axes.barh(range(len(top)), [p for _, p in top], color=colors, height=0.62)
    axes.set_yticks(range(len(top)), names, fontsize=8)
    axes.set_xticks([])
    axes.set(xlim=(0, 1.18), ylim=(_BARS - 0.5, -0.5))
    for place, (_, p) in enumerate(top):
        axes.text(p + 0.02, place, f"{p:.0%}", va="center", fontsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)


def _label(name: str) -> str:
    """Return a class name as a label: shortened, with ``$`` escaped, which begins a formula."""
    return shorten(name.replace("_", " "), 48, placeholder=" ...").replace("$", r"\$")


def pick_examples(predictions: Predictions, most: int) -> list[int]:
    """Choose up to ``most`` images: fixed by tuning, one of each class, and one broken by it.

    If there are too few, other images follow.
    """
    before, after = (
        probabilities.argmax(dim=-1) == predictions.labels
        for probabilities in (predictions.zero_shot, predictions.tuned)
    )
    labels = predictions.labels.tolist()
    broken = (before & ~after).nonzero().flatten().tolist()[:1]
    fixed = (after & ~before).nonzero().flatten().tolist()
    one_of_each = list({labels[index]: index for index in reversed(fixed)}.values())[::-1]
    chosen = one_of_each[: most - len(broken)] + broken
    others = [index for index in range(len(labels)) if index not in chosen]
    return chosen + others[: most - len(chosen)]
