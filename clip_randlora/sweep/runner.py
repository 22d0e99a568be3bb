"""One cell after another, with the model, the images and their features kept between cells."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from clip_randlora.clip.models import Model, load_model
from clip_randlora.data import Data, load_data
from clip_randlora.errors import OutOfMemory, UserError
from clip_randlora.few_shot import fit
from clip_randlora.runs import run_folder
from clip_randlora.sweep.config import Cell
from clip_randlora.training.cache import Cache
from clip_randlora.training.logger import Step
from clip_randlora.utils.progress import OnProgress

T = TypeVar("T")


class Runner:
    """Runs cells; what a cell has in common with the one before is not computed again."""

    def __init__(self, device: str | None = None):
        self._device = device
        self._model: _Last[Model] = _Last()
        self._data: _Last[Data] = _Last()
        self._cache: _Last[Cache] = _Last()

    def run(
        self,
        cell: Cell,
        folder: Path,
        on_step: Callable[[Step], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Train a cell and write its run folder, going on from a state that is there.

        Raises:
            UserError: the data, the model or the settings are at fault.
            Interrupted: Ctrl-C; the state is in the folder.
        """
        data = self._data.get(cell.data, lambda: load_data(cell.data, on_progress=on_progress))
        name, pretrained = cell.model.name, cell.model.pretrained
        model = self._model.get(
            (name, pretrained), lambda: load_model(name, pretrained, self._device)
        )
        cache = self._cache.get((id(model), id(data)), lambda: Cache(model, data))

        def train(resume: bool) -> None:
            run = fit(
                model,
                data,
                cell.train_config(),
                folder,
                resume=resume,
                source={"data": cell.data, "test": None},
                on_step=on_step,
                on_progress=on_progress,
                cache=cache,
            )
            run.adapter.detach()

        try:
            if run_folder.has_checkpoint(folder):
                try:
                    train(resume=True)
                    return
                except OutOfMemory:
                    raise
                except UserError:  # a state of other settings or images, say: start anew
                    pass
            shutil.rmtree(folder, ignore_errors=True)
            train(resume=False)
        except Exception as error:
            # whatever it was, the next cell gets a model that it did not touch, and its memory
            if not isinstance(error, UserError) or isinstance(error, OutOfMemory):
                self._cache, self._model = _Last(), _Last()
            raise


def describe(error: BaseException) -> str:
    """Return an error as one line; other than ours it says of what kind it is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


class _Last(Generic[T]):
    """The last thing that was loaded, or the error that loading it gave."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None
        self._error: Exception | None = None

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        if self._key != key:
            self._key = self._value = self._error = None  # first free what the last one holds
            try:
                self._value = load()
            except Exception as error:
                self._error = error
            self._key = key
        if self._error is not None:
            raise self._error
        return self._value
