"""A Ray cluster for the length of a block: joined or started, and silent.

Ray's own lines would mix with progress bars, and with the answers on standard output.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clip_randlora.errors import UserError, needs_extra

ENGINES = ("local", "ray")

_CONNECT_SECONDS = 10


def is_cluster(engine: str, address: str | None) -> bool:
    """Return whether ``--engine`` asks for a Ray cluster.

    Raises:
        UserError: there is no such engine, the address is not for it, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: choose {' or '.join(ENGINES)}")
    if engine == "ray":
        import_ray()
    elif address:
        raise UserError("--address: only with --engine ray")
    return engine == "ray"


def import_ray() -> Any:
    """Return the module ``ray``; raises ``UserError`` if it is not installed."""
    with needs_extra("--engine ray", "cluster"):
        import ray
        import ray.util
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at an address, or start one on this machine, and leave it at the end.

    A cluster that this process has joined already is used as it is, and not left.

    Args:
        address: of a running cluster. By default `RAY_ADDRESS` of the environment, as Ray's own
            commands set it, or a cluster that is started on this machine.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = import_ray()
    if ray.is_initialized() and address is None:
        yield
        return
    _connect(ray, address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start one on this machine.

    Without an address Ray would join the cluster that was last started here, even if it ended.
    """
    inherited = os.environ.get("RAY_ADDRESS")
    where = address or inherited or "local"
    named = f"--address {address}" if address else f"RAY_ADDRESS={inherited}"
    if where != "local":
        _check_answers(ray, named, where)
    # what nodes report, such as a lost worker, is printed whatever `log_to_driver` says
    ray._private.worker._worker_logs_enabled = False
    # from 2.60 on Ray Data's actors cause a line, and this variable another one in its place
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _without_standard_error():
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


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Discard what is written to standard error, by code in C++ too."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_answers(ray: Any, named: str, where: str) -> None:
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
