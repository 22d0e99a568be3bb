"""Cells as tasks of a Ray cluster: finished ones come back as bytes, lost ones are run again."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import time
import traceback
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from clip_randlora.errors import UserError, needs_extra
from clip_randlora.sweep.config import Cell, Resources
from clip_randlora.sweep.display import Progress
from clip_randlora.sweep.runner import Runner, describe
from clip_randlora.sweep.sweep_folder import SweepFolder

_RETRIES = 3  # of a cell whose worker was lost; one that fails by itself is not tried again
_ANSWER_SECONDS = 10  # to wait for a cluster's first sign


@dataclass(frozen=True)
class _Outcome:
    """What a task returns: the run folder as a zip, or an error in one line and its details."""

    seconds: float
    archive: bytes | None = None
    error: str = ""
    details: str = ""


def run_on_ray(
    folder: SweepFolder,
    todo: Sequence[Cell],
    resources: Resources,
    progress: Progress,
    device: str | None = None,
    address: str | None = None,
) -> None:
    """Run cells as tasks, and write each to the sweep's folder as it comes back.

    The data sets must be found, and this package installed, on every machine of the cluster.

    Args:
        folder: of the sweep, on this machine.
        todo: the cells.
        resources: what each cell takes.
        progress: is told what was done.
        device: to train on; by default a worker's best.
        address: of a running cluster (or `RAY_ADDRESS` in the environment, as Ray's own commands
            set it); None, without that, starts one on this machine.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    with needs_extra("--engine ray", "cluster"):
        import ray
    _connect(address)
    try:
        _check_fits(ray.cluster_resources(), resources)
        progress.at_once(int(ray.cluster_resources().get("CPU", 1) // resources.cpus))
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
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                kind = type(error).__name__
                line = f"its worker was lost {_RETRIES + 1} times ({kind})"
                outcome = _Outcome(0.0, error=line, details=str(error))
            _take_in(folder, cell, outcome, progress)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Join the cluster at an address, or start one on this machine.

    Without an address Ray would take the cluster that was last started here, even one that ended.
    """
    import ray

    named, where = _named(address)
    if where != "local":
        _check_answers(named, where)
    try:
        ray.init(address=where, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if where == "local":
            raise UserError(f"--engine ray: no cluster started here ({reason})") from error
        # Ray does not say so itself, and clusters of recent versions ask for one
        token = (
            "" if "RAY_AUTH_MODE" in os.environ else "; if it has a token, set RAY_AUTH_MODE=token"
        )
        raise UserError(f"{named}: no Ray cluster there ({reason}){token}") from error


def _named(address: str | None) -> tuple[str, str]:
    """The option that says where the cluster is, as the user wrote it, and where that is."""
    if address:
        return f"--address {address}", address
    inherited = os.environ.get("RAY_ADDRESS")
    return (f"RAY_ADDRESS={inherited}", inherited) if inherited else ("", "local")


def _check_answers(named: str, where: str) -> None:
    """Refuse an address where nothing listens, which Ray would try for a quarter of an hour."""
    import ray.util

    host, colon, port = where.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit() and 0 < int(port) < 2**16):
        return  # a name such as "auto", whose meaning is Ray's
    if host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # where a head of this machine listens
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
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


def _take_in(folder: SweepFolder, cell: Cell, outcome: _Outcome, progress: Progress) -> None:
    """Write a cell that came back to its place, or its failure."""
    if outcome.archive is None:
        folder.fail(cell, outcome.error, outcome.details)
        progress.has_failed(cell, outcome.error)
        return
    with zipfile.ZipFile(io.BytesIO(outcome.archive)) as archive:
        archive.extractall(folder.running(cell))
    folder.finish(cell, outcome.seconds)
    progress.has_finished(cell, outcome.seconds)


def _run_cell(description: dict[str, Any], device: str | None, threads: int) -> _Outcome:
    """Run a cell in a worker process, which keeps what its next cells may have in common."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    cell = Cell(**description)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / cell.id
        try:
            _runner(device).run(cell, folder)
        except Exception as error:
            seconds = time.perf_counter() - start
            return _Outcome(seconds, None, describe(error), traceback.format_exc())
        return _Outcome(time.perf_counter() - start, _pack(folder))


@lru_cache(maxsize=1)
def _runner(device: str | None) -> Runner:
    return Runner(device)


def _pack(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return packed.getvalue()
