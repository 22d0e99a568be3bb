"""A row of a benchmark, measured in a process of its own with a fixed number of threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Row:
    """One line of a table, and how to measure it.

    Attributes:
        key: identifies the row within its benchmark.
        label: its first cells, by column.
        function: ``module:name``, called with the settings in a new process.
        settings: keyword arguments, as JSON.
        group: rows of one group are compared with the first of them.
        hidden: packages that the process cannot import, as if they were not installed.
    """

    key: str
    label: dict[str, str]
    function: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    hidden: tuple[str, ...] = ()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a measured process: its threads, this checkout, no network."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_row(row: Row, threads: int) -> dict[str, Any]:
    """Measure a row in a new process; return ``{"result": {...}}`` or ``{"failed": reason}``."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.common.worker", row.function, *row.hidden],
        input=json.dumps(row.settings),
        capture_output=True,
        text=True,
        env=environment(threads),
    )
    if process.returncode:
        return {"failed": cause_of_death(process)}
    answer = json.loads(process.stdout)
    used = answer.get("result", {}).get("threads", threads)
    if used != threads:
        return {"failed": f"ran with {used} threads, not {threads}"}
    return answer


def cause_of_death(process: subprocess.CompletedProcess[str]) -> str:
    """Say in one line why a process ended with another status than 0."""
    if process.returncode == -signal.SIGKILL:
        return "killed, as the system does when memory runs out"
    lines = process.stderr.strip().splitlines()
    return f"exit status {process.returncode}: {lines[-1][:300] if lines else 'no message'}"
