"""Zero-shot against tuned: probabilities in one pass over the images, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter, check_strength
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import Skipped, Split, decode_batches
from clip_randlora.errors import UserError
from clip_randlora.forward.inference import answering_model
from clip_randlora.training.cache import Cache
from clip_randlora.utils.progress import OnProgress, report_progress

_CHUNK = 256  # images that are decoded together; the updated weights are formed once for each
_FORWARD_BATCH = 64
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class _Answering:
    """What gives one kind of answers; it never changes, so any thread may use it.

    Attributes:
        model: encodes images; ready, see `clip_randlora.forward.inference`.
        classes: unit class features (C, E).
        strength: of the update that is in both.
        head: a linear probe's, blended in by the strength; None without one.
    """

    model: Model
    classes: Tensor
    strength: float = 0.0
    head: nn.Linear | None = None

    def probabilities(self, features: Tensor) -> Tensor:
        """Return float32 (N, C) of unit image features (N, E)."""
        features, classes = features.float(), self.classes.float()
        with torch.autocast(features.device.type, enabled=False):
            logits = self.model.logit_scale().float() * features @ classes.T
            if self.head is not None:
                logits = torch.lerp(logits, self.head(features), self.strength)
        return logits.softmax(dim=-1).cpu()


class PairedPredictor:
    """One model in memory that answers both as it was and as it is tuned.

    Each has a network of its own, which shares with the model what the adapter leaves as it is,
    and the class features. Any number of threads may ask at once. The tuned answers are those of
    the adapter's numbers and strength at that time, or of the ``strength`` that is set here later.

    Raises:
        UserError: the adapter is not attached to the model; later, if it was merged into it.
    """

    def __init__(self, model: Model, adapter: Adapter, text: TextClassifier):
        self.model, self.adapter, self.text = model, adapter, text
        self._tensors = [*model.net.parameters(), *adapter.parameters()]
        self._made_of = self._state()
        with torch.inference_mode():
            ready = answering_model(model)
            self._zero_shot = _Answering(ready, text.features(net=ready.net))
        self._tuned = self._at(adapter.strength)

    @property
    def strength(self) -> float:
        """How much of the update the tuned answers use, see `Adapter.strength`."""
        return self._tuned.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._tuned = self._at(check_strength(value))  # answers under way keep what they began with

    @property
    def is_current(self) -> bool:
        """Whether the model and its adapter still have the numbers that this was made of."""
        return self.adapter.is_attached and self._made_of == self._state()

    def _state(self) -> object:
        """Return what tells whether a tensor changed or moved, without reading it."""
        return [
            (None if t.is_inference() else t._version, t.data_ptr(), t.device, t.dtype)
            for t in self._tensors
        ]

    def _at(self, strength: float) -> _Answering:
        """Make ready what answers at one strength."""
        if not self.adapter.is_attached:
            raise UserError("the adapter is no longer attached to its model; load the run again")
        zero_shot = self._zero_shot
        if strength == 0:
            return zero_shot
        head = self.adapter.head
        with torch.inference_mode():
            text, vision = (self.adapter.updated_weights(strength, t) for t in ("text", "vision"))
            ready = answering_model(self.model, vision) if vision else zero_shot.model
            classes = zero_shot.classes
            if text:  # the network that encodes the prompts is needed once
                classes = self.text.features(net=answering_model(self.model, text).net)
        return _Answering(ready, classes, strength, head)

    def _refuse_if_merged(self) -> None:
        """Refuse to answer once the update is in the weights that both networks share."""
        if self.adapter.is_merged:
            raise UserError("the adapter was merged into its model; load the run again")

    @torch.inference_mode()
    def zero_shot_features(self, images: Tensor) -> Tensor:
        """Encode uint8 images (N, 3, S, S) as the model was: unit features (N, E)."""
        self._refuse_if_merged()
        return encode_images(self._zero_shot.model, images)

    @torch.inference_mode()
    def probabilities(
        self, images: Tensor, zero_shot: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify uint8 images (N, 3, S, S): float32 (N, C) zero-shot and (N, C) tuned.

        ``zero_shot`` is what `zero_shot_features` returned for them, if it is known already.
        """
        self._refuse_if_merged()
        before, after = self._zero_shot, self._tuned  # another thread may set a strength
        if zero_shot is None:
            zero_shot = encode_images(before.model, images)
        tuned = zero_shot if after.model is before.model else encode_images(after.model, images)
        return before.probabilities(zero_shot), after.probabilities(tuned)

    @torch.inference_mode()
    def tuned_probabilities(self, images: Tensor) -> Tensor:
        """Classify uint8 images (N, 3, S, S) as tuned only: float32 (N, C)."""
        self._refuse_if_merged()
        tuned = self._tuned
        return tuned.probabilities(encode_images(tuned.model, images))


SideBySide = PairedPredictor  # the name it had first


def encode_images(model: Model, images: Tensor) -> Tensor:
    """Encode uint8 images (N, 3, S, S), a batch at a time, to unit features (N, E)."""
    return torch.cat([model.encode_image(batch) for batch in images.split(_FORWARD_BATCH)])


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
    both: PairedPredictor,
    split: Split,
    on_progress: OnProgress | None = None,
    cache: Cache | None = None,
) -> Predictions:
    """Classify every image of a split, zero-shot and tuned, each image decoded once.

    Args:
        both: the model and its adapter.
        split: at least one image.
        on_progress: told how many are classified, see `clip_randlora.utils.progress.OnProgress`.
        cache: of this model and the data set whose test split this is.
    """
    names, labels, zero_shot, tuned, skipped = [], [], [], [], []
    decoded = cache.test_images(both.model.image_size) if cache else None
    batches = report_progress(
        decode_batches(split, both.model.square(), _CHUNK, decoded),
        "classifying images",
        len(split),
        on_progress,
        lambda batch: len(batch) + len(batch.skipped),
    )
    for number, batch in enumerate(batches):
        features = None
        if cache:
            features = cache.zero_shot(number, partial(both.zero_shot_features, batch.images))
        answers = both.probabilities(batch.images, features)
        for probabilities, kept in zip(answers, (zero_shot, tuned), strict=True):
            kept.append(probabilities)
        names += batch.names
        labels.append(batch.labels)
        skipped += batch.skipped
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
