"""Run what is left of a sweep, here or on a Ray cluster."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from clip_randlora.errors import OutOfMemory, UserError
from clip_randlora.sweep.config import Cell, SweepConfig
from clip_randlora.sweep.display import Progress
from clip_randlora.sweep.runner import Runner, describe
from clip_randlora.sweep.sweep_folder import SweepFolder

ENGINES = ("local", "ray")


class Stopped(KeyboardInterrupt):
    """A sweep was stopped with Ctrl-C; ``left`` cells are not done."""

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
) -> Progress:
    """Run every cell that is not finished; finished ones are never run again.

    A cell that fails is recorded with its error and the sweep goes on; at the next start it is
    tried again. A process that is killed loses the cell in progress at most, and the next start
    gives the numbers that an unbroken sweep would have given.

    Args:
        config: the cells.
        out: the sweep's folder.
        engine: ``local``: one cell after another in this process; ``ray``: tasks of a cluster.
        address: of a Ray cluster; None for one of this machine's own.
        device: to train on; by default the best there is.
        console: where progress is shown; None for nowhere.

    Returns:
        What was done, with ``done`` and ``failed`` cells.

    Raises:
        UserError: the folder is another sweep's, in use or not a sweep's; the engine is unknown
            or not installed.
        Stopped: Ctrl-C; what is finished is kept.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: choose {' or '.join(ENGINES)}")
    if address and engine != "ray":
        raise UserError("--address: only with --engine ray")
    folder = SweepFolder(out)
    cells = list(config.cells())
    with folder.lock():
        todo = folder.begin(cells)
        progress = Progress(cells, todo, folder, console or Console(quiet=True))
        try:
            with progress:
                if engine == "ray":
                    from clip_randlora.sweep.ray_engine import run_on_ray

                    run_on_ray(folder, todo, config.resources, progress, device, address)
                else:
                    _run_here(folder, todo, progress, device)
        except KeyboardInterrupt:
            raise Stopped(progress.left) from None
    return progress


def _run_here(
    folder: SweepFolder, todo: Sequence[Cell], progress: Progress, device: str | None
) -> None:
    runner = Runner(device)
    for cell in todo:
        progress.started(cell)
        start = time.perf_counter()
        try:
            runner.run(cell, folder.running(cell), progress.stepped, progress.reached)
        except Exception as error:
            has_state = isinstance(error, OutOfMemory)  # elsewhere, or later, it may go on
            folder.fail(cell, describe(error), traceback.format_exc(), keeps_state=has_state)
            progress.has_failed(cell, describe(error))
        else:
            seconds = time.perf_counter() - start
            folder.finish(cell, seconds)
            progress.has_finished(cell, seconds)
