"""What a running sweep shows: a live table on a terminal, otherwise a line for each cell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clip_randlora.sweep.config import Cell
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.training.logger import Step
from clip_randlora.utils.progress import format_seconds


class Progress:
    """Counts cells, estimates the time left, and shows both.

    Attributes:
        done: cells that are finished, those of earlier starts among them.
        failed: cells that failed since the start, with the reasons by cell.
        left: number of cells that are still to run.
    """

    def __init__(
        self, cells: Sequence[Cell], todo: Sequence[Cell], folder: SweepFolder, console: Console
    ):
        self._cells, self._todo, self._console = list(cells), list(todo), console
        self._running: dict[str, str] = {}
        self._measured: dict[tuple, list[float]] = defaultdict(list)
        waiting = {cell.id for cell in todo}
        self.done = [cell for cell in cells if cell.id not in waiting]
        self.failed: dict[str, str] = {}
        self._at_once = 1
        for cell in self.done:
            self._measure(cell, folder.seconds(cell))
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Progress:
        if self.done:
            self._say(f"{len(self.done)} of {len(self._cells)} cells are finished already")
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def left(self) -> int:
        """Number of cells that are still to run, those in progress among them."""
        return len(self._todo)

    def started(self, cell: Cell) -> None:
        """A cell was begun."""
        self._running[cell.id] = "loading"

    def at_once(self, count: int) -> None:
        """So many cells run at the same time."""
        self._at_once = max(count, 1)

    def reached(self, stage: str, done: int, total: int) -> None:
        """The cell in progress, if it is one, is so far (`utils.progress.OnProgress`)."""
        for cell in self._running:
            self._running[cell] = f"{stage}, {done} of {total}"

    def stepped(self, step: Step) -> None:
        """The cell in progress, if it is one, has taken a step."""
        for cell in self._running:
            self._running[cell] = f"step {step.step} of {step.steps}, loss {step.loss:.3f}"

    def has_finished(self, cell: Cell, seconds: float) -> None:
        """A cell is done."""
        self._end(cell)
        self.done.append(cell)
        self._measure(cell, seconds)
        self._say(f"done    {cell.id}  ({format_seconds(seconds)}{self._rest()})")

    def has_failed(self, cell: Cell, error: str) -> None:
        """A cell has failed, and will not be run again before the next start."""
        self._end(cell)
        self.failed[cell.id] = error
        self._say(f"failed  {cell.id}: {error}")

    def seconds_left(self) -> float | None:
        """Estimate the rest by the cells that were measured; None before the first."""
        if not self._measured:
            return None
        return sum(self._expect(cell) for cell in self._todo) / self._at_once

    def _end(self, cell: Cell) -> None:
        self._running.pop(cell.id, None)
        self._todo = [other for other in self._todo if other.id != cell.id]

    def _measure(self, cell: Cell, seconds: float) -> None:
        for kind in _kinds(cell):
            self._measured[kind].append(seconds)

    def _expect(self, cell: Cell) -> float:
        """Return the mean of the measured cells that are most like this one."""
        return next(mean(self._measured[kind]) for kind in _kinds(cell) if kind in self._measured)

    def _rest(self) -> str:
        left = self.seconds_left()
        if not self._todo or left is None:
            return ""
        return f"; {self.left} cells left, about {format_seconds(left)}"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _table(self) -> Group:
        done, left = (_count_by_data(cells) for cells in (self.done, self._todo))
        failed = _count_by_data([cell for cell in self._cells if cell.id in self.failed])
        table = Table("data set", "done", "failed", "left")
        for name in dict.fromkeys(map(_place, self._cells)):
            table.add_row(Text(name), str(done[name]), str(failed[name]), str(left[name]))
        table.add_section()
        table.add_row("in all", str(len(self.done)), str(len(self.failed)), str(self.left))
        lines = [f"running {cell}: {state}" for cell, state in list(self._running.items())[:8]]
        seconds = self.seconds_left()
        if seconds is not None:
            lines.append(f"time left: about {format_seconds(seconds)}")
        return Group(table, *map(Text, lines))


def _kinds(cell: Cell) -> list[tuple]:
    """Return what cells that take about as long have in common, the most alike first."""
    model, method, shots = cell.model.label, cell.method.label, cell.shots
    return [
        (model, cell.data_label, method, shots),
        (model, cell.data_label, shots),
        (model, shots),
        (model,),
        (),
    ]


def _place(cell: Cell) -> str:
    return f"{cell.data_label} ({cell.model.label})"


def _count_by_data(cells: Sequence[Cell]) -> Counter[str]:
    return Counter(map(_place, cells))
