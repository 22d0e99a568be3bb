"""Options that several benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from clip_randlora.errors import UserError

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


def require_known(option: str, given: Iterable[str] | None, known: Iterable[str]) -> None:
    """Raise a UserError if a value of an option is not one of those known."""
    for name in given or ():
        if name not in known:
            raise UserError(f"{option} {name}: one of {', '.join(known)}")
