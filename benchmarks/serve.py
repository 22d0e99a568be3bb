"""``serve``: many clients ask the app while one trains: errors, latency and memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.images import CLIPART
from benchmarks.common.options import OutOption
from benchmarks.common.processes import Row, environment
from clip_randlora.errors import UserError

_START_SECONDS = 120


def serve(
    clients: Annotated[int, typer.Option(min=1, help="Who predict, all the time.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 120,
    out: OutOption = None,
) -> None:
    """Latency, errors and memory of the app, while many clients predict and another trains.

    Each client first trains a small run of its own, one after the other, some seconds each.
    """
    if not CLIPART.is_dir():
        raise UserError(f"{CLIPART}: not there; run this in a checkout")
    benchmark = Benchmark("serve", {"clients": clients, "seconds": seconds}, out)
    row = Row("app", {"clients": str(clients), "seconds": f"{seconds:g}"})
    with tempfile.TemporaryDirectory() as folder, _app(Path(folder)) as (url, process):
        found = benchmark.measure(
            [row],
            run=lambda *_: {"result": _measure(url, process, Path(folder), clients, seconds)},
            progress=lambda result: f"{result['answers']} answers",
        )
    columns = {
        "answers": lambda row: str(row.values["answers"]),
        "errors": lambda row: str(row.values["errors"]),
        "latency, s: median (min - max)": lambda row: report.seconds(row.values["latency"]),
        "95 of 100 within, s": lambda row: f"{row.values['latency_95']['median']:.2f}",
        "before, GB": lambda row: report.gigabytes(row.values["resident_before_bytes"]),
        "peak GB": lambda row: report.gigabytes(row.values["resident_peak_bytes"]),
        "training steps": lambda row: str(row.values["steps"]),
    }
    notes = ["Memory is the app's. It trains for another visitor while the clients predict."]
    notes += found[0].values["first_errors"]
    benchmark.publish(report.table(found, columns), notes)


@contextmanager
def _app(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start the app on a free port, yield its address and process, end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clip_randlora", "app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--folder", str(folder / "app")],
        env=environment(os.cpu_count() or 1),
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError("the app did not start")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()


def _measure(
    url: str, process: subprocess.Popen, folder: Path, clients: int, seconds: float
) -> dict[str, Any]:
    import psutil
    from gradio_client import Client, handle_file

    archive = _archive(folder / "few.zip", ("bird", "vehicle"), 4)
    ready = []
    for number in range(clients):
        with messages.status(f"a run for client {number + 1} of {clients}"):
            client = Client(url, verbose=False)
            client.predict(handle_file(str(archive)), api_name="/load_archive")
            client.predict("lite0", "randlora", 1, 1, "fast", api_name="/train")
        ready.append(client)
    trainer = Client(url, verbose=False)
    trainer.predict("clipart", api_name="/load_sample")
    app = psutil.Process(process.pid)
    before, peak = app.memory_info().rss, 0
    latencies: list[float] = []
    errors: list[str] = []
    image = handle_file(str(sorted((CLIPART / "test" / "vehicle").iterdir())[0]))
    ends = time.monotonic() + seconds

    def ask(client: Client) -> None:
        while time.monotonic() < ends:
            started = time.perf_counter()
            try:
                client.predict(image, 1.0, api_name="/predict")
                latencies.append(time.perf_counter() - started)
            except Exception as error:  # whatever it is, it is what is counted
                errors.append(f"{type(error).__name__}: {error}"[:200])

    job = trainer.submit("lite0", "randlora", 16, 1, "thorough", api_name="/train")
    threads = [threading.Thread(target=ask, args=(client,)) for client in ready]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, app.memory_info().rss)
        time.sleep(0.2)
    steps = [row["step"] for row in job.outputs() if "step" in row]
    job.cancel()
    if len(latencies) < 2:
        raise UserError(f"fewer than two answers; errors: {errors[:1]}")
    return {
        "answers": len(latencies),
        "errors": len(errors),
        "first_errors": sorted(set(errors))[:3],
        "latency": latencies,
        "latency_95": quantiles(latencies, n=20)[-1],
        "resident_before_bytes": before,
        "resident_peak_bytes": peak,
        "steps": steps[-1] if steps else 0,
    }


def _archive(path: Path, classes: tuple[str, ...], images: int) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name in classes:
            for image in sorted((CLIPART / "train" / name).iterdir())[:images]:
                zipped.write(image, f"{name}/{image.name}")
    return path
