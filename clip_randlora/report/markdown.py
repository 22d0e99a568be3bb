"""The report as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clip_randlora.report.results import AVERAGE, OPEN_SEED, ModelResults, best
from clip_randlora.utils.outputs import atomic_write
from clip_randlora.utils.progress import format_seconds
from clip_randlora.utils.wording import shots_in_words

TITLE = "# Sweep"
_EXPLANATION = """\
Top-1 accuracy on the test images in percent: mean ± standard deviation over seeds (n - 1).
**Bold**: the best of its column, where its mean is above the second's by more than the sum of both
standard deviations; where either has fewer than two seeds, nothing is bold. Zero-shot needs no
training images: it is run once and stands in every column. (2 of 3): so many seeds finished, the
others failed or are missing."""


def as_markdown(
    cells: pd.DataFrame,
    models: Sequence[ModelResults],
    figures: Sequence[str],
    notes: Sequence[str] = (),
    more: Sequence[str] = (),
) -> str:
    """Return the tables, the figures, the notes, and lists of failed and missing cells.

    ``more``: paragraphs, headings and tables that stand after the models' own.
    """
    parts = [TITLE, _EXPLANATION, _what_seeds_vary(cells)]
    for model in models:
        parts += _sections(model)
    parts += more
    parts += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in figures]
    parts += notes
    failed = cells[cells["state"] == "failed"].set_index("id")["reason"]
    if len(failed):
        reasons = failed.str.replace("|", "\\|").to_frame()
        parts += [
            "## Failed",
            "The next start of the sweep tries them again.",
            markdown_table(reasons, "cell"),
        ]
    missing = cells.loc[cells["state"] == "missing", "id"]
    if len(missing):
        parts += ["## Missing", "\n".join(f"- {name}" for name in missing)]
    return "\n\n".join(parts) + "\n"


def write_csv(models: Sequence[ModelResults], path: Path) -> None:
    """Write a row for each model, data set, method and number of shots; shares from 0 to 1."""
    tables = []
    for model in models:
        table = model.table.copy()
        table.insert(6, "gap_closed", float("nan"))
        table.loc[table["data"] == AVERAGE, "gap_closed"] = model.gaps.to_numpy().ravel()
        table.insert(0, "model", model.model)
        tables.append(table)
    rows = pd.concat(tables)
    rows["trainable_parameters"] = rows["trainable_parameters"].round().astype("Int64")
    save_table(rows, path)


def save_table(rows: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, without its index."""
    with atomic_write(path) as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")


def _what_seeds_vary(cells: pd.DataFrame) -> str:
    varies = ["the draw of the training images", "their order", "their augmentation"]
    is_open = cells["method_seed"] == OPEN_SEED
    if is_open.any():
        varies.append("the method's own random start and bases")
    sentences = [f"Seeds vary {', '.join(varies[:-1])} and {varies[-1]}."]
    fixed = cells[~is_open].dropna(subset="method_seed")
    for method, own in fixed.groupby("method", sort=False):
        seeds, fixed_at = (sorted(own[name].unique()) for name in ("seed", "method_seed"))
        which = ""
        if (is_open & (cells["method"] == method)).any():
            which = f" of seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        sentences.append(
            f"{method}: its cells{which} have the method's own seed fixed at "
            f"{', '.join(map(str, fixed_at))}, so its random start and bases do not vary."
        )
    return " ".join(sentences)


def _sections(model: ModelResults) -> list[str]:
    parts = [f"## {model.model}"]
    for data in model.datasets:
        parts += [f"### {data}", _accuracies(model, data)]
    if len(model.datasets) > 1:
        parts += [f"### {AVERAGE} over the data sets", _accuracies(model, AVERAGE)]
    if model.full is not None:
        shares = model.gaps.map(lambda gap: "" if pd.isna(gap) else f"{gap * 100:.0f}")
        parts += [
            "### Gap to full fine-tuning closed",
            "Share of the way from zero-shot to full fine-tuning, (m - z) / (f - z) of the averages"
            " over the data sets, in percent; none where full fine-tuning is not above zero-shot.",
            markdown_table(shares.rename(columns=shots_in_words)),
        ]
    return [
        *parts,
        "### Cost",
        "Trainable parameters, and the training's time as the mean over data sets and seeds.",
        markdown_table(_costs(model)),
    ]


def _accuracies(model: ModelResults, data: str) -> str:
    columns = {}
    for shots, entries in model.entries(data).groupby("shots", observed=False):
        bold = best(entries)
        columns[shots_in_words(shots)] = [
            _show(entry, entry.method == bold, entry.method in model.zero_shot)
            for entry in entries.itertuples()
        ]
    return markdown_table(pd.DataFrame(columns, model.methods))


def _show(entry: Any, is_bold: bool, is_zero_shot: bool) -> str:
    if not entry.finished:
        if entry.failed:
            return f"failed ({entry.failed})" if entry.failed > 1 else "failed"
        return "missing" if entry.missing else ""
    text = f"{entry.top1_mean * 100:.1f}"
    if not is_zero_shot and not pd.isna(entry.top1_std):
        text += f" ± {entry.top1_std * 100:.1f}"
    if is_bold:
        text = f"**{text}**"
    asked = entry.finished + entry.failed + entry.missing
    return text if entry.finished == asked else f"{text} ({entry.finished} of {asked})"


def _costs(model: ModelResults) -> pd.DataFrame:
    """Return the number of trainable parameters and the mean time of each method, as text."""
    rows = {}
    for method in model.methods:
        cells = model.cells[model.cells["method"] == method].dropna(subset="train_seconds")
        counts = cells["trainable_parameters"].astype(int)
        extremes = sorted({counts.min(), counts.max()}) if len(cells) else []
        seconds = cells.groupby("shots")["train_seconds"].mean()
        rows[method] = {
            "trainable parameters": " to ".join(f"{count:,}" for count in extremes),
            **{
                shots_in_words(shots): format_seconds(seconds[shots]) if shots in seconds else ""
                for shots in model.shots
            },
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def markdown_table(texts: pd.DataFrame, index: str = "method") -> str:
    """Return a table of texts as Markdown, with its index as the first column."""
    rows = texts.rename_axis(index).reset_index()
    lines: list[list[Any]] = [list(rows), ["---"] * rows.shape[1], *rows.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def in_points(difference: float) -> str:
    """Return a difference with its sign and one decimal."""
    return f"{round(difference, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0
