"""What the commands print, where they print it, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_randlora.cli.interrupts import check

if TYPE_CHECKING:
    from clip_randlora.cli.progress_bars import ProgressBars

# names of files and classes are printed as they are
results = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
messages = Console(stderr=True, highlight=False, markup=False, emoji=False)
INTERRUPTED, CELLS_FAILED = 130, 1

EXIT_STATUS = (
    "Exit status: 0 done; 2 wrong input, in one line on standard error that says what to do; "
    "130 interrupted."
)
SWEEP_STATUS = EXIT_STATUS.replace("done;", "done; 1 some cells failed;")


@contextmanager
def loading() -> Iterator[None]:
    """Show that the block imports heavy libraries or loads a model."""
    with working("loading"):
        yield
    check()


@contextmanager
def working(stage: str) -> Iterator[None]:
    """Show that the block is under way, which cannot say how far it is.

    A terminal shows it at once and forgets it at the end; elsewhere there are the lines of
    `progress`.
    """
    from clip_randlora.utils.progress import one_stage

    with progress(at_once=True) as on_progress, one_stage(stage, on_progress):
        yield


@contextmanager
def progress(at_once: bool = False) -> Iterator[ProgressBars]:
    """Yield an ``on_progress(stage, done, total)`` that is shown on standard error.

    Downloads of other libraries are shown too. ``at_once``: see `ProgressBars`.
    """
    from clip_randlora.cli.library_bars import reported_to
    from clip_randlora.cli.progress_bars import ProgressBars

    with ProgressBars(messages, at_once) as bars, reported_to(bars):
        yield bars


def print_notes(notes: Iterable[str]) -> None:
    """Print each note on a line of standard error; empty ones are left out."""
    for note in filter(None, notes):
        messages.print(f"- {note}")


def print_json(content: Any) -> None:
    """Print a value as JSON on one line; only the main one of several processes does."""
    if not results.quiet:
        print(json.dumps(content, ensure_ascii=False))


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print per-class accuracy, top-1 and calibration error, zero-shot beside tuned."""
    table = Table("", "zero-shot", "tuned")
    for name, row in metrics["per_class"].items():
        table.add_row(name, f"{row['zero_shot']:.1%}", f"{row['tuned']:.1%}")
    table.add_section()
    both = metrics["zero_shot"], metrics["tuned"]
    table.add_row("top-1", *(Text(f"{row['top1']:.1%}", style="bold") for row in both))
    table.add_row("calibration error", *(f"{row['ece']:.3f}" for row in both))
    none = metrics.get("none_of_these")
    if none:
        table.add_section()
        table.add_row("none of these: AUROC", "", f"{none['auroc']:.3f}")
        table.add_row("false positives at 95 % kept", "", f"{none['fpr95']:.1%}")
    results.print(table)


def fail(status: int, line: str) -> NoReturn:
    """End the process with a status and one line on standard error."""
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(status)
