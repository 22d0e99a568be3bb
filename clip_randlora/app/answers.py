"""Answers of anybody's run, from base models that all share, in a thread of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

import clip_randlora as cr

T = TypeVar("T")

_MODELS_IN_MEMORY = 2
_IMAGES_AT_ONCE = 16  # few, so that one person's thousand do not hold up another's one

Answer = dict[str, dict[str, float]]


class Answers:
    """Classifies images with the run of whoever asks.

    All the work is done in one thread: the networks are shared, and training, which has a network
    and a thread of its own, does not hold it up.
    """

    def __init__(self, device: str | None):
        self.device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._models: OrderedDict[tuple[str, str | None], cr.Model] = OrderedDict()
        self._open: dict[tuple[str, str | None], _OpenRun] = {}

    def classify(
        self, run: Path, images: Sequence[Path | Image.Image], strength: float = 1.0
    ) -> list[Answer]:
        """Return both answers for each image, the likeliest class first.

        Raises:
            UserError: an image or the run cannot be read.
        """
        answers = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            some = images[start : start + _IMAGES_AT_ONCE]
            pictures = [cr.decode_image(image, getattr(image, "name", None)) for image in some]
            answers += self._in_thread(lambda: self._run(run).answer(pictures, strength))  # noqa: B023
        return answers

    def prepare(self, model: cr.Model) -> None:
        """Begin to load a model that answers will be asked of, so that the first need not wait."""
        self._thread.submit(self._model, (model.name, model.pretrained))

    def forget(self, folder: Path) -> None:
        """Close the runs below a folder that is about to be deleted."""
        self._in_thread(lambda: self._close(lambda run: folder in run.parents))

    def _in_thread(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def _run(self, path: Path) -> _OpenRun:
        """Return a run, opened on its base model in place of the one that was open there."""
        task = cr.read_task(path)
        base = (task.model, task.pretrained)
        current = self._open.get(base)
        if current is None or current.path != path:
            if current is not None:
                self._open.pop(base).classifier.close()
            self._open[base] = _OpenRun(path, cr.Classifier.load(path, model=self._model(base)))
        return self._open[base]

    def _model(self, base: tuple[str, str | None]) -> cr.Model:
        if base not in self._models:
            while len(self._models) >= _MODELS_IN_MEMORY:
                oldest, _ = self._models.popitem(last=False)
                self._open.pop(oldest, None)
            name, pretrained = base
            self._models[base] = cr.load_model(name, pretrained, self.device)
        self._models.move_to_end(base)
        return self._models[base]

    def _close(self, chosen: Callable[[Path], bool]) -> None:
        for base, run in list(self._open.items()):
            if chosen(run.path):
                self._open.pop(base).classifier.close()


class _OpenRun:
    """A run whose adapter is on its base model."""

    def __init__(self, path: Path, classifier: cr.Classifier):
        self.path, self.classifier = path, classifier
        self.both = classifier.side_by_side()

    def answer(self, images: Sequence, strength: float) -> list[Answer]:
        if self.both.strength != strength:
            self.both.strength = strength
        square = self.classifier.model.square()
        pixels = torch.stack([square(image) for image in images])
        return [
            {
                which: cr.as_mapping(self.classifier.classes, row)
                for which, row in zip(("zero_shot", "tuned"), rows, strict=True)
            }
            for rows in zip(*self.both.probabilities(pixels), strict=True)
        ]
