"""How far long work is, on a terminal or in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from clip_randlora.utils.progress import format_seconds

_SECONDS_UNSEEN = 2.0  # shorter stages are not shown
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_NOTES = 0.02


class ProgressBars(Progress):
    """An ``on_progress(stage, done, total)`` for the library, shown inside a ``with`` block.

    On a terminal each stage has a bar. Elsewhere, in a log say, a stage gets a line after two
    seconds and then one every ten, also while a stage reports nothing.
    """

    def __init__(self, console: Console):
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Facts(),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=600,
            disable=console.quiet or not console.is_terminal,
        )
        self._last: Task | None = None
        self._noted = self._printed = 0.0
        self._has_ended = threading.Event()
        self._printer = threading.Thread(target=self._print_lines, daemon=True)

    def start(self) -> None:
        """Show the bars, or begin to print lines."""
        if not self.disable:
            super().start()
        elif not self.console.quiet:
            self._printer.start()

    def stop(self) -> None:
        """Leave the bars as they are, or print no more lines."""
        if not self.disable:
            super().stop()
        elif self._printer.is_alive():
            self._has_ended.set()
            self._printer.join()

    def __call__(self, stage: str, done: int, total: int, details: str | None = None) -> None:
        """Note that ``done`` of ``total`` are done; ``details`` stand beside the numbers.

        A total of 0 is not known yet.
        """
        task, now = self._last, time.monotonic()
        if task is None or not _continues(task, stage, done, total):
            task = self._begin(stage, done, total)
        elif done != total and now - self._noted < _SECONDS_BETWEEN_NOTES:
            return  # there may be a million
        self._noted = now
        fields: dict[str, Any] = {} if details is None else {"details": details}
        self.update(task.id, completed=done, total=total or None, **fields)

    def _begin(self, stage: str, done: int, total: int) -> Task:
        if self._last is not None:
            self.stop_task(self._last.id)
        with self._lock:
            number = self.add_task(stage, total=total or None, completed=done, details="")
            self._last, self._printed = self._tasks[number], 0.0
        return self._last

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bars of the stages that take long."""
        for task in self.tasks:
            task.visible = _seconds(task) >= _SECONDS_UNSEEN
        return super().get_renderables()

    def _print_lines(self) -> None:
        while not self._has_ended.wait(_SECONDS_UNSEEN / 4):
            with self._lock:
                task, now = self._last, time.monotonic()
                is_due = now - self._printed >= _SECONDS_BETWEEN_LINES
                if not is_due or task is None or task.finished or _seconds(task) < _SECONDS_UNSEEN:
                    continue
                self._printed = now
                line = f"{task.description}: {_describe(task)}"
            self.console.print(line, soft_wrap=True, markup=False)


def _continues(task: Task, stage: str, done: int, total: int) -> bool:
    """Whether a report is of the stage of this task; a total may become known."""
    is_same = task.total is None or task.total == total
    return is_same and task.description == stage and done >= task.completed


class _Facts(ProgressColumn):
    """How many are done, the details, the rate and the time left."""

    def render(self, task: Task) -> Text:
        return Text(_describe(task))


def _describe(task: Task) -> str:
    took = format_seconds(_seconds(task))
    rate = f"{task.speed:,.3g} a second" if task.speed and task.completed else ""
    if task.total is None:
        count = f"{task.completed:,.0f}" if task.completed else ""
        parts = [count, task.fields["details"], rate, f"{took} so far"]
    else:
        # work that cannot say how far it is counts as one item
        count = f"{task.completed:,.0f} of {task.total:,.0f}" if task.total > 1 else ""
        parts = [count, task.fields["details"]]
        if task.finished or task.stop_time is not None:
            parts.append(f"took {took}")
        elif rate and task.speed and task.remaining is not None:
            parts += [rate, f"{format_seconds(task.remaining / task.speed)} left"]
    return ", ".join(filter(None, parts))


def _seconds(task: Task) -> float:
    """Return what the stage took, or what it has taken so far."""
    return task.elapsed or 0.0 if task.finished_time is None else task.finished_time
