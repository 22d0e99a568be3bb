"""Cells as tasks of a Ray cluster: run folders come back as zips, lost tasks are run again."""

from __future__ import annotations

import io
import logging
import os
import socket
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

with needs_extra("--engine ray", "cluster"):
    import ray
    import ray.util

_RETRIES = 3  # of a cell whose worker was lost; a cell that fails is not tried again
_CONNECT_SECONDS = 10


def run_on_ray(
    folder: SweepFolder,
    todo: Sequence[Cell],
    resources: Resources,
    progress: SweepProgress,
    device: str | None = None,
    address: str | None = None,
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Run cells as tasks, and write each run folder as it comes back.

    Every machine of the cluster needs the data sets and this package.

    Args:
        folder: of the sweep, on this machine.
        todo: the cells.
        resources: what each cell takes.
        progress: is told how many cells run at once.
        device: to train on; by default a worker's best.
        address: of a running cluster. By default `RAY_ADDRESS` of the environment, as Ray's own
            commands set it, or a cluster that is started on this machine.

    Yields:
        Each cell, and how it ended.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    _connect(address)
    try:
        available = ray.cluster_resources()
        _check_fits(available, resources)
        progress.at_once = max(1, int(available.get("CPU", 1) // resources.cpus))
        task = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=_RETRIES, max_calls=0
        )(_run_cell)
        waiting = {
            task.remote(cell.model_dump(mode="json"), device, resources.cpus): cell for cell in todo
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
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Join the cluster at an address, or start one on this machine.

    Without an address Ray would join the cluster that was last started here, even if it ended.
    """
    inherited = os.environ.get("RAY_ADDRESS")
    where = address or inherited or "local"
    named = f"--address {address}" if address else f"RAY_ADDRESS={inherited}"
    if where != "local":
        _check_answers(named, where)
    try:
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if where == "local":
            raise UserError(f"--engine ray: no cluster started here ({reason})") from error
        # Ray does not say that the cluster asks for a token, as recent versions do
        token = (
            "" if "RAY_AUTH_MODE" in os.environ else "; if it has a token, set RAY_AUTH_MODE=token"
        )
        raise UserError(f"{named}: no Ray cluster there ({reason}){token}") from error


def _check_answers(named: str, where: str) -> None:
    """Refuse an address where nothing listens, which Ray would try for a quarter of an hour."""
    host, colon, port = where.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit() and 0 < int(port) < 2**16):
        return  # a name that Ray knows, such as "auto"
    if host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # where a head of this machine listens
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{named}: nothing answers there ({error.strerror or error}); give the address that "
            f"`ray start --head` printed, or none for a cluster of this machine's own"
        ) from None


def _check_fits(available: dict[str, float], resources: Resources) -> None:
    for key, field in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted, has = getattr(resources, field), available.get(key, 0)
        if wanted > has:
            raise UserError(
                f"resources: {field}: {wanted} for a cell, the cluster has {has:g} in all"
            )


def _run_cell(description: dict[str, Any], device: str | None, threads: int) -> tuple:
    """Run a cell in a worker process; return its outcome, and its run folder as a zip."""
    torch.set_num_threads(threads)
    cell = Cell(**description)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / cell.id
        outcome = _runner(device).run(cell, folder)
        if outcome.error:
            return outcome, b""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        return outcome, packed.getvalue()


@lru_cache(maxsize=1)
def _runner(device: str | None) -> CellRunner:
    """Return the worker process's runner, which keeps what cells have in common."""
    return CellRunner(device)
