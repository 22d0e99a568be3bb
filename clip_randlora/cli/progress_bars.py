"""How far long work is, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from clip_randlora.utils.progress import format_seconds

_SECONDS_UNSEEN = 2.0  # shorter stages are not shown
_SECONDS_BETWEEN_LINES = 10.0


class ProgressBars(Progress):
    """An ``on_progress(stage, done, total)`` for the library, shown inside a ``with`` block.

    On a terminal each stage has a bar. Elsewhere, in a log say, a stage gets a line after two
    seconds and then one every ten.
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
        self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int, details: str | None = None) -> None:
        """Note that ``done`` of ``total`` are done; ``details`` stand beside the numbers."""
        task = self._last
        if (
            task is None
            or (task.description, task.total) != (stage, total)
            or done < task.completed
        ):
            task = self._begin(stage, done, total)
        fields: dict[str, Any] = {} if details is None else {"details": details}
        self.update(task.id, completed=done, **fields)
        if self.disable:
            self._print_line(task)

    def _begin(self, stage: str, done: int, total: int) -> Task:
        if self._last is not None:
            self.stop_task(self._last.id)
        number = self.add_task(stage, total=total, completed=done, details="")
        self._last, self._printed = self._tasks[number], 0.0
        return self._last

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bars of the stages that take long."""
        for task in self.tasks:
            task.visible = _seconds(task) >= _SECONDS_UNSEEN
        return super().get_renderables()

    def _print_line(self, task: Task) -> None:
        is_due = time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES
        if is_due and not task.finished and _seconds(task) >= _SECONDS_UNSEEN:
            self._printed = time.monotonic()
            line = f"{task.description}: {_describe(task)}"
            self.console.print(line, soft_wrap=True, markup=False)


class _Facts(ProgressColumn):
    """How many are done, the details, the rate and the time left."""

    def render(self, task: Task) -> Text:
        return Text(_describe(task))


def _describe(task: Task) -> str:
    parts = [f"{task.completed:,.0f} of {task.total:,.0f}", task.fields["details"]]
    if task.finished or task.stop_time is not None:
        parts.append(f"took {format_seconds(_seconds(task))}")
    elif task.speed and task.remaining is not None:
        left = format_seconds(task.remaining / task.speed)
        parts += [f"{task.speed:,.3g} a second", f"{left} left"]
    return ", ".join(filter(None, parts))


def _seconds(task: Task) -> float:
    """Return what the stage took, or what it has taken so far."""
    return task.elapsed or 0.0 if task.finished_time is None else task.finished_time
