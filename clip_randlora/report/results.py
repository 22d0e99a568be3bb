"""The numbers of a sweep: means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from clip_randlora.errors import UserError
from clip_randlora.sweep.config import ZERO_SHOT, Cell
from clip_randlora.sweep.sweep_folder import SweepFolder

Shots = int | str


@dataclass(frozen=True)
class Measured:
    """A finished cell's numbers: accuracies from 0 to 1, seconds."""

    top1: float
    zero_shot: float
    parameters: int
    train_seconds: float


@dataclass(frozen=True)
class Entry:
    """One place of a table: a method on a data set, at a number of shots, over its seeds.

    Attributes:
        measured: by seed; of zero-shot, which has no seed, by None.
        failed: number of seeds that failed.
        missing: number of seeds that are not run yet.
    """

    measured: dict[int | None, Measured]
    failed: int = 0
    missing: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether no seed failed or is missing."""
        return bool(self.measured) and not self.failed and not self.missing

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the seeds that finished; None if none did."""
        return _mean([run.top1 for run in self.measured.values()])

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (n - 1); 0 for zero-shot, None for fewer than two seeds."""
        if list(self.measured) == [None]:
            return 0.0
        values = [run.top1 for run in self.measured.values()]
        return stdev(values) if len(values) > 1 else None

    def mean_of(self, field: str) -> float | None:
        """Mean of another of the numbers."""
        return _mean([getattr(run, field) for run in self.measured.values()])


@dataclass(frozen=True)
class ModelResults:
    """The numbers of one model: ``entries`` by data set, method and shots."""

    model: str
    datasets: list[str]
    methods: list[str]
    full: str | None
    shots: list[Shots]
    entries: dict[tuple[str, str, Shots], Entry]

    def entry(self, data: str, method: str, shots: Shots) -> Entry:
        """Return one place; empty where that was not asked for."""
        return self.entries.get((data, method, shots), Entry({}))

    def average(self, method: str, shots: Shots) -> Entry:
        """Average over the data sets, seed by seed, so that its spread is over seeds as well.

        Empty unless every data set has all of its seeds.
        """
        of_sets = [self.entry(data, method, shots) for data in self.datasets]
        failed, missing = (sum(getattr(e, k) for e in of_sets) for k in ("failed", "missing"))
        seeds = set.intersection(*(set(entry.measured) for entry in of_sets))
        if not all(entry.is_complete for entry in of_sets):
            return Entry({}, failed, missing)
        return Entry(
            {
                seed: _average([entry.measured[seed] for entry in of_sets])
                for seed in sorted(seeds, key=str)
            }
        )

    @cached_property
    def zero_shot(self) -> dict[str, float]:
        """The zero-shot accuracy by data set, which every finished cell measured."""
        return {
            data: next(iter(entry.measured.values())).zero_shot
            for (data, _, _), entry in reversed(self.entries.items())
            if entry.measured
        }

    def gap_closed(self, method: str, shots: Shots) -> float | None:
        """Share of the way from zero-shot to full fine-tuning: (m - z) / (f - z).

        m, z and f are averages over the data sets. None where one is not complete, or full
        fine-tuning is not above zero-shot.
        """
        if self.full is None or set(self.datasets) - self.zero_shot.keys():
            return None
        reached = self.average(method, shots).mean
        full = self.average(self.full, shots).mean
        start = mean(self.zero_shot[data] for data in self.datasets)
        if reached is None or full is None or full <= start:
            return None
        return (reached - start) / (full - start)


@dataclass(frozen=True)
class Results:
    """The numbers of a sweep.

    Attributes:
        models: of each model.
        failed: the reason of each failed cell.
        missing: the cells that are not run yet.
        fixed_seeds: the methods with a seed of their own, by label, which the cells' seeds do not
            vary; of each the training seeds that are concerned, and what the method's seeds are.
        open_seeds: the methods whose random start and bases vary with the cells' seeds.
    """

    models: list[ModelResults]
    failed: dict[str, str]
    missing: list[str]
    fixed_seeds: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    open_seeds: list[str] = field(default_factory=list)


def gather(folder: SweepFolder) -> Results:
    """Read every cell of a sweep.

    Raises:
        UserError: the folder is not a sweep's, or a file in it is damaged.
    """
    cells = folder.asked()
    if not cells:
        raise UserError(f"{folder.path}: not the folder of a sweep (it has no sweep.json)")
    measured = {c.id: _measured(folder.metrics(c)) for c in cells if folder.is_finished(c)}
    failures = {cell.id: folder.failure(cell) for cell in cells if cell.id not in measured}
    failed = {name: reason for name, reason in failures.items() if reason is not None}
    missing = [name for name, reason in failures.items() if reason is None]
    by_model: dict[str, list[Cell]] = {}
    for cell in cells:
        by_model.setdefault(cell.model.label, []).append(cell)
    models = [_of_model(name, of, measured, failed) for name, of in by_model.items()]
    return Results(models, failed, missing, *_seeds_of_methods(cells))


def _seeds_of_methods(
    cells: Sequence[Cell],
) -> tuple[dict[str, tuple[list[int], list[int]]], list[str]]:
    """Return the methods that have a seed of their own, and those that take the cells'."""
    fixed: dict[str, tuple[set[int], set[int]]] = {}
    of_cells: set[str] = set()
    for cell in cells:
        label, settings = cell.method.label, cell.method.settings
        if not hasattr(settings, "seed"):  # nothing in it is random
            continue
        if settings.seed is None:
            of_cells.add(label)
        else:
            concerned, seeds = fixed.setdefault(label, (set(), set()))
            concerned.add(cell.seed)
            seeds.add(settings.seed)
    return {
        label: (sorted(concerned), sorted(seeds)) for label, (concerned, seeds) in fixed.items()
    }, sorted(of_cells)


def best(entries: Sequence[Entry]) -> int | None:
    """Return which entry stands out: its mean is above the second by more than their spread.

    That is by more than the sum of both standard deviations over seeds. None stands out where one
    of the two has fewer than two seeds.
    """
    known = [index for index, entry in enumerate(entries) if entry.mean is not None]
    ranked = sorted(known, key=lambda index: -entries[index].mean)
    if len(ranked) < 2:
        return None
    first, second = (entries[index] for index in ranked[:2])
    if first.spread is None or second.spread is None:
        return None
    return ranked[0] if first.mean - second.mean > first.spread + second.spread else None


def _of_model(
    name: str, cells: list[Cell], measured: dict[str, Measured], failed: dict[str, str]
) -> ModelResults:
    shots = sorted({c.shots for c in cells if c.shots is not None}, key=_shots_order) or ["all"]
    groups: dict[tuple[str, str, Shots], list[Cell]] = {}
    for cell in cells:
        for count in shots if cell.shots is None else [cell.shots]:  # zero-shot: at all of them
            groups.setdefault((cell.data_label, cell.method.label, count), []).append(cell)
    entries = {
        key: Entry(
            {cell.seed: measured[cell.id] for cell in of if cell.id in measured},
            sum(cell.id in failed for cell in of),
            sum(cell.id not in measured and cell.id not in failed for cell in of),
        )
        for key, of in groups.items()
    }
    methods = {cell.method.label: cell.method.settings.method for cell in cells}
    return ModelResults(
        name,
        list(dict.fromkeys(cell.data_label for cell in cells)),
        sorted(methods, key=lambda label: methods[label] != ZERO_SHOT),
        next((label for label, method in methods.items() if method == "full"), None),
        shots,
        entries,
    )


def _measured(metrics: dict[str, Any]) -> Measured:
    return Measured(
        metrics["tuned"]["top1"],
        metrics["zero_shot"]["top1"],
        metrics["trainable_parameters"],
        metrics["train_seconds"],
    )


def _average(runs: Sequence[Measured]) -> Measured:
    return Measured(
        mean(run.top1 for run in runs),
        mean(run.zero_shot for run in runs),
        round(mean(run.parameters for run in runs)),
        mean(run.train_seconds for run in runs),
    )


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _shots_order(shots: Shots) -> float:
    return float("inf") if shots == "all" else shots
