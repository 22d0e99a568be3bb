"""Zero-shot against tuned: probabilities in one pass over the images, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_randlora.adapters import Adapter
from clip_randlora.cache import Cache
from clip_randlora.data import Skipped, Split, decode_batches
from clip_randlora.folding import find_pairs, folded
from clip_randlora.models import Model
from clip_randlora.text import TextClassifier

_CHUNK = 256  # images that are decoded together; the updated weights are formed once for each
_FORWARD_BATCH = 64
_CALIBRATION_BINS = 15


class SideBySide:
    """One model in memory that answers both as it was and as it is tuned.

    The class features of both are computed once; those of the tuned model for the adapter's
    strength at that time, or for the ``strength`` that is set here later. The image tower's
    updated weights are kept from call to call, which takes as much memory as those weights: to
    form them takes longer than to classify a few images.
    """

    def __init__(self, model: Model, adapter: Adapter, text: TextClassifier):
        self.model, self.adapter, self.text = model, adapter, text
        self._tuned_vision = "vision" in adapter.towers
        self._pairs = find_pairs(model)
        self._formed: dict[str, Tensor] = {}
        self._formed_for: object = None
        self._zero_shot_classes = self._at(0.0, text.features)
        self.strength = adapter.strength

    @property
    def strength(self) -> float:
        """How much of the update the tuned answers use, see `Adapter.strength`."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        self._trained = self._trained_state()
        self._tuned_classes = self._at(value, self.text.features)

    @property
    def is_current(self) -> bool:
        """Whether the adapter still has the numbers that the class features were computed with."""
        return self._trained == self._trained_state()

    def _trained_state(self) -> object:
        """Return what tells whether the trained numbers changed or moved, without reading them."""
        return [
            (None if p.is_inference() else p._version, p.data_ptr(), p.device, p.dtype)
            for p in self.adapter.parameters()
        ]

    @property
    def folded_norms(self) -> int:
        """How many batch norms are folded: not those that are trained, which rounds otherwise."""
        return len(self._pairs)

    def zero_shot_features(self, images: Tensor) -> Tensor:
        """Encode uint8 images (N, 3, S, S) as the model was: unit features (N, E)."""
        return self._at(0.0, lambda: encode_images(self.model, images))

    def probabilities(
        self, images: Tensor, zero_shot: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify uint8 images (N, 3, S, S): float32 (N, C) zero-shot and (N, C) tuned.

        ``zero_shot`` is what `zero_shot_features` returned for them, if it is known already.
        """
        if zero_shot is None:
            zero_shot = self.zero_shot_features(images)
        tuned = self._tuned_features(images) if self._tuned_vision else zero_shot
        return (
            _softmax(self._similarities(zero_shot, self._zero_shot_classes)),
            _softmax(self._tuned_logits(tuned)),
        )

    def tuned_probabilities(self, images: Tensor) -> Tensor:
        """Classify uint8 images (N, 3, S, S) as tuned only: float32 (N, C)."""
        return _softmax(self._tuned_logits(self._tuned_features(images)))

    def _tuned_features(self, images: Tensor) -> Tensor:
        encode = partial(encode_images, self.model, images)
        return self._at(self.strength, encode, self._formed_before())

    def _formed_before(self) -> dict[str, Tensor]:
        """Return the image tower's weights of earlier calls, if they would be the same now."""
        kind = self.model.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        state = self.strength, autocast, self._trained_state()
        if state != self._formed_for:
            self._formed, self._formed_for = {}, state
        return self._formed

    @torch.inference_mode()
    def _tuned_logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, C) of image features (N, E).

        A linear probe's head is blended with the zero-shot one, which is linear as well.
        """
        logits, head = self._similarities(images, self._tuned_classes), self.adapter.head
        if head is None or self.strength == 0:
            return logits
        return torch.lerp(logits.float(), head(images.float()), self.strength)

    @torch.inference_mode()
    def _similarities(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.model.logit_scale() * images @ classes.T

    def _at(
        self,
        strength: float,
        compute: Callable[[], Tensor],
        formed: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute without gradients at one strength, each updated weight formed only once."""
        before, self.adapter.strength = self.adapter.strength, strength
        try:
            with torch.inference_mode(), self.adapter.formed_once(formed), folded(self._pairs):
                return compute()
        finally:
            self.adapter.strength = before


def encode_images(model: Model, images: Tensor) -> Tensor:
    """Encode uint8 images (N, 3, S, S), a batch at a time, to unit features (N, E)."""
    return torch.cat([model.encode_image(batch) for batch in images.split(_FORWARD_BATCH)])


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1).float().cpu()


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
    both: SideBySide,
    split: Split,
    on_images: Callable[[int], None] | None = None,
    cache: Cache | None = None,
) -> Predictions:
    """Classify every image of a split, zero-shot and tuned, each image decoded once.

    Args:
        both: the model and its adapter.
        split: at least one image.
        on_images: called with the number of images that were just done.
        cache: of this model and the data set whose test split this is.
    """
    names, labels, zero_shot, tuned, skipped = [], [], [], [], []
    decoded = cache.test_images(both.model.image_size) if cache else None
    for number, batch in enumerate(decode_batches(split, both.model.square(), _CHUNK, decoded)):
        features = None
        if cache:
            key = number, both.folded_norms
            features = cache.zero_shot(key, partial(both.zero_shot_features, batch.images))
        answers = both.probabilities(batch.images, features)
        for probabilities, kept in zip(answers, (zero_shot, tuned), strict=True):
            kept.append(probabilities)
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


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence (the answer's probability) lies in one interval.

    ``center`` of the interval; ``images`` in it; their mean ``confidence`` and ``accuracy``, 0
    where there is none.
    """

    center: float
    images: int
    confidence: float
    accuracy: float


def calibration_bins(probabilities: Tensor, labels: Tensor) -> list[CalibrationBin]:
    """Sort images by confidence into 15 intervals of equal width.

    Args:
        probabilities: float (N, C).
        labels: int64 (N,).
    """
    confidence, answer = probabilities.double().max(dim=-1)
    correct = (answer == labels).double()
    place = (confidence * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
    bins = []
    for index in range(_CALIBRATION_BINS):
        here = place == index
        images = int(here.sum())
        means = [float(v[here].mean()) if images else 0.0 for v in (confidence, correct)]
        bins.append(CalibrationBin((index + 0.5) / _CALIBRATION_BINS, images, *means))
    return bins


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over 15 bins.

    Bins of equal width, weighted by their share of the images (Guo et al., ICML 2017, eq. 3).

    Args:
        probabilities: float (N, C).
        labels: int64 (N,).
    """
    bins = calibration_bins(probabilities, labels)
    return sum(b.images * abs(b.confidence - b.accuracy) for b in bins) / len(labels)


def confusion(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Count (C, C) images by true class (rows) and answer (columns), zero-shot and tuned."""
    from sklearn.metrics import confusion_matrix  # 130 MB and a second, needed by nothing else

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
