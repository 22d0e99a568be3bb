"""The numbers of a sweep as pandas tables: every cell, and means and deviations over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clip_randlora.errors import UserError
from clip_randlora.sweep.config import ZERO_SHOT
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils.progress import OnProgress, report_progress

AVERAGE = "average"
OPEN_SEED = "open"
_FINISHED = "finished"
_STATES = [_FINISHED, "failed", "missing"]
_KEYS = ["data", "method", "shots"]
_NUMBERS = ["top1", "zero_shot", "trainable_parameters", "train_seconds"]


def read_cells(folder: SweepFolder, on_progress: OnProgress | None = None) -> pd.DataFrame:
    """Read every cell of a sweep, a row each.

    Args:
        folder: the sweep.
        on_progress: told how many cells are read.

    Returns:
        A table with the columns
        ``id``, ``model``, ``data``, ``method``: labels; ``kind``: the method's name;
        ``shots``, ``seed``: as in `Cell`; ``method_seed``: the method's own seed, ``open`` if the
        training's seed is used, None if nothing in the method is random;
        ``state``: finished, failed or missing; ``reason``: why it failed;
        ``top1``, ``zero_shot``: accuracies from 0 to 1, tuned and zero-shot;
        ``trainable_parameters``, ``train_seconds``. Numbers are NaN unless the cell is finished.

    Raises:
        UserError: the folder is not a sweep's, or a file in it is damaged.
    """
    rows = []
    asked = folder.asked()
    for cell in report_progress(asked, "reading cells", len(asked), on_progress):
        settings = cell.method.settings
        method_seed = getattr(settings, "seed", None)
        if method_seed is None and hasattr(settings, "seed"):
            method_seed = OPEN_SEED
        labels = (cell.id, cell.model.label, cell.data_label, cell.method.label, settings.method)
        row = [*labels, cell.shots, cell.seed, method_seed]
        if folder.is_finished(cell):
            metrics = folder.metrics(cell)
            accuracies = [metrics[which]["top1"] for which in ("tuned", "zero_shot")]
            row += [_FINISHED, None, *accuracies, *(metrics[name] for name in _NUMBERS[2:])]
        else:
            reason = folder.failure(cell)
            row += ["missing" if reason is None else "failed", reason, *[math.nan] * 4]
        rows.append(row)
    if not rows:
        raise UserError(f"{folder.path}: not the folder of a sweep (it has no sweep.json)")
    settings_columns = ["id", "model", *_KEYS[:2], "kind", "shots", "seed", "method_seed"]
    cells = pd.DataFrame(
        rows, columns=[*settings_columns, "state", "reason", *_NUMBERS], dtype=object
    )
    return cells.astype(dict.fromkeys(_NUMBERS, float))


@dataclass(frozen=True)
class ModelResults:
    """The numbers of one model.

    Attributes:
        model: its label.
        datasets, methods, shots: labels in the order of the tables, zero-shot first.
        zero_shot, trained: the methods that train nothing, and those with trainable parameters.
        full: the label of full fine-tuning; None without it.
        cells: the cells; zero-shot cells are repeated at every number of shots.
        table: a row for each ``data``, ``method`` and ``shots``, with ``average`` as the last data
            set; ``top1_mean``, ``top1_std`` (n - 1; 0 for zero-shot, NaN for fewer than two seeds),
            ``zero_shot``, ``trainable_parameters``, ``train_seconds``: means over seeds;
            ``finished``, ``failed``, ``missing``: numbers of seeds. The average is taken seed by
            seed, and is NaN unless every data set has all of its seeds.
        gaps: (methods, shots), the share (m - z) / (f - z) of the way from zero-shot to full
            fine-tuning, where m, z and f are averages over the data sets; NaN where one of them is
            not complete, or full fine-tuning is not above zero-shot.
    """

    model: str
    datasets: list[str]
    methods: list[str]
    shots: list[int | str]
    zero_shot: list[str]
    trained: list[str]
    full: str | None
    cells: pd.DataFrame
    table: pd.DataFrame
    gaps: pd.DataFrame

    def entries(self, data: str) -> pd.DataFrame:
        """Return the rows of ``table`` of one data set, or of ``average``."""
        return self.table[self.table["data"] == data]


def summarize_models(cells: pd.DataFrame) -> list[ModelResults]:
    """Summarize what `read_cells` returned, model by model."""
    return [_summarize(str(model), own) for model, own in cells.groupby("model", sort=False)]


def _summarize(model: str, cells: pd.DataFrame) -> ModelResults:
    all_shots = cells["shots"].dropna().unique()
    shots = sorted(all_shots, key=_by_amount) or ["all"]
    datasets, kinds = (
        list(cells["data"].unique()),
        dict(zip(cells["method"], cells["kind"], strict=True)),
    )
    zero_shot = [method for method in kinds if kinds[method] == ZERO_SHOT]
    methods = zero_shot + [method for method in kinds if method not in zero_shot]
    full = next((method for method in kinds if kinds[method] == "full"), None)

    # zero-shot needs no training images: it stands at every number of shots
    at_shots = pd.Series([shots if pd.isna(own) else [own] for own in cells["shots"]], cells.index)
    cells = cells.assign(shots=at_shots).explode("shots")
    table = _statistics(pd.concat([cells, _averages(cells)]), datasets, methods, shots)
    is_zero_shot = table["method"].isin(zero_shot)
    table.loc[is_zero_shot & (table["finished"] > 0), "top1_std"] = 0.0
    trains = cells.groupby("method", sort=False)["trainable_parameters"].max()
    trained = [method for method in methods if trains[method] > 0]

    is_average = table["data"] == AVERAGE
    averages = table[is_average].pivot(index="method", columns="shots", values="top1_mean")
    start = cells.groupby("data")["zero_shot"].first().mean(skipna=False)
    gap = (averages.loc[full] if full else averages.max() * math.nan) - start
    gaps = (averages - start) / gap.where(gap > 0)
    return ModelResults(
        model, datasets, methods, shots, zero_shot, trained, full, cells, table, gaps
    )


def _by_amount(shots: int | str) -> tuple[bool, float]:
    """Return a key that sorts numbers of images first, then shares, then all."""
    if isinstance(shots, int):
        return False, shots
    return True, math.inf if shots == "all" else float(shots.removesuffix("%"))


def _averages(cells: pd.DataFrame) -> pd.DataFrame:
    """Average over the data sets seed by seed, where every data set has all of its seeds.

    Elsewhere only the cells that failed or are missing are kept, to be counted.
    """
    datasets, parts = cells["data"].nunique(), []
    for _, group in cells.groupby(["method", "shots"], sort=False):
        unfinished = group[group["state"] != _FINISHED]
        if unfinished.empty and group["data"].nunique() == datasets:
            by_seed = group.fillna({"seed": 0}).groupby("seed")  # zero-shot has none
            common = by_seed.filter(lambda cells: len(cells) == datasets)
            means = common.groupby(["method", "shots", "seed"])[_NUMBERS].mean()
            group = means.reset_index().assign(state=_FINISHED)
        else:
            group = unfinished
        parts.append(group.assign(data=AVERAGE))
    return pd.concat(parts)


def _statistics(
    cells: pd.DataFrame, datasets: list[str], methods: list[str], shots: list[int | str]
) -> pd.DataFrame:
    """Return the means, deviations and counts over seeds, for every place of the tables."""
    orders: list[list[Any]] = [[*datasets, AVERAGE], methods, shots]
    ordered = {
        key: pd.Categorical(cells[key], order) for key, order in zip(_KEYS, orders, strict=True)
    }
    counted = {state: cells["state"] == state for state in _STATES}
    groups = cells.assign(**ordered, **counted).groupby(_KEYS, observed=False)
    means = {name: (name, "mean") for name in _NUMBERS[1:]}
    sums = {state: (state, "sum") for state in _STATES}
    top1 = {"top1_mean": ("top1", "mean"), "top1_std": ("top1", "std")}
    return groups.agg(**top1, **means, **sums).reset_index()


def best(entries: pd.DataFrame) -> str | None:
    """Return the method whose mean is above the second's by more than the sum of both deviations.

    None if there is no such method, or if either of the two has fewer than two seeds.

    Args:
        entries: the rows of `ModelResults.table` of one data set and number of shots.
    """
    first_two = entries.dropna(subset="top1_mean").nlargest(2, "top1_mean")
    if len(first_two) < 2:
        return None
    lead = first_two["top1_mean"].iloc[0] - first_two["top1_mean"].iloc[1]
    deviations = first_two["top1_std"].sum(skipna=False)
    return first_two["method"].iloc[0] if lead > deviations else None
