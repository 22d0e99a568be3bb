"""Answers of anybody's runs, from base models that all share, in a thread of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import clip_randlora as cr
from clip_randlora.clip.models import DEFAULT_TAG
from clip_randlora.clip.text import TextClassifier
from clip_randlora.evaluation import encode_images

_MODELS_IN_MEMORY = 2
_CLASSES_IN_MEMORY = 8  # sets of classes, of a model
_RUNS_IN_MEMORY = 4  # of a model; each has the weights that its training changed

Answer = dict[str, Any]
"""As `clip_randlora.Classifier.predict` answers; with ``unknown`` if the run has a threshold."""

ClassPrompts = tuple[tuple[str, tuple[str, ...]], ...]
"""The classes with the prompts of each."""


class _BaseModel:
    """A base model, and the classifiers of the runs on it that were asked last."""

    def __init__(self, model: cr.Model):
        self.model = model
        self.classifiers: OrderedDict[Path, cr.Classifier] = OrderedDict()
        self._classes: OrderedDict[ClassPrompts, Tensor] = OrderedDict()

    def classes(self, prompts: ClassPrompts) -> Tensor:
        """Return the features of classes (C, E)."""
        if prompts not in self._classes:
            while len(self._classes) >= _CLASSES_IN_MEMORY:
                self._classes.popitem(last=False)
            names, texts = zip(*prompts, strict=True)
            self._classes[prompts] = TextClassifier(self.model, names, texts).features().float()
        self._classes.move_to_end(prompts)
        return self._classes[prompts]

    def classifier(self, run: Path) -> cr.Classifier:
        """Return a run's classifier, which shares the weights that its training left alone."""
        if run not in self.classifiers:
            while len(self.classifiers) >= _RUNS_IN_MEMORY:
                self.classifiers.popitem(last=False)
            shared = self.model.share_weights()
            self.classifiers[run] = cr.Classifier.load(run, model=shared)
        self.classifiers.move_to_end(run)
        return self.classifiers[run]


class Answers:
    """Classifies images with the runs of whoever asks.

    One thread does all the work, since everybody shares the networks. Training has a network and
    a thread of its own, and does not hold it up.
    """

    def __init__(self, device: str | None):
        self.device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._loaded: OrderedDict[tuple[str, str | None], _BaseModel] = OrderedDict()

    def classify(
        self, run: Path, images: Sequence[Image.Image], strength: float = 1.0
    ) -> list[Answer]:
        """Return both answers for each image, the most probable class first.

        If the run has a threshold for images of no class, ``unknown`` is beside them.

        Raises:
            UserError: the run cannot be read, or the strength does not lie between 0 and 1.
        """
        return self._thread.submit(self._classify, run, images, strength).result()

    def encode(self, model: str, images: Sequence[Image.Image]) -> Tensor:
        """Encode images with a base model to unit features (N, E)."""
        return self._thread.submit(self._encode, model, images).result()

    def zero_shot(
        self, model: str, prompts: ClassPrompts, features: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the zero-shot probabilities of classes (C,) for unit features (E,) of images."""
        return self._thread.submit(self._zero_shot, model, prompts, features).result()

    def prepare(self, model: cr.Model) -> None:
        """Begin to load a model that answers will be asked of, so that the first need not wait."""
        self._thread.submit(self._load, model.name, model.pretrained)

    def prepare_base(self, name: str, then: Callable[[cr.Model], None]) -> None:
        """Begin to load a model by its name, and then do something with it."""
        self._thread.submit(lambda: then(self._load(name, DEFAULT_TAG).model))

    def prepare_run(self, run: Path) -> None:
        """Begin to load a run that answers will be asked of."""
        self._thread.submit(self._prepare_run, run)

    def forget(self, folder: Path) -> None:
        """Close a run, or those below a folder, whose files change or are about to be deleted."""
        self._thread.submit(self._forget, folder).result()

    def _classify(self, run: Path, images: Sequence[Image.Image], strength: float) -> list[Answer]:
        task = cr.read_task(run)
        classifier = self._load(task.model, task.pretrained).classifier(run)
        classifier.adapter.strength = strength
        has_threshold = classifier.confidence.unknown is not None and classifier.known is not None
        return classifier.predict(images, reject=has_threshold)

    @torch.inference_mode()
    def _encode(self, name: str, images: Sequence[Image.Image]) -> Tensor:
        if not images:
            return torch.empty(0, 0)
        model = self._load(name, DEFAULT_TAG).model
        square = model.square()
        pixels = torch.stack([square(image) for image in images])
        return encode_images(model, pixels.to(model.device)).float().cpu()

    @torch.inference_mode()
    def _zero_shot(
        self, name: str, prompts: ClassPrompts, features: Sequence[Tensor]
    ) -> list[Tensor]:
        if not features:
            return []
        base = self._load(name, DEFAULT_TAG)
        classes = base.classes(prompts)
        similarities = torch.stack(list(features)).to(classes.device) @ classes.T
        return list((base.model.logit_scale().float() * similarities).softmax(dim=-1).cpu())

    def _prepare_run(self, run: Path) -> None:
        self._classify(run, [], 1.0)

    def _load(self, name: str, pretrained: str | None) -> _BaseModel:
        base = (name, pretrained)
        if base not in self._loaded:
            while len(self._loaded) >= _MODELS_IN_MEMORY:
                self._loaded.popitem(last=False)
            self._loaded[base] = _BaseModel(cr.load_model(name, pretrained, self.device))
        self._loaded.move_to_end(base)
        return self._loaded[base]

    def _forget(self, folder: Path) -> None:
        for base in self._loaded.values():
            for run in [run for run in base.classifiers if folder in (run, *run.parents)]:
                del base.classifiers[run]
