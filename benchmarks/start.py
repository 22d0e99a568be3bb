"""``start``: how long a new process takes until it has done something."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.images import CLIPART
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, cause_of_death, environment
from clip_randlora.errors import UserError

_COMMAND = (sys.executable, "-m", "clip_randlora")


def start(
    repeats: Annotated[int, typer.Option(min=1, help="New processes of each.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Of the run that predict loads.")] = 5,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Cold start of the command's help, of a prediction, and of the imports."""
    benchmark = Benchmark("start", {"steps": steps}, out, threads, resume)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with messages.status("training a run for predict"):
            train = (*_COMMAND, "train", "clipart", "--steps", str(steps), "--shots", "2")
            answer = _time((*train, "--out", str(run)), benchmark.threads)
        if "failed" in answer:
            raise UserError(f"could not train the run for predict: {answer['failed']}")
        commands = start_commands(run)
        for command in commands.values():
            _time(command, benchmark.threads)  # files get into the system's cache
        found = benchmark.measure(
            [Row(name, {"a new process": name}) for name in commands],
            repeats,
            lambda row, _: _time(commands[row.key], benchmark.threads),
        )
    columns = {
        "seconds: median (min - max)": lambda row: report.seconds(row.values["seconds"]),
        "ratio": lambda row: report.ratio(row, "seconds"),
    }
    notes = [
        "Wall time of a whole new process, from its start to its exit, with files in the system's "
        "cache. Medians with smallest and largest; ratios are to the import of the libraries.",
        "predict loads lite0 and a run, and classifies one image zero-shot and tuned.",
    ]
    figure = report.figure(found, {"seconds": "seconds"})
    benchmark.publish(report.table(found, columns), notes, figure)


def start_commands(run: Path) -> dict[str, tuple[str, ...]]:
    """Return what is started, by the name that the table gives it."""
    image = str(sorted((CLIPART / "test").rglob("*.*"))[0])
    imports = ("import torch, open_clip", "import clip_randlora", "import clip_randlora.app")
    return {
        **{code: (sys.executable, "-c", code) for code in imports},
        "python itself": (sys.executable, "-c", "pass"),
        "clip-randlora --help": (*_COMMAND, "--help"),
        "clip-randlora predict RUN IMAGE": (*_COMMAND, "predict", str(run), image),
    }


def _time(command: Sequence[str], threads: int) -> dict[str, Any]:
    began = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    seconds = time.perf_counter() - began
    if process.returncode:
        return {"failed": cause_of_death(process)}
    return {"result": {"seconds": seconds}}
