"""Published figures beside our own: the files of ``configs/published``, and the cells they fit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clip_randlora.adapters.config import MethodConfig
from clip_randlora.adapters.methods import parse_method
from clip_randlora.clip.models import DEFAULT_TAG, default_pretrained
from clip_randlora.report.markdown import in_points, markdown_table
from clip_randlora.report.results import AVERAGE, ModelResults
from clip_randlora.sweep.config import Cell
from clip_randlora.utils.paths import configs_folder
from clip_randlora.utils.wording import shots_in_words
from clip_randlora.utils.yaml_files import read_mapping

_SETTINGS = ("method", "rank", "number_of_bases", "towers", "blocks")
_COLUMNS = [
    "source", "model", "data", "method", "published_method", "shots", "seeds", "ours", "published",
    "difference",
]  # fmt: skip
_EXPLANATION = """\
Ours (published, ours minus published): top-1 in percent, the difference in points. The model and
its weights, the data set and the number of shots are the same, and so are the method, its rank, its
number of bases, and the towers and blocks that it adapts. Everything else may differ. Averages are
compared only if the sweep has the source's data sets and no others. Methods that only the source
has are then listed, too."""


@dataclass(frozen=True)
class PublishedFigures:
    """The figures of one source.

    Attributes:
        source: who published them, and where.
        models: the tag of the weights of each model.
        datasets: the names of all data sets of the average.
        methods: the settings of ours that correspond to a published method.
        figures: top-1 in percent by model, method, shots and data set or ``average``. Shots are a
            text, empty for a method without training images.
    """

    source: str
    models: dict[str, str]
    datasets: frozenset[str]
    methods: dict[str, list[MethodConfig]]
    figures: dict[tuple[str, str, str, str], float]

    def model_of(self, cells: Sequence[Cell]) -> str | None:
        """Return the published model that the cells train, or None."""
        entries = {(cell.model.name, cell.model.pretrained) for cell in cells}
        if len(entries) != 1:
            return None
        name, tag = entries.pop()
        tag = default_pretrained(name) if tag == DEFAULT_TAG else tag
        return name if tag is not None and self.models.get(name) == tag else None

    def find(
        self, model: str, settings: Sequence[MethodConfig], shots: int | str, data: str
    ) -> tuple[str, float] | None:
        """Return the published method and its figure that correspond to all of these settings."""
        for method, known in self.methods.items():
            ours = {_compared(config) for config in settings}
            if ours <= {_compared(config) for config in known}:
                figure = self.figure(model, method, shots, data)
                if figure is not None:
                    return method, figure
        return None

    def figure(self, model: str, method: str, shots: int | str, data: str) -> float | None:
        """Return a figure in percent, or None."""
        label = "all" if shots == "100%" else str(shots)
        at_any = self.figures.get((model, method, "", data))
        return self.figures.get((model, method, label, data), at_any)


def read_published(folder: Path | None = None) -> list[PublishedFigures]:
    """Read the sources of a folder, by default ``configs/published``.

    A source is a YAML file with ``source``, ``models``, ``datasets`` and ``methods``, as
    `PublishedFigures` has them, and a CSV file of the same name with the columns ``model``,
    ``shots``, ``method``, the data sets and ``average``. Empty fields were not published.
    """
    folder = folder or configs_folder() / "published"
    return [_read_source(path) for path in sorted(folder.glob("*.yaml"))]


def beside_published(cells: Sequence[Cell], models: Sequence[ModelResults]) -> pd.DataFrame:
    """Set the numbers of a sweep beside the published figures that they correspond to.

    Args:
        cells: every cell of the sweep.
        models: its numbers.

    Returns:
        A row for each match, with the columns ``source``, ``model``, ``data``, ``method``,
        ``published_method``, ``shots``; ``seeds``: how many of ours finished; ``ours``,
        ``published``: top-1 in percent; ``difference``: ours minus published, in points. Averages
        of methods that only the source has follow, without a ``method`` and with NaN for ours.
    """
    rows = [
        row
        for source in read_published()
        for model in models
        for row in _matches(source, [c for c in cells if c.model.label == model.model], model)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"shots": object})


def published_sections(rows: pd.DataFrame) -> list[str]:
    """Return what `beside_published` returned as Markdown."""
    parts = ["## Beside published figures", _EXPLANATION] if len(rows) else []
    for (model, source), own in rows.groupby(["model", "source"], sort=False):
        keys = ["data", "method", "published_method"]
        texts = own.assign(text=[_show(row) for row in own.itertuples()])
        columns = [shots_in_words(shots) for shots in texts["shots"]]
        wide = texts.assign(column=columns).pivot(index=keys, columns="column", values="text")
        wide = wide.reindex(
            index=own.set_index(keys).index.unique(), columns=dict.fromkeys(columns)
        )
        wide = wide.fillna("").reset_index(keys[1:])
        named = wide.rename(columns={"published_method": "published as"})
        parts += [f"### {model}: {source}", markdown_table(named, "data set")]
    return parts


def _read_source(path: Path) -> PublishedFigures:
    fields = read_mapping(path, "the source of published figures")
    table = pd.read_csv(path.with_suffix(".csv"), dtype={"shots": str}, keep_default_na=False)
    keys = ["model", "method", "shots"]
    long = table.melt(keys, var_name="data", value_name="top1")
    long = long[long["top1"] != ""]
    index = long[[*keys, "data"]].itertuples(index=False, name=None)
    return PublishedFigures(
        source=fields["source"],
        models=fields["models"],
        datasets=frozenset(fields["datasets"]),
        methods={
            name: [parse_method(entry) for entry in entries]
            for name, entries in fields["methods"].items()
        },
        figures=dict(zip(index, long["top1"].astype(float), strict=True)),
    )


def _matches(
    source: PublishedFigures, cells: Sequence[Cell], model: ModelResults
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one source and one model, whose cells are ``cells``."""
    name = source.model_of(cells)
    if name is None:
        return
    groups: dict[tuple[str, str, Any], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.data_label, cell.method.label, cell.shots] += [cell]
        groups[AVERAGE, cell.method.label, cell.shots] += [cell]
    has_all = {_data_of(cell) for cell in cells} == source.datasets
    found: set[tuple[str, Any]] = set()
    entry: Any
    for entry in model.table.dropna(subset="top1_mean").itertuples():
        # zero-shot has no shots, and stands at every number of them
        at_any = groups.get((entry.data, entry.method, None), [])
        own = groups.get((entry.data, entry.method, entry.shots), at_any)
        is_same_data = has_all if entry.data == AVERAGE else set(map(_data_of, own)) == {entry.data}
        settings = [cell.method.settings for cell in own]
        match = source.find(name, settings, entry.shots, entry.data) if is_same_data else None
        if match is None:
            continue
        if entry.data == AVERAGE:
            found.add((match[0], entry.shots))
        yield _row(source, model, entry.data, entry.shots, match, entry)
    if not has_all:
        return
    for method, shots in dict.fromkeys((key[1], n) for key in source.figures for n in model.shots):
        figure = source.figure(name, method, shots, AVERAGE)
        if figure is not None and (method, shots) not in found:
            yield _row(source, model, AVERAGE, shots, (method, figure))


def _data_of(cell: Cell) -> str | None:
    """Return the data set's name; None where only some of its classes are trained on."""
    return cell.data if cell.classes == "all" else None


def _row(
    source: PublishedFigures,
    model: ModelResults,
    data: str,
    shots: int | str,
    match: tuple[str, float],
    entry: Any = None,
) -> dict[str, Any]:
    published_method, published = match
    ours = math.nan if entry is None else entry.top1_mean * 100
    return {
        "source": source.source,
        "model": model.model,
        "data": data,
        "method": "" if entry is None else entry.method,
        "published_method": published_method,
        "shots": shots,
        "seeds": 0 if entry is None else entry.finished,
        "ours": ours,
        "published": published,
        "difference": ours - published,
    }


def _compared(settings: MethodConfig) -> tuple[Any, ...]:
    """Return the settings that say which published method this is."""
    values = (getattr(settings, name, None) for name in _SETTINGS)
    return tuple(frozenset(value) if isinstance(value, tuple) else value for value in values)


def _show(row: Any) -> str:
    if math.isnan(row.ours):
        return f"({row.published:.1f})"
    return f"{row.ours:.1f} ({row.published:.1f}, {in_points(row.difference)})"
