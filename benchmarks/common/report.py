"""Tables and figures of measured rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common.measured import Measured

OURS, PEER, BOUND = "#1f6feb", "#8a94a6", "#2e8b57"


def table(rows: Sequence[Measured], columns: Mapping[str, Callable[[Measured], str]]) -> str:
    """Lay rows out as Markdown: the cells of their labels, then the columns.

    The reason of a row that failed stands in the first column after the label.
    """
    lines = []
    for row in rows:
        if row.failed:
            cells = [f"failed: {row.failed}", *[""] * (len(columns) - 1)]
        else:
            cells = [cell(row) for cell in columns.values()]
        lines.append([*row.label.values(), *cells])
    label = list(rows[0].label) if rows else []
    return markdown_table([*label, *columns], lines)


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out Markdown; cells align to the right, but for the first column."""
    laid_out = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        laid_out.add_column(column, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        laid_out.add_row(*(cell.replace("|", "/") for cell in line))
    text = io.StringIO()
    Console(file=text, width=1000, color_system=None).print(laid_out, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def time_and_memory() -> dict[str, Callable[[Measured], str]]:
    """Return the columns of rows that have ``seconds`` and ``memory``."""
    return {
        "seconds: median (min - max)": lambda row: seconds(row.values["seconds"]),
        "time ratio": lambda row: ratio(row, "seconds"),
        "peak GB": lambda row: gigabytes(row.values["memory"]),
        "memory ratio": lambda row: ratio(row, "memory"),
    }


def seconds(values: Mapping[str, float]) -> str:
    """Show a `spread` as ``median (min - max)``, with digits that suit its size."""
    digits = sum(values["median"] < bound for bound in (30, 1, 0.1)) + 1
    low, high = values["min"], values["max"]
    return f"{values['median']:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def gigabytes(values: Mapping[str, float]) -> str:
    """Show the median of a `spread` of bytes, in gigabytes (10^9)."""
    return f"{values['median'] / 1e9:.2f}"


def ratio(row: Measured, quantity: str) -> str:
    """Show the ratio to the first row of the group, if there is one."""
    value = row.ratio(quantity)
    return "" if value is None else f"{value:.2f}"


def figure(
    rows: Sequence[Measured],
    units: Mapping[str, str],
    color: Callable[[Measured], str] = lambda _: OURS,
) -> Figure | None:
    """Draw medians as bars with a line from the smallest to the largest value.

    Args:
        rows: each group gets a line of panels, the rows of one group a bar each.
        units: ``{quantity: its unit}``; each quantity gets a panel.
        color: of a row's bars.

    Returns:
        The figure, or None if every row failed.
    """
    groups: dict[str, list[Measured]] = {}
    for row in rows:
        if not row.failed:
            groups.setdefault(row.group, []).append(row)
    if not groups:
        return None
    heights = [len(members) + 1.6 for members in groups.values()]
    size = (4 + 4.5 * len(units), 0.8 + 0.3 * sum(heights))
    drawn = Figure(figsize=size, layout="constrained")
    grid = drawn.subplots(len(groups), len(units), squeeze=False, height_ratios=heights)
    for (group, members), panels in zip(groups.items(), grid, strict=True):
        labels = [next(iter(row.label.values())).replace("`", "") for row in members]
        for (quantity, unit), axes in zip(units.items(), panels, strict=True):
            _bars(axes, members, quantity, [color(row) for row in members])
            axes.set_yticks(range(len(labels)), labels if axes is panels[0] else [], fontsize=8)
            axes.set_xlabel(unit)
        panels[0].set_title(group, loc="left", fontsize=10, fontweight="bold")
    return drawn


def _bars(axes: Any, rows: Sequence[Measured], quantity: str, colors: Sequence[str]) -> None:
    scale = 1e-9 if quantity == "memory" else 1.0
    spreads = [row.values[quantity] for row in rows]
    medians = [scale * values["median"] for values in spreads]
    below = [scale * (values["median"] - values["min"]) for values in spreads]
    above = [scale * (values["max"] - values["median"]) for values in spreads]
    axes.barh(range(len(rows)), medians, color=colors, height=0.68)
    axes.errorbar(
        medians, range(len(rows)), xerr=(below, above), fmt="none", ecolor="black", linewidth=1
    )
    most = scale * max(values["max"] for values in spreads)
    for place, values in enumerate(spreads):
        shown = f"{scale * values['median']:.3g}"
        axes.text(scale * values["max"] + most * 0.02, place, shown, va="center", fontsize=8)
    axes.set(xlim=(0, most * 1.17), ylim=(len(rows) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
