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
_BETWEEN_STAGES = "working"


class ProgressBars(Progress):
    """An ``on_progress(stage, done, total)`` for the library, shown inside a ``with`` block.

    On a terminal each stage has a bar. Elsewhere, in a log say, a stage gets a line after two
    seconds and then one every ten, also while a stage reports nothing. Work between two stages is
    shown as one if it takes longer than two seconds.
    """

    def __init__(self, console: Console, at_once: bool = False):
        """Show stages on a console.

        ``at_once``: a terminal shows them from the first moment, and not when they have ended.
        """
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Facts(),
            console=console,
            refresh_per_second=4,
            transient=at_once,
            speed_estimate_period=600,
            disable=console.quiet or not console.is_terminal,
        )
        self._unseen = 0.0 if at_once else _SECONDS_UNSEEN
        self._last: Task | None = None
        self._noted, self._printed = time.monotonic(), 0.0
        self._has_ended = threading.Event()
        self._watch = threading.Thread(target=self._watch_stages, daemon=True)

    def start(self) -> None:
        """Show the bars, or begin to print lines."""
        if not self.disable:
            super().start()
        if not self.console.quiet:
            self._watch.start()

    def stop(self) -> None:
        """Leave the bars as they are, or print no more lines."""
        if self._watch.is_alive():
            self._has_ended.set()
            self._watch.join()
        if not self.disable:
            super().stop()

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
            task.visible = _seconds(task) >= self._unseen
        return super().get_renderables()

    def _watch_stages(self) -> None:
        while not self._has_ended.wait(_SECONDS_UNSEEN / 4):
            self._fill_gap()
            if self.disable:
                self._print_line()

    def _fill_gap(self) -> None:
        """Begin a stage of our own if the last one ended a while ago."""
        with self._lock:
            silent = time.monotonic() - self._noted
            if (self._last is None or self._last.finished) and silent >= _SECONDS_UNSEEN:
                task = self._begin(_BETWEEN_STAGES, 0, 0)
                task.start_time = self.get_time() - silent

    def _print_line(self) -> None:
        with self._lock:
            task, now = self._last, time.monotonic()
            is_due = now - self._printed >= _SECONDS_BETWEEN_LINES
            if not is_due or task is None or task.finished or _seconds(task) < _SECONDS_UNSEEN:
                return
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
