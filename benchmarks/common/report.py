"""What a benchmark shows in the end: one Markdown table, notes, a figure, all saved as well."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import describe_machine, describe_versions, one_line
from benchmarks.common.ratios import Ratio
from benchmarks.common.results import Results
from clip_randlora.runs import figures

OURS, PEER, BOUND = "#1f6feb", "#8a94a6", "#2e8b57"


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> str:
    """Lay a table out as Markdown; after the first columns of text, cells align to the right."""
    table = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < text_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell).replace("|", "/") for cell in row))
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    console.print(table, markup=False)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


def ratio_table(compared: Sequence[tuple[str, Ratio]]) -> str:
    """Lay out ``(line of the targets, ratio)`` as Markdown."""
    columns = ("line", "ratio of medians", "value", "target", "")
    return markdown_table(columns, [[line, *ratio.cells()] for line, ratio in compared], 2)


def publish(
    results: Results,
    threads: int,
    tables: Sequence[str],
    notes: Sequence[str],
    figure: Figure | None,
    summary: Mapping[str, Any],
) -> None:
    """Print the tables and the notes; write them, the JSON and the figure to the folder."""
    machine, versions = describe_machine(), describe_versions()
    lines = [f"Measured on {one_line(machine, versions, threads)}.", *notes]
    text = "\n\n".join([*tables, "\n".join(f"- {line}" for line in lines)]) + "\n"
    results.write(
        {"machine": machine, "versions": versions, "threads": threads, "notes": list(notes)}
        | dict(summary)
    )
    _write_text(results.folder / f"{results.name}.md", text)
    if figure is not None:
        figures.save(figure, results.folder / f"{results.name}.png")
    print(text)
    print(f"Saved to {results.folder}")


def seconds(values: Mapping[str, float]) -> str:
    """Show a `spread` of seconds as ``median (min - max)``, with digits that suit its size."""
    digits = sum(values["median"] < bound for bound in (30, 1, 0.1)) + 1
    return (
        f"{values['median']:.{digits}f} ({values['min']:.{digits}f} - {values['max']:.{digits}f})"
    )


def gigabytes(count: float | None) -> str:
    """Show bytes as gigabytes (10^9)."""
    return f"{count / 1e9:.2f}" if count else ""


def bars(
    axes: Any,
    labels: Sequence[str],
    spreads: Sequence[Mapping[str, float]],
    colors: Sequence[str],
    unit: str,
) -> None:
    """Draw medians as horizontal bars, the first on top, with lines from smallest to largest."""
    medians = [values["median"] for values in spreads]
    below = [values["median"] - values["min"] for values in spreads]
    above = [values["max"] - values["median"] for values in spreads]
    places = range(len(labels))
    axes.barh(places, medians, color=colors, height=0.68)
    axes.errorbar(medians, places, xerr=(below, above), fmt="none", ecolor="black", linewidth=1)
    axes.set_yticks(places, labels, fontsize=8)
    most = max(values["max"] for values in spreads)
    for place, values in zip(places, spreads, strict=True):
        axes.text(
            values["max"] + most * 0.02, place, f"{values['median']:.3g}", va="center", fontsize=8
        )
    axes.set(xlim=(0, most * 1.17), ylim=(len(labels) - 0.5, -0.5), xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
