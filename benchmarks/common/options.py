"""Options that several benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.machine import usable_cores

OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for table, JSON and figure. Default: runs/benchmarks/NAME."),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Of every measured process. Default: the usable cores.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Keep what --out has already, measure the rest.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cuda, mps or cpu. Default: the best here.")]


def folder_of(name: str, out: Path | None) -> Path:
    """Return the folder that a benchmark writes to."""
    return out or Path("runs") / "benchmarks" / name


def threads_of(threads: int | None) -> int:
    """Return the number of threads that every measured process gets."""
    return threads or usable_cores()
