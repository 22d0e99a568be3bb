"""Run one cell after another; the model, the images and their features are kept between cells."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from clip_randlora.clip.models import Model, load_model
from clip_randlora.data import Data, load_data, select_classes
from clip_randlora.errors import OutOfMemory, UserError
from clip_randlora.few_shot import fit
from clip_randlora.runs.run_folder import has_checkpoint
from clip_randlora.sweep.config import NOVEL, Cell
from clip_randlora.training.cache import Cache
from clip_randlora.utils.progress import OnProgress

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        seconds: time that it took.
        error: why it failed, in one line; "" if it did not.
        details: the traceback.
        keeps_state: whether the failed cell may go on from its checkpoint later or elsewhere.
    """

    seconds: float
    error: str = ""
    details: str = ""
    keeps_state: bool = False


class CellRunner:
    """Runs cells; what a cell shares with the one before is not computed again."""

    def __init__(self, device: str | None = None, track: Sequence[str] = ()):
        self._device, self._track = device, track
        self._model: _Last[Model] = _Last()
        self._data: _Last[tuple[Data, dict[str, Data]]] = _Last()
        self._further: dict[str, Data] = {}
        self._cache: _Last[Cache] = _Last()

    def run(self, cell: Cell, folder: Path, on_progress: OnProgress | None = None) -> Outcome:
        """Train a cell and write its run folder, from the checkpoint there if there is one.

        Raises:
            Interrupted: Ctrl-C; the state is in the folder.
        """
        start = time.perf_counter()
        try:
            self._train(cell, folder, on_progress)
        except Exception as error:
            is_memory = isinstance(error, OutOfMemory)
            is_users, text = isinstance(error, UserError), " ".join(str(error).split())
            if is_memory or not is_users:
                # the next cell gets a new model, and the memory of this one
                self._cache, self._model = _Last(), _Last()
            line = text if is_users else f"{type(error).__name__}: {text}"
            return Outcome(time.perf_counter() - start, line, traceback.format_exc(), is_memory)
        return Outcome(time.perf_counter() - start)

    def _train(self, cell: Cell, folder: Path, on_progress: OnProgress | None) -> None:
        data, further = self._data.get(
            (cell.data, cell.splits, cell.classes), lambda: _load(cell, on_progress)
        )
        for other in cell.also_test.values():
            if other not in self._further:
                self._further[other] = load_data(other, on_progress=on_progress)
        also_test = {label: self._further[other] for label, other in cell.also_test.items()}
        name, pretrained = cell.model.name, cell.model.pretrained
        model = self._model.get(
            (name, pretrained), lambda: load_model(name, pretrained, self._device)
        )
        cache = self._cache.get((id(model), id(data)), lambda: Cache(model, data))

        source = {"data": cell.data, "test": None}
        if cell.classes != "all":
            source["classes"] = cell.classes

        def train(resume: bool) -> None:
            run = fit(
                model,
                data,
                cell.train_config(),
                folder,
                resume=resume,
                source=source,
                on_progress=on_progress,
                cache=cache,
                also_test=further | also_test,
                track=self._track,
            )
            run.adapter.detach()

        if has_checkpoint(folder):
            try:
                return train(resume=True)
            except OutOfMemory:
                raise
            except UserError:  # a checkpoint of other settings or images: start again
                pass
        shutil.rmtree(folder, ignore_errors=True)
        train(resume=False)


def _load(cell: Cell, on_progress: OnProgress | None) -> tuple[Data, dict[str, Data]]:
    """Return the data that a cell is trained on, and its novel classes if it has the base ones."""
    splits = cell.splits
    data = load_data(
        cell.data,
        held_out=splits.held_out,
        validation=splits.validation,
        on_progress=on_progress,
    )
    if cell.classes == "all":
        return data, {}
    return select_classes(data, "base"), {NOVEL: select_classes(data, "novel")}


class _Last(Generic[T]):
    """The last thing that was loaded, or the error that loading it raised."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None
        self._error: Exception | None = None

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        if self._key != key:
            self._key = self._value = self._error = None  # free the memory of the last one first
            try:
                self._value = load()
            except Exception as error:
                self._error = error
            self._key = key
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
