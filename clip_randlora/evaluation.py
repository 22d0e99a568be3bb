"""Zero-shot against tuned: probabilities in one pass over the images, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn.utils import parametrize

from clip_randlora.adapters import Adapter
from clip_randlora.data import Skipped, Split, decode_batches
from clip_randlora.models import Model
from clip_randlora.text import TextClassifier

_CHUNK = 256  # images that are decoded together; the updated weights are formed once for each
_FORWARD_BATCH = 64
_CALIBRATION_BINS = 15


class SideBySide:
    """One model in memory that answers both as it was and as it is tuned.

    The class features of both are computed once, for the adapter's strength at that time.
    """

    def __init__(self, model: Model, adapter: Adapter, text: TextClassifier):
        self.model, self.adapter = model, adapter
        self.strength = adapter.strength
        self._tuned_vision = "vision" in adapter.config.towers
        self._zero_shot_classes = self._at(0.0, text.features)
        self._tuned_classes = self._at(self.strength, text.features)

    def probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify uint8 images (N, 3, S, S): float32 (N, C) zero-shot and (N, C) tuned."""
        zero_shot = self._at(0.0, lambda: self._encode(images))
        tuned = (
            self._at(self.strength, lambda: self._encode(images)) if self._tuned_vision else None
        )
        return (
            self._softmax(zero_shot, self._zero_shot_classes),
            self._softmax(zero_shot if tuned is None else tuned, self._tuned_classes),
        )

    def _at(self, strength: float, compute: Callable[[], Tensor]) -> Tensor:
        """Compute without gradients at one strength, each updated weight formed only once."""
        before, self.adapter.strength = self.adapter.strength, strength
        try:
            with torch.inference_mode(), parametrize.cached():
                return compute()
        finally:
            self.adapter.strength = before

    def _encode(self, images: Tensor) -> Tensor:
        batches = images.split(_FORWARD_BATCH)
        return torch.cat([self.model.encode_image(batch) for batch in batches])

    def _softmax(self, images: Tensor, classes: Tensor) -> Tensor:
        with torch.inference_mode():
            return (self.model.logit_scale() * images @ classes.T).softmax(dim=-1).float().cpu()


@dataclass
class Predictions:
    """Both answers for a set of images.

    ``labels`` int64 (N,); ``zero_shot`` and ``tuned`` float32 (N, C), each row sums to 1;
    ``skipped`` are the images that could not be read.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: Tensor
    zero_shot: Tensor
    tuned: Tensor
    skipped: list[Skipped] = field(default_factory=list)


def predict_split(
    both: SideBySide, split: Split, on_images: Callable[[int], None] | None = None
) -> Predictions:
    """Classify every image of a split, zero-shot and tuned, each image decoded once.

    Args:
        both: the model and its adapter.
        split: at least one image.
        on_images: called with the number of images that were just done.
    """
    names, labels, zero_shot, tuned, skipped = [], [], [], [], []
    for batch in decode_batches(split, both.model.square(), _CHUNK):
        for answers, kept in zip(both.probabilities(batch.images), (zero_shot, tuned), strict=True):
            kept.append(answers)
        names += batch.names
        labels.append(batch.labels)
        skipped += batch.skipped
        if on_images:
            on_images(len(batch))
    return Predictions(
        split.classes, names, torch.cat(labels), torch.cat(zero_shot), torch.cat(tuned), skipped
    )


def score(predictions: Predictions) -> dict[str, Any]:
    """Sum predictions up: ``zero_shot`` and ``tuned`` (top1, ece), and ``per_class``."""
    labels = predictions.labels
    per_class = {}
    for label, name in enumerate(predictions.classes):
        here = labels == label
        if here.any():
            per_class[name] = {
                "images": int(here.sum()),
                "zero_shot": _top1(predictions.zero_shot[here], labels[here]),
                "tuned": _top1(predictions.tuned[here], labels[here]),
            }
    return {
        **{
            which: {
                "top1": _top1(probabilities, labels),
                "ece": expected_calibration_error(probabilities, labels),
            }
            for which, probabilities in (
                ("zero_shot", predictions.zero_shot),
                ("tuned", predictions.tuned),
            )
        },
        "per_class": per_class,
    }


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over 15 bins.

    Bins of equal width, weighted by their share of the images (Guo et al., ICML 2017, eq. 3).

    Args:
        probabilities: float (N, C).
        labels: int64 (N,).
    """
    confidence, answer = probabilities.max(dim=-1)
    correct = (answer == labels).double()
    bins = (confidence.double() * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
    gaps = torch.zeros(_CALIBRATION_BINS, dtype=torch.double)
    gaps.index_add_(0, bins, confidence.double() - correct)
    return float(gaps.abs().sum() / len(labels))


def confusion(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Count (C, C) images by true class (rows) and answer (columns), zero-shot and tuned."""
    every = range(len(predictions.classes))
    zero_shot, tuned = (
        confusion_matrix(predictions.labels, probabilities.argmax(dim=-1), labels=every)
        for probabilities in (predictions.zero_shot, predictions.tuned)
    )
    return zero_shot, tuned


def as_mapping(classes: Sequence[str], probabilities: Tensor) -> dict[str, float]:
    """Return ``{class: probability}``, the most probable first."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    return {classes[label]: float(probabilities[label]) for label in order}


def _top1(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(dim=-1) == labels).double().mean())
