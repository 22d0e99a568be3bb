"""What the commands share: where they print, what, and how they end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clip_randlora.cli.interrupts import check
from clip_randlora.utils.progress import format_seconds

results, messages = Console(soft_wrap=True, highlight=False), Console(stderr=True, highlight=False)
INTERRUPTED, CELLS_FAILED = 130, 1
_SECONDS_UNSEEN = 2.0  # what takes no longer is not shown
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.25


@contextmanager
def loading() -> Iterator[None]:
    """Say that something is going on while the heavy libraries are imported."""
    with messages.status("loading"):
        yield
    check()


@dataclass
class _Stage:
    """How far one stage is, as of the last call."""

    name: str
    first: int
    total: int
    done: int = 0
    details: str = ""
    began: float = field(default_factory=time.monotonic)
    took: float | None = None

    def reach(self, done: int, details: str | None) -> None:
        """Note how many are done; the clock stops with the last."""
        self.done = done
        if details is not None:
            self.details = details
        if done >= self.total:
            self.end()

    def end(self) -> None:
        """Stop the clock."""
        if self.took is None:
            self.took = time.monotonic() - self.began

    @property
    def seconds(self) -> float:
        """Since when it goes on, or what it took."""
        return time.monotonic() - self.began if self.took is None else self.took

    @property
    def is_worth_a_line(self) -> bool:
        """Whether it takes so long that somebody would wonder."""
        return self.seconds >= _SECONDS_UNSEEN

    def describe(self) -> list[str]:
        """Return how many are done, what else there is to say, the rate and the time left."""
        rate = (self.done - self.first) / max(self.seconds, 1e-9)
        parts = [f"{self.done:,} of {self.total:,}", self.details]
        if rate and self.took is None:
            left = format_seconds((self.total - self.done) / rate)
            parts += [f"{rate:,.3g} a second", f"{left} left"]
        elif self.took is not None:
            parts.append(f"took {format_seconds(self.took)}")
        return [part for part in parts if part]


class Progress:
    """Shows how far long work is; what takes less than two seconds is not shown.

    On a terminal each stage has a bar. Elsewhere, in a log say, there is a line after two seconds
    and then one every ten. Called as ``on_progress(stage, done, total)``, which the library's
    functions take (`utils.progress.OnProgress`); ``details`` stand beside the numbers.
    """

    def __init__(self, console: Console):
        self._console = console
        self._stages: list[_Stage] = []

    def __call__(self, stage: str, done: int, total: int, details: str | None = None) -> None:
        """Note that ``done`` of ``total`` are done."""
        last = self._stages[-1] if self._stages else None
        if last is None or (last.name, last.total) != (stage, total) or done < last.done:
            if last is not None:
                last.end()
            last = _Stage(stage, done, total)
            self._stages.append(last)
        last.reach(done, details)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it inside the block."""
        if self._console.quiet:
            yield
            return
        with self._bars() if self._console.is_terminal else self._lines():
            yield

    @contextmanager
    def _bars(self) -> Iterator[None]:
        from rich.live import Live

        with Live(get_renderable=self._draw, console=self._console, refresh_per_second=4):
            yield

    def _draw(self) -> Table:
        from rich.progress_bar import ProgressBar

        table = Table.grid(padding=(0, 2, 0, 0))
        for stage in list(self._stages):
            if stage.is_worth_a_line:
                bar = ProgressBar(stage.total, stage.done, width=24)
                table.add_row(escape(stage.name), bar, *map(escape, stage.describe()))
        return table

    @contextmanager
    def _lines(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._print_lines, args=[ended], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _print_lines(self, ended: threading.Event) -> None:
        shown, printed = None, 0.0
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            stage = self._stages[-1] if self._stages else None
            if stage is None or stage.took is not None or not stage.is_worth_a_line:
                continue
            if stage is not shown or time.monotonic() - printed >= _SECONDS_BETWEEN_LINES:
                shown, printed = stage, time.monotonic()
                line = f"{stage.name}: {', '.join(stage.describe())}"
                self._console.print(line, markup=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield an ``on_progress(stage, done, total)`` for the library, shown on standard error."""
    on_progress = Progress(messages)
    with on_progress.shown():
        yield on_progress


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
