"""Rows in processes of their own, each with the same number of threads, in interleaved rounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.results import Results

ROOT = Path(__file__).parents[2]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

messages = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of a table: a function ``module:name`` and the settings that it is called with.

    ``key`` identifies it among the benchmark's rows, in the JSON too. Packages in ``hidden`` are
    as if not installed.
    """

    key: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a measured process: the threads, no network, this checkout."""
    paths = [str(ROOT), str(ROOT / "apps"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_row(row: Row, threads: int) -> dict[str, Any]:
    """Measure a row in a new process: ``{"result": {...}}`` or ``{"failed": reason}``."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.common.worker", row.function, *row.hidden],
        input=json.dumps(row.settings),
        capture_output=True,
        text=True,
        env=environment(threads),
    )
    if process.returncode:
        return {"failed": _cause_of_death(process)}
    answer = json.loads(process.stdout)
    seen = answer.get("result", {}).get("threads", threads)
    if seen != threads:
        return {"failed": f"ran with {seen} threads, not {threads}"}
    return answer


def measure_rounds(
    rows: Sequence[Row],
    repeats: int,
    results: Results,
    run: Callable[[Row], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> None:
    """Run each row once, then each again: what slows the machine for a while hits all alike.

    Every answer is saved when it comes; those that ``results`` has already are not measured
    again, nor is a row that failed.

    Args:
        rows: with different keys.
        repeats: rounds.
        results: where answers go.
        run: measures one row, as `run_row`.
        describe: turns a result into the words of the progress line.
    """
    for turn in range(1, repeats + 1):
        for row in rows:
            if results.has(row.key, turn) or results.failure(row.key):
                continue
            with messages.status(f"round {turn} of {repeats}: {row.key}"):
                answer = run(row)
            results.add(row.key, turn, row.settings, answer)
            said = answer.get("failed")
            said = f"failed: {said}" if said else describe(answer["result"])
            messages.print(f"round {turn} of {repeats}: {row.key}: {said}", markup=False)


def _cause_of_death(process: subprocess.CompletedProcess) -> str:
    if process.returncode == -signal.SIGKILL:
        return "killed, as the system does when memory runs out"
    lines = process.stderr.strip().splitlines()
    return f"exit status {process.returncode}: {lines[-1][:300] if lines else 'no message'}"
