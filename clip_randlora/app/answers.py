"""Answers of anybody's run, from base models that all share, in a thread of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import clip_randlora as cr

_MODELS_IN_MEMORY = 2

Answer = dict[str, dict[str, float]]


@dataclass
class _LoadedModel:
    """A base model, and the run whose adapter is on it."""

    model: cr.Model
    run: Path | None = None
    classifier: cr.Classifier | None = None

    def close(self) -> None:
        """Take the adapter off."""
        if self.classifier is not None:
            self.classifier.close()
        self.run = self.classifier = None


class Answers:
    """Classifies images with the run of whoever asks.

    One thread does all the work, since everybody shares the networks. Training has a network and
    a thread of its own, and does not hold it up.
    """

    def __init__(self, device: str | None):
        self.device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._loaded: OrderedDict[tuple[str, str | None], _LoadedModel] = OrderedDict()

    def classify(
        self, run: Path, images: Sequence[Image.Image], strength: float = 1.0
    ) -> list[Answer]:
        """Return both answers for each image, the most probable class first.

        Raises:
            UserError: the run cannot be read, or the strength does not lie between 0 and 1.
        """
        return self._thread.submit(self._classify, run, images, strength).result()

    def prepare(self, model: cr.Model) -> None:
        """Begin to load a model that answers will be asked of, so that the first need not wait."""
        self._thread.submit(self._load, model.name, model.pretrained)

    def forget(self, folder: Path) -> None:
        """Close the runs below a folder that is about to be deleted."""
        self._thread.submit(self._forget, folder).result()

    def _classify(self, run: Path, images: Sequence[Image.Image], strength: float) -> list[Answer]:
        task = cr.read_task(run)
        loaded = self._load(task.model, task.pretrained)
        if loaded.classifier is None or loaded.run != run:
            loaded.close()
            loaded.classifier = cr.Classifier.load(run, model=loaded.model)
            loaded.run = run
        loaded.classifier.adapter.strength = strength
        return loaded.classifier.predict(images)

    def _load(self, name: str, pretrained: str | None) -> _LoadedModel:
        base = (name, pretrained)
        if base not in self._loaded:
            while len(self._loaded) >= _MODELS_IN_MEMORY:
                self._loaded.popitem(last=False)
            self._loaded[base] = _LoadedModel(cr.load_model(name, pretrained, self.device))
        self._loaded.move_to_end(base)
        return self._loaded[base]

    def _forget(self, folder: Path) -> None:
        for loaded in self._loaded.values():
            if loaded.run is not None and folder in loaded.run.parents:
                loaded.close()
