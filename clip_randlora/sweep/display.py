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
from clip_randlora.utils.progress import OnProgress, format_seconds


class SweepProgress:
    """Counts cells, estimates the time left, and shows both.

    Attributes:
        done: finished cells, including cells of earlier starts.
        failed: the error of each cell that failed since the start, by the cell's id.
        at_once: number of cells that run at the same time.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        todo: Sequence[Cell],
        folder: SweepFolder,
        console: Console,
        on_progress: OnProgress | None = None,
    ):
        self._cells, self._todo, self._console = list(cells), list(todo), console
        self._running, self._on_progress = "", on_progress
        self._measured: dict[tuple, list[float]] = defaultdict(list)
        waiting = {cell.id for cell in todo}
        self.done = [cell for cell in cells if cell.id not in waiting]
        self.failed: dict[str, str] = {}
        self.at_once = 1
        for cell in self.done:
            self._measure(cell, folder.seconds(cell))
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> SweepProgress:
        if self.done:
            self._print(f"{len(self.done)} of {len(self._cells)} cells are finished already")
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def left(self) -> int:
        """Number of cells that are still to run, including those in progress."""
        return len(self._todo)

    def has_started(self, cell: Cell) -> None:
        """Show that a cell was begun."""
        self._running = f"running {cell.id}: loading"
        if self._on_progress:
            self._on_progress(f"{cell.id}: loading", 0, 0)

    def has_reached(self, cell: Cell, stage: str, done: int, total: int) -> None:
        """Show how far a cell is; see `clip_randlora.utils.progress.OnProgress`."""
        of = f" of {total}" if total else ""  # of some stages it is not known
        self._running = f"running {cell.id}: {stage}, {done}{of}"
        if self._on_progress:
            self._on_progress(f"{cell.id}: {stage}", done, total)

    def has_finished(self, cell: Cell, seconds: float) -> None:
        """Count a finished cell."""
        self._end(cell)
        self.done.append(cell)
        self._measure(cell, seconds)
        left = ""
        if self._todo:
            left = f"; {self.left} cells left, about {format_seconds(self.seconds_left() or 0)}"
        self._print(f"done    {cell.id}  ({format_seconds(seconds)}{left})")

    def has_failed(self, cell: Cell, error: str) -> None:
        """Count a failed cell, which only the next start will run again."""
        self._end(cell)
        self.failed[cell.id] = error
        self._print(f"failed  {cell.id}: {error}")

    def seconds_left(self) -> float | None:
        """Estimate the time left from the finished cells; None before the first.

        A cell is expected to take the mean time of the finished cells that are most like it.
        """
        if not self._measured:
            return None
        expected = (
            next(mean(self._measured[kind]) for kind in _kinds(cell) if kind in self._measured)
            for cell in self._todo
        )
        return sum(expected) / self.at_once

    def _end(self, cell: Cell) -> None:
        self._running = ""
        self._todo = [other for other in self._todo if other.id != cell.id]

    def _measure(self, cell: Cell, seconds: float) -> None:
        for kind in _kinds(cell):
            self._measured[kind].append(seconds)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _draw(self) -> Group:
        failed = [cell for cell in self._cells if cell.id in self.failed]
        counts = [Counter(map(_row_name, cells)) for cells in (self.done, failed, self._todo)]
        table = Table("data set", "done", "failed", "left")
        for name in dict.fromkeys(map(_row_name, self._cells)):
            table.add_row(Text(name), *(str(count[name]) for count in counts))
        table.add_section()
        table.add_row("in all", *(str(count.total()) for count in counts))
        seconds = self.seconds_left()
        left = [] if seconds is None else [f"time left: about {format_seconds(seconds)}"]
        return Group(table, *map(Text, [self._running, *left]))


def _kinds(cell: Cell) -> list[tuple]:
    """Return what cells have in common that take about as long, the most similar first."""
    model, method, shots = cell.model.label, cell.method.label, cell.shots
    return [
        (model, cell.data_label, method, shots),
        (model, cell.data_label, shots),
        (model, shots),
        (model,),
        (),
    ]


def _row_name(cell: Cell) -> str:
    return f"{cell.data_label} ({cell.model.label})"
