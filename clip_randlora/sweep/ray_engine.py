"""Cells as tasks of a Ray cluster: run folders come back as zips, lost tasks are run again."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from clip_randlora.errors import UserError, needs_extra
from clip_randlora.sweep.cell_runner import CellRunner, Outcome
from clip_randlora.sweep.config import Cell, Resources
from clip_randlora.sweep.display import SweepProgress
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils.ray_cluster import connected

with needs_extra("--engine ray", "cluster"):
    import ray

_RETRIES = 3  # of a cell whose worker was lost; a cell that fails is not tried again


def run_on_ray(
    folder: SweepFolder,
    todo: Sequence[Cell],
    resources: Resources,
    progress: SweepProgress,
    device: str | None = None,
    address: str | None = None,
    trackers: Sequence[str] = (),
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Run cells as tasks, and write each run folder as it comes back.

    Every machine of the cluster needs the data sets and this package.

    Args:
        folder: of the sweep, on this machine.
        todo: the cells.
        resources: what each cell takes.
        progress: is told how many cells run at once.
        device: to train on; by default a worker's best.
        address: of a running cluster, see `connected`.
        trackers: of every training; each worker needs their libraries.

    Yields:
        Each cell, and how it ended.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    with connected(address):
        available = ray.cluster_resources()
        _check_fits(available, resources)
        progress.at_once = max(1, int(available.get("CPU", 1) // resources.cpus))
        task = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=_RETRIES, max_calls=0
        )(_run_cell)
        waiting = {
            task.remote(cell.model_dump(mode="json"), device, tuple(trackers), resources.cpus): cell
            for cell in todo
        }
        while waiting:
            [ready], _ = ray.wait(list(waiting), num_returns=1)
            cell = waiting.pop(ready)
            try:
                outcome, archive = ray.get(ready)
            except ray.exceptions.RayError as error:
                line = f"its worker was lost {_RETRIES + 1} times ({type(error).__name__})"
                outcome, archive = Outcome(0.0, line, str(error)), b""
            if archive:
                with zipfile.ZipFile(io.BytesIO(archive)) as packed:
                    packed.extractall(folder.running(cell))
            yield cell, outcome


def _check_fits(available: dict[str, float], resources: Resources) -> None:
    for key, field in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted, has = getattr(resources, field), available.get(key, 0)
        if wanted > has:
            raise UserError(
                f"resources: {field}: {wanted} for a cell, the cluster has {has:g} in all"
            )


def _run_cell(
    description: dict[str, Any], device: str | None, trackers: tuple[str, ...], threads: int
) -> tuple:
    """Run a cell in a worker process; return its outcome, and its run folder as a zip."""
    torch.set_num_threads(threads)
    cell = Cell(**description)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / cell.id
        outcome = _runner(device, trackers).run(cell, folder)
        if outcome.error:
            return outcome, b""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
        return outcome, packed.getvalue()


@lru_cache(maxsize=1)
def _runner(device: str | None, trackers: tuple[str, ...]) -> CellRunner:
    """Return the worker process's runner, which keeps what cells have in common."""
    return CellRunner(device, trackers)
