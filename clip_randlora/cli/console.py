"""What the commands share: where they print, what, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

results, messages = Console(soft_wrap=True, highlight=False), Console(stderr=True, highlight=False)
INTERRUPTED = 130


@contextmanager
def loading() -> Iterator[None]:
    """Say that something is going on while the heavy libraries are imported."""
    with messages.status("loading"):
        yield


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print per-class accuracy, top-1 and calibration error, zero-shot beside tuned."""
    table = Table("", "zero-shot", "tuned")
    for name, row in metrics["per_class"].items():
        table.add_row(escape(name), f"{row['zero_shot']:.1%}", f"{row['tuned']:.1%}")
    table.add_section()
    both = metrics["zero_shot"], metrics["tuned"]
    table.add_row("top-1", *(f"[bold]{row['top1']:.1%}[/bold]" for row in both))
    table.add_row("calibration error", *(f"{row['ece']:.3f}" for row in both))
    results.print(table)


def fail(status: int, line: str) -> NoReturn:
    """End the process with a status and one line on standard error."""
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(status)
