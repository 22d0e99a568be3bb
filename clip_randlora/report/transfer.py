"""Tests on classes that were not trained on: novel ones, and those of other data sets."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from clip_randlora.report.markdown import markdown_table
from clip_randlora.report.results import AVERAGE
from clip_randlora.sweep.config import NOVEL
from clip_randlora.sweep.sweep_folder import SweepFolder

BASE, HARMONIC = "base", "harmonic mean"
_HALVES = (BASE, NOVEL, HARMONIC)
_OF_TRAINING = ["model", "data", "method", "shots"]
_COLUMNS = [*_OF_TRAINING, "tested_on", "top1_mean", "top1_std", "finished", "asked"]
_NUMBERS = """Top-1 accuracy in percent: mean ± standard deviation over seeds (n - 1)."""
_BASE_TO_NOVEL = f"""\
The first half of each data set's classes, the base classes, is trained on, and all tables above are
of them. Both halves are tested on, each among its own class names. {_NUMBERS} The harmonic mean is
that of the two means. On the average it is that of the averages over the data sets."""
_OTHERS = f"""\
The tuned encoders answer for data sets that they were not trained on, among the class names of
each. {_NUMBERS} The average is over these data sets, without the one that was trained on."""


def summarize_transfer(folder: SweepFolder) -> pd.DataFrame:
    """Summarize the tests on further classes over the seeds of a sweep.

    Returns:
        A row for each training and what it was tested on, with the columns ``model``, ``data``,
        ``method``: labels; ``shots``: as text, "" for zero-shot; ``tested_on``: ``base``,
        ``novel`` and their ``harmonic mean``, or the labels of data sets and their ``average``;
        ``top1_mean``, ``top1_std``: from 0 to 1, NaN where cells are missing or no deviation is
        taken; ``finished``, ``asked``: numbers of cells. For base and novel classes of several data
        sets there are rows with ``average`` as ``data``: means of the means, where no cell is
        missing. It is empty for a sweep without such tests.

    Raises:
        UserError: a file of the sweep is damaged.
    """
    cells = _read_tests(folder)
    groups = cells.groupby([*_OF_TRAINING, "tested_on"], sort=False)["top1"]
    table = groups.agg(top1_mean="mean", top1_std="std", finished="count", asked="size")
    table = table.reset_index()
    is_half = table["tested_on"].isin(_HALVES)
    halves = pd.concat([table[is_half], _average_halves(table[is_half])])
    others = table[table["data"].isin(cells.loc[cells["is_other"], "data"])]
    others = others[others["tested_on"] != NOVEL]
    means = [_harmonic_means(halves), _average_others(others)]
    extra = halves[halves["data"] == AVERAGE]
    return pd.concat([table, extra, *means], ignore_index=True)[_COLUMNS]


def transfer_sections(table: pd.DataFrame) -> list[str]:
    """Return what `summarize_transfer` returned as Markdown."""
    parts: list[str] = []
    is_half = table["tested_on"].isin(_HALVES)
    if is_half.any():
        parts += ["## Base and novel classes", _BASE_TO_NOVEL]
        for (model, data), own in table[is_half].groupby(["model", "data"], sort=False):
            title = f"{AVERAGE} over the data sets" if data == AVERAGE else data
            parts += [f"### {model}: {title}", _as_markdown(own)]
    others = table[~is_half | (table["tested_on"] == BASE)]
    others = others[others["data"].isin(table.loc[~is_half, "data"])]
    if len(others):
        parts += ["## Other data sets", _OTHERS]
        for (model, data), own in others.groupby(["model", "data"], sort=False):
            parts += [f"### {model}: trained on {data}", _as_markdown(own)]
    return parts


def _read_tests(folder: SweepFolder) -> pd.DataFrame:
    """Return a row for each cell and what it was tested on; top-1 is NaN unless it is finished."""
    rows = []
    for cell in folder.asked():
        novel = [NOVEL] if cell.classes == "base" else []
        if not novel and not cell.also_test:
            continue
        own = BASE if novel else cell.data_label
        top1 = {}
        if folder.is_finished(cell):
            metrics = folder.metrics(cell)
            scores = {own: metrics, **metrics.get("also_test", {})}
            top1 = {name: score["tuned"]["top1"] for name, score in scores.items()}
        shots = "" if cell.shots is None else str(cell.shots)
        labels = [cell.model.label, cell.data_label, cell.method.label, shots]
        for name in (own, *novel, *cell.also_test):
            rows.append([*labels, name, name in cell.also_test, top1.get(name, math.nan)])
    columns = [*_OF_TRAINING, "tested_on", "is_other", "top1"]
    return pd.DataFrame(rows, columns=columns).astype({"is_other": bool, "top1": float})


def _average_halves(halves: pd.DataFrame) -> pd.DataFrame:
    """Average each half over the data sets, where there are several and no cell is missing."""
    rows = []
    for model, own in halves.groupby("model", sort=False):
        datasets = own["data"].nunique()
        for (method, shots, half), group in own.groupby(
            ["method", "shots", "tested_on"], sort=False
        ):
            labels = [model, AVERAGE, method, shots, half]
            if datasets > 1:
                rows.append([*labels, *_mean_of_means(group, datasets)])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _average_others(others: pd.DataFrame) -> pd.DataFrame:
    """Average over the data sets that were not trained on, where there are several."""
    rows = []
    for labels, group in others.groupby(_OF_TRAINING, sort=False):
        further = group[~group["tested_on"].isin([BASE, labels[1]])]
        if len(further) > 1:
            rows.append([*labels, AVERAGE, *_mean_of_means(further, len(further))])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _mean_of_means(group: pd.DataFrame, count: int) -> list[float]:
    """Return a mean, no deviation, and the numbers of cells; NaN unless all ``count`` are whole."""
    finished, asked = group["finished"].sum(), group["asked"].sum()
    is_whole = finished == asked and len(group) == count
    return [group["top1_mean"].mean() if is_whole else math.nan, math.nan, finished, asked]


def _harmonic_means(halves: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for labels, group in halves.groupby(_OF_TRAINING, sort=False):
        by_half = group.set_index("tested_on")
        base, novel = (float(by_half.loc[half, "top1_mean"]) for half in (BASE, NOVEL))
        mean = 2 * base * novel / (base + novel) if base + novel else 0.0
        counts = [group[name].sum() for name in ("finished", "asked")]
        rows.append([*labels, HARMONIC, mean, math.nan, *counts])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _as_markdown(entries: pd.DataFrame) -> str:
    """Return a table with a row for each method and number of shots, a column for each test."""
    tests = list(dict.fromkeys(entries["tested_on"]))
    rows, methods = [], []
    for (method, shots), own in entries.groupby(["method", "shots"], sort=False):
        by_test = {entry.tested_on: _show(entry) for entry in own.itertuples()}
        rows.append({"shots": shots, **{test: by_test.get(test, "") for test in tests}})
        methods.append(method)
    return markdown_table(pd.DataFrame(rows, methods))


def _show(entry: Any) -> str:
    if math.isnan(entry.top1_mean):
        return "missing"
    text = f"{entry.top1_mean * 100:.1f}"
    if not math.isnan(entry.top1_std):
        text += f" ± {entry.top1_std * 100:.1f}"
    return text if entry.finished == entry.asked else f"{text} ({entry.finished} of {entry.asked})"
