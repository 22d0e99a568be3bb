"""The folder of a sweep: finished cells, failures, and who may write to it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_randlora.errors import UserError
from clip_randlora.runs.run_config import first_difference
from clip_randlora.runs.run_folder import has_checkpoint, read_metrics
from clip_randlora.sweep.config import Cell
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import (
    is_empty_but_lock,
    lock_folder,
    remove_if_left_empty,
    write_json,
)

_CELLS, _RUNNING, _FAILED, _RECORD = "cells", "running", "failed", "sweep.json"
_SECONDS = "cell.json"


class SweepFolder:
    """A sweep's folder.

    ``cells/ID`` is the run folder of a finished cell, ``running/ID`` is the folder of a cell in
    progress, and ``failed/ID.json`` has the error of a failed one. ``sweep.json`` has the settings
    of every cell that was ever asked for, and the method that the report compares with.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process.

        Raises:
            UserError: another process has the lock, or the folder holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path}: there is a file of that name; choose another")
        with remove_if_left_empty(self.path), lock_folder(self.path):
            if not (self.path / _RECORD).exists() and not is_empty_but_lock(self.path, _RECORD):
                raise UserError(
                    f"--out {self.path}: not empty and not a sweep; choose another folder"
                )
            yield

    def begin(self, cells: Sequence[Cell], reference: str | None = None) -> list[Cell]:
        """Record the cells, and return those that are not finished yet.

        Failed cells count as not finished. Unfinished run folders without a checkpoint are removed.
        ``reference`` is the label of the method that the report compares with; None keeps the one
        that was recorded before.

        Raises:
            UserError: a finished cell of the same name had other settings.
        """
        record = {cell.id: cell for cell in self.asked()}
        todo = []
        for cell in cells:
            before = record.get(cell.id)
            if not self.is_finished(cell):
                todo.append(cell)
            elif before is not None and before != cell:
                dumps = (either.model_dump(mode="json") for either in (before, cell))
                name, old, new = first_difference(*dumps) or ("", before, cell)
                raise UserError(
                    f"--out {self.path}: {cell.id} was run with other settings ({name}: {old}, now "
                    f"{new}); {_advice(before, cell)}choose another folder, or label the method "
                    f"otherwise"
                )
            record[cell.id] = cell
        rows = [cell.model_dump(mode="json") for cell in record.values()]
        named = self.reference() if reference is None else reference
        content = {"format": formats.RUN, "reference": named, "cells": rows}
        write_json(self.path / _RECORD, content)
        for left in (self.path / _RUNNING).glob("*"):
            owner = record.get(left.name)
            if owner is None or self.is_finished(owner) or not has_checkpoint(left):
                shutil.rmtree(left)
        return todo

    def asked(self) -> list[Cell]:
        """Return every cell that was ever asked for, in that order.

        Raises:
            UserError: the record is damaged.
        """
        path, record = self.path / _RECORD, self._read()
        if not record:
            return []
        try:
            version = formats.check_version(f"{path}: format", record.get("format", 1), formats.RUN)
            for row in record["cells"]:
                method = row["method"]
                method["settings"] = formats.upgrade_run_method(method["settings"], version)
            return [Cell(**row) for row in record["cells"]]
        except UserError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged, not the record of a sweep") from error

    def reference(self) -> str | None:
        """Return the label of the method that the report compares with; None if none was named.

        Raises:
            UserError: the record is damaged.
        """
        label = self._read().get("reference")
        return None if label is None else str(label)

    def cell(self, cell: Cell) -> Path:
        """Return the run folder of a finished cell."""
        return self.path / _CELLS / cell.id

    def running(self, cell: Cell) -> Path:
        """Return the folder that a cell is written to until it is finished."""
        return self.path / _RUNNING / cell.id

    def is_finished(self, cell: Cell) -> bool:
        """Return whether the cell is finished."""
        return self.cell(cell).is_dir()

    def finish(self, cell: Cell, seconds: float) -> None:
        """Move a finished cell to its place, and record the seconds that it took."""
        write_json(self.running(cell) / _SECONDS, {"seconds": round(seconds, 3)})
        self.cell(cell).parent.mkdir(exist_ok=True)
        self.running(cell).rename(self.cell(cell))
        self._failure(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, error: str, details: str = "", *, keeps_state: bool = False) -> None:
        """Record why a cell failed, and remove its folder.

        With ``keeps_state`` a folder with a checkpoint stays.
        """
        self._failure(cell).parent.mkdir(exist_ok=True)
        write_json(
            self._failure(cell),
            {"error": error, "details": details, "time": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        if not (keeps_state and has_checkpoint(self.running(cell))):
            shutil.rmtree(self.running(cell), ignore_errors=True)

    def failure(self, cell: Cell) -> str | None:
        """Return the error of the cell's last try in one line; None if it did not fail."""
        path = self._failure(cell)
        if self.is_finished(cell) or not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["error"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged, not the error of a cell; remove it") from error

    def seconds(self, cell: Cell) -> float:
        """Return the seconds that a finished cell took."""
        path = self.cell(cell) / _SECONDS
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged; remove its folder to run the cell again") from error

    def metrics(self, cell: Cell) -> dict[str, Any]:
        """Return the ``metrics.json`` of a finished cell."""
        return read_metrics(self.cell(cell))

    def _read(self) -> dict[str, Any]:
        """Return the record; empty before the first start."""
        path = self.path / _RECORD
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged, not the record of a sweep") from error

    def _failure(self, cell: Cell) -> Path:
        return self.path / _FAILED / f"{cell.id}.json"


def _advice(before: Cell, now: Cell) -> str:
    """Say how to go on with a sweep of the version in which seeds did not reach the method."""
    seed = getattr(before.method.settings, "seed", None)
    if seed is None or now.method.settings.with_seed(seed) != before.method.settings:
        return ""
    return (
        f"to go on with one seed of the methods in all cells, give each method `seed: {seed}`; or "
    )
