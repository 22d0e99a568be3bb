"""Paired differences: how far each method is ahead of a reference, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clip_randlora.report.markdown import in_points, markdown_table
from clip_randlora.report.results import AVERAGE, ModelResults
from clip_randlora.utils.wording import shots_in_words

RESAMPLES = 10_000
_FEWEST_PAIRS = 3
_FEWEST_OF_A_DATA_SET = 2  # a single pair has no spread to resample
_SEED = 0
_COLUMNS = [
    "model", "method", "reference", "shots", "pairs", "difference", "low", "high", "verdict"
]  # fmt: skip
_EXPLANATION = """\
Method minus reference in points of top-1 accuracy: the mean over pairs of the same data set, number
of shots and seed. In brackets its 95 % interval, from 10,000 bootstrap resamples of the pairs
within each data set. **ahead** or **behind**: the interval does not contain 0. A method without
seeds, such as zero-shot, is paired with every seed. Fewer than three pairs, or a data set with only
one, are too few for an interval. With three seeds the interval is about a fifth too narrow, because
a bootstrap of three values underestimates their spread."""


def paired_differences(
    models: Sequence[ModelResults], reference: str | None = None
) -> pd.DataFrame:
    """Compare every method of each model with the reference, pair by pair.

    Args:
        models: their numbers.
        reference: label of a method; by default, and for a model without such a method, its first
            RandLoRA method, or else its first trained method.

    Returns:
        A row for each model, method and number of shots, and for the ``average`` where there are
        several, with the columns ``model``, ``method``, ``reference``, ``shots``, ``pairs``;
        ``difference``, ``low``, ``high``: method minus reference in points, and its interval, NaN
        where there are too few pairs; ``verdict``: ahead, behind, no difference, or empty without
        an interval. A model without a reference, or without another method, has no rows.
    """
    rows = [
        {"model": model.model, "method": method, "reference": label, "shots": shots, **numbers}
        for model in models
        if (label := _choose_reference(model, reference)) is not None
        for method in model.methods
        if method != label
        for shots, numbers in _compare(model, method, label)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"shots": object})


def bootstrap_interval(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of all values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        groups: values, (n_i,) float each; each group is resampled by itself, with replacement.
    """
    random = np.random.default_rng(_SEED)
    total = np.zeros(RESAMPLES)
    for group in groups:
        drawn = random.integers(len(group), size=(RESAMPLES, len(group)))
        total += group[drawn].sum(axis=1)
    low, high = np.percentile(total / sum(map(len, groups)), [2.5, 97.5])
    return float(low), float(high)


def paired_sections(rows: pd.DataFrame) -> list[str]:
    """Return what `paired_differences` returned as Markdown."""
    parts = ["## Paired differences", _EXPLANATION] if len(rows) else []
    for name, own in rows.groupby("model", sort=False):
        columns = {
            "all numbers of shots" if shots == AVERAGE else shots_in_words(shots): [
                _show(entry) for entry in entries.itertuples()
            ]
            for shots, entries in own.groupby("shots", sort=False)
        }
        methods = own["method"].unique()
        parts += [
            f"### {name}: difference from {own['reference'].iloc[0]}",
            markdown_table(pd.DataFrame(columns, methods)),
        ]
    return parts


def _choose_reference(model: ModelResults, wanted: str | None) -> str | None:
    if wanted in model.methods:
        return wanted
    kinds = dict(zip(model.cells["method"], model.cells["kind"], strict=True))
    randlora = [method for method in model.methods if kinds[method] == "randlora"]
    return next(iter([*randlora, *model.trained]), None)


def _compare(
    model: ModelResults, method: str, reference: str
) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield the comparison at each number of shots, and at all of them together."""
    finished = model.cells.dropna(subset="top1")
    own, other = (finished[finished["method"] == label] for label in (method, reference))
    pairs = own.merge(other, on=["data", "shots"])
    seeds = pairs[["seed_x", "seed_y"]]
    # a method without seeds goes with every seed
    pairs = pairs[(seeds["seed_x"] == seeds["seed_y"]) | seeds.isna().any(axis="columns")]
    # rounded, so that equal differences of accuracies are equal numbers
    points = (100 * (pairs["top1_x"] - pairs["top1_y"])).round(9)
    for shots in model.shots:
        here = pairs["shots"] == shots
        yield shots, _statistics(points[here], pairs["data"][here])
    if len(model.shots) > 1:
        yield AVERAGE, _statistics(points, pairs["data"])


def _statistics(points: pd.Series, datasets: pd.Series) -> dict[str, Any]:
    groups = [group.to_numpy(float) for _, group in points.groupby(datasets)]
    low, high, verdict = math.nan, math.nan, ""
    if len(points) >= _FEWEST_PAIRS and min(map(len, groups)) >= _FEWEST_OF_A_DATA_SET:
        low, high = bootstrap_interval(groups)
        verdict = "ahead" if low > 0 else "behind" if high < 0 else "no difference"
    return {
        "pairs": len(points),
        "difference": points.mean(),
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def _show(entry: Any) -> str:
    pairs = f"{entry.pairs} pair{'s' * (entry.pairs != 1)}"
    if not entry.pairs:
        return "no pairs"
    if not entry.verdict:
        return f"{in_points(entry.difference)}, {pairs}: too few for an interval"
    verdict = entry.verdict if entry.verdict == "no difference" else f"**{entry.verdict}**"
    interval = f"({in_points(entry.low)} to {in_points(entry.high)})"
    return f"{in_points(entry.difference)} {interval} {verdict}, {pairs}"
