"""Run what is left of a sweep, in this process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from clip_randlora.runs.tracking import check_trackers
from clip_randlora.sweep.cell_runner import CellRunner, Outcome
from clip_randlora.sweep.config import Cell, SweepConfig
from clip_randlora.sweep.display import SweepProgress
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils.progress import OnProgress, report_progress
from clip_randlora.utils.ray_cluster import is_cluster


class Stopped(KeyboardInterrupt):
    """A sweep was stopped with Ctrl-C; ``left`` cells are not finished."""

    def __init__(self, left: int):
        super().__init__(f"{left} cells left")
        self.left = left


def run_sweep(
    config: SweepConfig,
    out: str | Path,
    *,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    device: str | None = None,
    console: Console | None = None,
    on_progress: OnProgress | None = None,
    track: str | Sequence[str] = (),
) -> SweepProgress:
    """Run every cell that is not finished; finished ones are never run again.

    A cell that fails is recorded with its error, and the sweep goes on. The next start tries it
    again. If the process is killed, at most the cell in progress is lost, and the next start gives
    the same numbers as a sweep without a break.

    Args:
        config: the cells.
        out: the sweep's folder.
        engine: ``local``: one cell after another in this process; ``ray``: tasks of a cluster.
        address: of a Ray cluster; by default one is started on this machine.
        device: to train on; by default the best there is.
        console: where cells are shown as they end; by default nowhere.
        on_progress: told how far the running cell is, or on a cluster how many cells have ended.
        track: trackers that get every training, as in `fit`; a cell's name is its run's.

    Returns:
        The progress, with its ``done`` and ``failed`` cells.

    Raises:
        UserError: the folder is another sweep's, in use or not a sweep's; the engine or a tracker
            is unknown or not installed.
        Stopped: Ctrl-C; finished cells are kept.
    """
    on_cluster = is_cluster(engine, address)
    if on_cluster:
        from clip_randlora.sweep.ray_engine import run_on_ray  # needs the extra
    trackers = check_trackers(track)
    folder = SweepFolder(out)
    cells = list(config.cells())
    with folder.lock():
        todo = folder.begin(cells, config.reference)
        console = console or Console(quiet=True)
        progress = SweepProgress(cells, todo, folder, console, on_progress)
        if on_cluster:
            outcomes = run_on_ray(
                folder, todo, config.resources, progress, device, address, trackers
            )
        else:
            outcomes = _run_here(folder, todo, progress, device, trackers)
        try:
            with progress, closing(outcomes):
                if on_cluster:
                    ended = report_progress(outcomes, "running cells", len(todo), on_progress)
                else:
                    ended = outcomes
                for cell, outcome in ended:
                    if outcome.error:
                        folder.fail(
                            cell, outcome.error, outcome.details, keeps_state=outcome.keeps_state
                        )
                        progress.has_failed(cell, outcome.error)
                    else:
                        folder.finish(cell, outcome.seconds)
                        progress.has_finished(cell, outcome.seconds)
        except KeyboardInterrupt:
            raise Stopped(progress.left) from None
    return progress


def _run_here(
    folder: SweepFolder,
    todo: Sequence[Cell],
    progress: SweepProgress,
    device: str | None,
    trackers: Sequence[str],
) -> Generator[tuple[Cell, Outcome], None, None]:
    runner = CellRunner(device, trackers)
    for cell in todo:
        progress.has_started(cell)
        yield cell, runner.run(cell, folder.running(cell), partial(progress.has_reached, cell))
