"""The folder of a sweep: cells written whole or not at all, failures, and who may write."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_randlora.errors import UserError
from clip_randlora.runs import run_folder
from clip_randlora.sweep.config import Cell
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import (
    atomic_write,
    is_empty_but_lock,
    lock_folder,
    remove_if_left_empty,
)

_CELLS, _RUNNING, _FAILED, _RECORD = "cells", "running", "failed", "sweep.json"
_SECONDS = "cell.json"


class SweepFolder:
    """A sweep's folder.

    ``cells/ID`` is the run folder of a finished cell, ``running/ID`` that of one in progress,
    ``failed/ID.json`` the error of one that failed; ``sweep.json`` names every cell that the
    folder was ever asked for, and its settings.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it when the process ends.

        Raises:
            UserError: another process has it, or the folder is something else's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path}: there is a file of that name; choose another")
        with remove_if_left_empty(self.path), lock_folder(self.path):
            if not (self.path / _RECORD).exists() and not is_empty_but_lock(self.path, _RECORD):
                raise UserError(
                    f"--out {self.path}: not empty and not a sweep; choose another folder"
                )
            yield

    def begin(self, cells: Sequence[Cell]) -> list[Cell]:
        """Record the cells, and return those that are not finished yet.

        Of cells that a killed process left behind, those that have no state to go on from are
        removed; failed cells count as not finished.

        Raises:
            UserError: a finished cell has other settings than the one of its name now.
        """
        record = {cell.id: cell for cell in self.asked()}
        todo = []
        for cell in cells:
            before = record.get(cell.id)
            if not self.is_finished(cell):
                todo.append(cell)
            elif before is not None and before != cell:
                raise UserError(
                    f"--out {self.path}: {cell.id} was run with other settings "
                    f"({_difference(before, cell)}); {_advice(before, cell)}choose another folder, "
                    f"or label the method otherwise"
                )
            record[cell.id] = cell
        rows = [cell.model_dump(mode="json") for cell in record.values()]
        _write_json(self.path / _RECORD, {"format": formats.RUN, "cells": rows})
        for left in (self.path / _RUNNING).glob("*"):
            cell = record.get(left.name)
            if cell is None or self.is_finished(cell) or not run_folder.has_checkpoint(left):
                shutil.rmtree(left)
        return todo

    def asked(self) -> list[Cell]:
        """Return every cell that the folder was ever asked for, in that order.

        Raises:
            UserError: the record is damaged.
        """
        path = self.path / _RECORD
        if not path.exists():
            return []
        try:
            return [Cell(**row) for row in self._read_record()]
        except UserError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ValidationError) as error:
            raise UserError(f"{path}: damaged, not the record of a sweep") from error

    def _read_record(self) -> list[Mapping[str, Any]]:
        """Return the rows of the record, the methods' settings as those of today."""
        path = self.path / _RECORD
        record = json.loads(path.read_text(encoding="utf-8"))
        version = formats.check_version(f"{path}: format", record.get("format", 1), formats.RUN)
        rows = record["cells"]
        for row in rows:
            method = row["method"]
            method["settings"] = formats.upgrade_run_method(method["settings"], version)
        return rows

    def cell(self, cell: Cell) -> Path:
        """The run folder of a finished cell."""
        return self.path / _CELLS / cell.id

    def running(self, cell: Cell) -> Path:
        """Where a cell is written until it is whole."""
        return self.path / _RUNNING / cell.id

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell's run folder is there."""
        return self.cell(cell).is_dir()

    def finish(self, cell: Cell, seconds: float) -> None:
        """Move a whole cell to its place; ``seconds`` is what it took."""
        _write_json(self.running(cell) / _SECONDS, {"seconds": round(seconds, 3)})
        self.cell(cell).parent.mkdir(exist_ok=True)
        self.running(cell).rename(self.cell(cell))
        self._failure(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, error: str, details: str = "", *, keeps_state: bool = False) -> None:
        """Record why a cell failed; remove what it had written, but for a state to go on from."""
        _write_json(
            self._failure(cell),
            {"error": error, "details": details, "time": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        if not (keeps_state and run_folder.has_checkpoint(self.running(cell))):
            shutil.rmtree(self.running(cell), ignore_errors=True)

    def failure(self, cell: Cell) -> str | None:
        """Why the cell failed when it was last tried, in one line; None if it did not."""
        path = self._failure(cell)
        if self.is_finished(cell) or not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["error"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged, not a failure; remove it") from error

    def seconds(self, cell: Cell) -> float:
        """Return what a finished cell took, all in all."""
        path = self.cell(cell) / _SECONDS
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged; remove its folder to run the cell again") from error

    def metrics(self, cell: Cell) -> dict[str, Any]:
        """Return the ``metrics.json`` of a finished cell."""
        return run_folder.read_metrics(self.cell(cell))

    def _failure(self, cell: Cell) -> Path:
        return self.path / _FAILED / f"{cell.id}.json"


def _difference(before: Cell, now: Cell) -> str:
    """Return the first setting that differs, and both of its values."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    path = []
    while isinstance(old, Mapping) and isinstance(new, Mapping):
        path.append(next(key for key in {**old, **new} if old.get(key) != new.get(key)))
        old, new = old.get(path[-1]), new.get(path[-1])
    return f"{'.'.join(path)}: {old}, now {new}"


def _advice(before: Cell, now: Cell) -> str:
    """Say how to go on with a sweep of a version in which seeds did not reach the method."""
    seed = getattr(before.method.settings, "seed", None)
    if seed is None or now.method.settings.with_seed(seed) != before.method.settings:
        return ""
    return (
        f"to go on with one seed of the methods in all cells, give each method `seed: {seed}`; or "
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
