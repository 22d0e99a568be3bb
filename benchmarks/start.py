"""``start``: how long a new process takes until it has done something."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption, folder_of, threads_of
from benchmarks.common.processes import ROOT, Row, environment, measure_rounds, messages
from benchmarks.common.results import Results, spread
from clip_randlora.errors import UserError

_COMMAND = (sys.executable, "-m", "clip_randlora")
_IMAGES = ROOT / "clip_randlora" / "bundled" / "clipart" / "test"


def start(
    repeats: Annotated[int, typer.Option(min=1, help="New processes of each.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Of the run that predict loads.")] = 5,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Cold start of the command's help, of a prediction, and of the imports."""
    threads = threads_of(threads)
    settings = {"steps": steps, "threads": threads, "repeats": repeats}
    results = Results("start", folder_of("start", out), settings, resume)
    with tempfile.TemporaryDirectory() as folder:
        commands = start_commands(Path(folder) / "run")
        _train(Path(folder) / "run", steps, threads)
        rows = [Row(name, "", {"command": command[1:]}) for name, command in commands.items()]
        for row in rows:
            _time(commands[row.key], threads)  # files into the system's cache, bytecode written
        measure_rounds(
            rows, repeats, results, lambda row: _time(commands[row.key], threads), _progress
        )
    found = {name: _spread(results, name) for name in commands}
    report.publish(
        results,
        threads,
        [_table(found)],
        [
            "Wall time of a whole new process, from its start to its exit; files are in the "
            "system's cache. Medians, with smallest and largest.",
            "predict loads lite0 and a run that was trained for a few steps, on a CPU or the GPU, "
            "and classifies one image zero-shot and tuned. The last two rows are what Python and "
            "the libraries take by themselves.",
        ],
        _figure(found),
        {"rows": found},
    )


def start_commands(run: Path) -> dict[str, tuple[str, ...]]:
    """Return what is started, by the name that the table gives it."""
    image = str(sorted(_IMAGES.rglob("*.*"))[0])

    def python(code: str) -> tuple[str, ...]:
        return (sys.executable, "-c", code)

    return {
        "clip-randlora --help": (*_COMMAND, "--help"),
        "clip-randlora predict RUN IMAGE": (*_COMMAND, "predict", str(run), image),
        "import clip_randlora": python("import clip_randlora"),
        "import clip_randlora.app": python("import clip_randlora.app"),
        "import torch, open_clip": python("import torch, open_clip"),
        "python itself": python("pass"),
    }


def _train(run: Path, steps: int, threads: int) -> None:
    with messages.status("training a run for predict"):
        command = (*_COMMAND, "train", "clipart", "--steps", str(steps), "--shots", "2")
        answer = _time((*command, "--out", str(run)), threads)
    if "failed" in answer:
        raise UserError(f"could not train the run for predict: {answer['failed']}")


def _time(command: tuple[str, ...], threads: int) -> dict[str, Any]:
    began = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    seconds = time.perf_counter() - began
    if process.returncode:
        said = process.stderr.strip().splitlines() or ["no message"]
        return {"failed": f"exit status {process.returncode}: {said[-1][:300]}"}
    return {"result": {"seconds": seconds}}


def _spread(results: Results, name: str) -> dict[str, Any]:
    rounds = results.of(name)
    if not rounds:
        return {"failed": results.failure(name)}
    return {"seconds": spread(one["seconds"] for one in rounds)}


def _progress(result: Mapping[str, Any]) -> str:
    return f"{result['seconds']:.2f} s"


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [name, f"failed: {row['failed']}" if "failed" in row else report.seconds(row["seconds"])]
        for name, row in found.items()
    ]
    return report.markdown_table(("a new process", "seconds: median (min - max)"), lines)


def _figure(found: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    measured = {name: row for name, row in found.items() if "seconds" in row}
    if not measured:
        return None
    figure = Figure(figsize=(8, 0.9 + 0.38 * len(measured)), layout="constrained")
    report.bars(
        figure.subplots(),
        list(measured),
        [row["seconds"] for row in measured.values()],
        [
            report.OURS if "clip" in name and "open" not in name else report.PEER
            for name in measured
        ],
        "seconds",
    )
    return figure
