"""Zero-shot and tuned predictions in one pass over the images, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter, check_strength
from clip_randlora.clip.models import CLIPNet, Model
from clip_randlora.clip.none_of_these import none_labels
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence import Confidence, change_temperature
from clip_randlora.confidence.unknown import detection
from clip_randlora.data import Skipped, Split, decode_batches
from clip_randlora.errors import UserError
from clip_randlora.forward.inference import inference_model, text_inference_net
from clip_randlora.training.cache import Cache
from clip_randlora.utils.progress import OnProgress, report_progress

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256  # images that are decoded and classified at a time
_FORWARD_BATCH = 64
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class _Predictor:
    """One network and its class features; it never changes, so any thread may use it.

    Attributes:
        model: encodes images, see `clip_randlora.forward.inference`.
        classes: unit class features (C, E).
        strength: of the update in both.
        temperature: divides the logits.
        head: of a method that trains one; its logits are interpolated with the zero-shot ones.
    """

    model: Model
    classes: Tensor
    strength: float = 0.0
    temperature: float = 1.0
    head: nn.Module | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return logits before the temperature, float32 (N, C), for unit features (N, E)."""
        features, classes = features.float(), self.classes.float()
        with torch.autocast(features.device.type, enabled=False):
            logits = self.model.logit_scale().float() * features @ classes.T
            if self.head is not None:
                logits = torch.lerp(logits, self.head(features), self.strength)
        return logits

    def probabilities(self, features: Tensor) -> Tensor:
        """Return probabilities, float32 (N, C), for unit image features (N, E)."""
        return (self.logits(features) / self.temperature).softmax(dim=-1).cpu()


class PairedPredictor:
    """Predicts zero-shot and tuned with one model in memory, in any number of threads.

    The tuned network shares with the zero-shot one all weights that the adapter does not change. It
    uses the adapter's parameters and strength at the time of construction, or the ``strength`` that
    is set here later.

    Args:
        model: the base model.
        adapter: attached to it.
        text: the prompts of the classes.
        on_progress: told how many prompts are encoded.
        confidence: the temperatures of the answers; by default 1.

    Raises:
        UserError: the adapter is not attached to the model, or was merged into it since.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        on_progress: OnProgress | None = None,
        confidence: Confidence | None = None,
    ):
        self.model, self.adapter, self.text = model, adapter, text
        self.confidence = confidence or Confidence()
        self._tensors = [*model.net.parameters(), *adapter.parameters()]
        self._built_from = self._state()
        self._other_image_model: tuple[float, Model] | None = None
        self._last_text_net: tuple[float, CLIPNet] | None = None
        with torch.inference_mode():
            ready = inference_model(model)
            classes = text.features_in_parts(ready.net, on_progress)
        self._zero_shot = _Predictor(
            ready, classes, temperature=self.confidence.temperature_at(0.0)
        )
        self._tuned = self._build(adapter.strength, on_progress)

    @property
    def strength(self) -> float:
        """Strength of the update in tuned predictions, see `Adapter.strength`."""
        return self._tuned.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._tuned = self._build(check_strength(value))  # running predictions keep the old one

    @property
    def temperatures(self) -> tuple[float, float]:
        """Of the zero-shot and of the tuned answers; see `Confidence.temperature_at`."""
        return self._zero_shot.temperature, self._tuned.temperature

    @property
    def is_current(self) -> bool:
        """Whether the model and the adapter are unchanged since construction."""
        return self.adapter.is_attached and self._built_from == self._state()

    def _state(self) -> object:
        """Return a state that differs once a tensor was changed or moved; no tensor is read."""
        return [
            (None if t.is_inference() else t._version, t.data_ptr(), t.device, t.dtype)
            for t in self._tensors
        ]

    @torch.inference_mode()
    def _build(self, strength: float, on_progress: OnProgress | None = None) -> _Predictor:
        """Build the predictor of one strength."""
        self._refuse_if_detached()
        zero_shot = self._zero_shot
        if strength == 0:
            return zero_shot
        classes, net = zero_shot.classes, self._form_text_net(strength)
        if net is not zero_shot.model.net:
            classes = self.text.features_in_parts(net, on_progress)
        ready, temperature = self._form_model(strength), self.confidence.temperature_at(strength)
        return _Predictor(ready, classes, strength, temperature, self.adapter.head)

    def _form_model(self, strength: float) -> Model:
        self._refuse_if_detached()
        weights = self.adapter.updated_weights(strength, "vision")
        return inference_model(self.model, weights) if weights else self._zero_shot.model

    def _form_text_net(self, strength: float) -> CLIPNet:
        self._refuse_if_detached()
        weights = self.adapter.updated_weights(strength, "text")
        return text_inference_net(self.model, weights) if weights else self._zero_shot.model.net

    @torch.inference_mode()
    def image_model(self, strength: float) -> Model:
        """Return a model that encodes images at a strength; it never changes.

        The last one is kept, beside those that classify.
        """
        self._refuse_if_merged()
        for predictor in (self._zero_shot, self._tuned):
            if predictor.strength == strength:
                return predictor.model
        kept = self._other_image_model
        if kept is None or kept[0] != strength:
            kept = self._other_image_model = strength, self._form_model(strength)
        return kept[1]

    @torch.inference_mode()
    def text_net(self, strength: float) -> CLIPNet:
        """Return a network that encodes texts at a strength; it never changes. The last is kept."""
        self._refuse_if_merged()
        if strength == 0:
            return self._zero_shot.model.net
        kept = self._last_text_net
        if kept is None or kept[0] != strength:
            kept = self._last_text_net = strength, self._form_text_net(strength)
        return kept[1]

    def _refuse_if_detached(self) -> None:
        if not self.adapter.is_attached:
            raise UserError("the adapter is no longer attached to its model; load the run again")

    def _refuse_if_merged(self) -> None:
        """Refuse to predict once the update is in the weights that both networks share."""
        if self.adapter.is_merged:
            raise UserError("the adapter was merged into its model; load the run again")

    @torch.inference_mode()
    def zero_shot_features(self, images: Tensor) -> Tensor:
        """Encode uint8 images (N, 3, S, S) without the adapter: unit features (N, E)."""
        self._refuse_if_merged()
        return encode_images(self._zero_shot.model, images)

    @torch.inference_mode()
    def probabilities(
        self, images: Tensor, zero_shot: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify images zero-shot and tuned.

        Args:
            images: uint8 (N, 3, S, S).
            zero_shot: what `zero_shot_features` returned for them, if it is known.

        Returns:
            Zero-shot and tuned probabilities, float32 (N, C) each.
        """
        self._refuse_if_merged()
        before, after = self._zero_shot, self._tuned  # another thread may set a strength
        features = _features(before, after, images, zero_shot)
        return before.probabilities(features[0]), after.probabilities(features[1])

    @torch.inference_mode()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images zero-shot and tuned: unit features (N, E) each.

        Args:
            images: (N, 3, S, S), uint8 or floats in [0, 1].
        """
        self._refuse_if_merged()
        return _features(self._zero_shot, self._tuned, images)

    @torch.inference_mode()
    def logits(self, features: Tensor, *, tuned: bool = True) -> Tensor:
        """Return the logits of unit features (N, E) before the temperature, float32 (N, C)."""
        return (self._tuned if tuned else self._zero_shot).logits(features)

    @property
    def zero_shot_classes(self) -> Tensor:
        """Unit class features without the adapter, (C, E)."""
        return self._zero_shot.classes

    @torch.inference_mode()
    def tuned_answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and classify uint8 images (N, 3, S, S) tuned only, in one pass.

        Returns:
            Unit features (N, E) of the tuned image tower, and probabilities, float32 (N, C).
        """
        self._refuse_if_merged()
        tuned = self._tuned
        features = encode_images(tuned.model, images)
        return features, tuned.probabilities(features)

    def tuned_probabilities(self, images: Tensor) -> Tensor:
        """Classify uint8 images (N, 3, S, S) tuned only: float32 (N, C)."""
        return self.tuned_answers(images)[1]


SideBySide = PairedPredictor  # the name it had first


def _features(
    before: _Predictor, after: _Predictor, images: Tensor, zero_shot: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encode images with both networks, once if they have one image tower."""
    if zero_shot is None:
        zero_shot = encode_images(before.model, images)
    shared = after.model is before.model
    return zero_shot, zero_shot if shared else encode_images(after.model, images)


def encode_images(model: Model, images: Tensor) -> Tensor:
    """Encode images (N, 3, S, S), uint8 or floats in [0, 1], in batches to unit features (N, E)."""
    return torch.cat([model.encode_image(batch) for batch in images.split(_FORWARD_BATCH)])


@dataclass
class Predictions:
    """Zero-shot and tuned predictions for N images.

    Attributes:
        classes: C class names.
        names: N names of images.
        labels: true classes, int64 (N,).
        zero_shot, tuned: probabilities, float32 (N, C).
        skipped: images that could not be read.
        temperatures: of the zero-shot and of the tuned probabilities.
        scores: how much each image is of one of the classes, float32 (N,), if that was asked; see
            `clip_randlora.confidence.unknown`.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: Tensor
    zero_shot: Tensor
    tuned: Tensor
    skipped: list[Skipped] = field(default_factory=list)
    temperatures: tuple[float, float] = (1.0, 1.0)
    scores: Tensor | None = None

    def select(self, rows: Tensor, classes: tuple[str, ...]) -> Predictions:
        """Return the predictions of some images: bool (N,), whose labels are of ``classes``."""
        return replace(
            self,
            classes=classes,
            names=[name for name, kept in zip(self.names, rows.tolist(), strict=True) if kept],
            labels=self.labels[rows],
            zero_shot=self.zero_shot[rows],
            tuned=self.tuned[rows],
            scores=None if self.scores is None else self.scores[rows],
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each image, with the columns of ``predictions.csv``.

        Returns:
            A table with ``image``, its name; ``label``, ``zero_shot`` and ``tuned``, the names of
            the true class and of both answers; and ``zero_shot: CLASS`` and ``tuned: CLASS`` for
            every class, its probabilities, float32.
        """
        import pandas as pd

        both = {"zero_shot": self.zero_shot, "tuned": self.tuned}
        rows = {"label": self.labels}
        rows |= {which: probabilities.argmax(dim=-1) for which, probabilities in both.items()}
        named = {which: [self.classes[row] for row in of.tolist()] for which, of in rows.items()}
        tables = [pd.DataFrame({"image": self.names, **named})]
        for which, probabilities in both.items():
            columns = [f"{which}: {name}" for name in self.classes]
            tables.append(pd.DataFrame(probabilities.numpy(), columns=columns))
        return pd.concat(tables, axis="columns")


def predict_split(
    both: PairedPredictor,
    split: Split,
    on_progress: OnProgress | None = None,
    cache: Cache | None = None,
    unknown_scores: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Predictions:
    """Classify every image of a split zero-shot and tuned; each image is decoded once.

    Args:
        both: the model and its adapter.
        split: has at least one image.
        on_progress: told how many are classified, see `clip_randlora.utils.progress.OnProgress`.
        cache: of this model, if the split is the test split of the cache's data.
        unknown_scores: `Classifier.unknown_scores`, if they are asked.
    """
    names: list[str] = []
    labels: list[Tensor] = []
    zero_shot: list[Tensor] = []
    tuned: list[Tensor] = []
    scores: list[Tensor] = []
    skipped: list[Skipped] = []
    decoded = cache.test_images(both.model.image_size) if cache else None
    batches = report_progress(
        decode_batches(split, both.model.square(), BATCH, decoded),
        "classifying images",
        len(split),
        on_progress,
        lambda batch: len(batch) + len(batch.skipped),
    )
    for number, batch in enumerate(batches):
        features = None
        if cache:
            features = cache.zero_shot(number, partial(both.zero_shot_features, batch.images))
        if unknown_scores and features is None:
            features = both.zero_shot_features(batch.images)
        answers = both.probabilities(batch.images, features)
        if unknown_scores and features is not None:
            scores.append(unknown_scores(features, answers[1]))
        for probabilities, kept in zip(answers, (zero_shot, tuned), strict=True):
            kept.append(probabilities)
        names += batch.names
        labels.append(batch.labels)
        skipped += batch.skipped
    return Predictions(
        split.classes,
        names,
        torch.cat(labels),
        torch.cat(zero_shot),
        torch.cat(tuned),
        skipped,
        both.temperatures,
        torch.cat(scores) if scores else None,
    )


def score(predictions: Predictions) -> dict[str, Any]:
    """Return the scores of predictions as ``metrics.json`` has them.

    ``zero_shot`` and ``tuned`` hold ``top1`` and ``ece``, shares from 0 to 1, and
    ``ece_uncalibrated``, which they would have at temperature 1, if that is another. ``per_class``
    holds the number of ``images`` and both top-1 accuracies of every class with images.
    """
    labels, per_class = predictions.labels, {}
    both = {"zero_shot": predictions.zero_shot, "tuned": predictions.tuned}
    for label, name in enumerate(predictions.classes):
        here = labels == label
        if here.any():
            top1 = {
                which: _top1(probabilities[here], label) for which, probabilities in both.items()
            }
            per_class[name] = {"images": int(here.sum()), **top1}
    scores = {}
    for (which, probabilities), temperature in zip(
        both.items(), predictions.temperatures, strict=True
    ):
        scores[which] = {
            "top1": _top1(probabilities, labels),
            "ece": expected_calibration_error(probabilities, labels),
        }
        if temperature != 1:
            plain = change_temperature(probabilities, 1 / temperature)
            scores[which]["ece_uncalibrated"] = expected_calibration_error(plain, labels)
    return {**scores, "per_class": per_class}


def score_none_of_these(
    predictions: Predictions, classes: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Return how well images of none of the classes are told from others, by their scores.

    Args:
        predictions: with ``scores``. Images of none have a label beyond the classes, or that of a
            class ``none of these``.
        classes: of the run.
        threshold: below which an image is of none.

    Returns:
        Nothing without such images, else ``none_of_these`` with their number ``images``, ``auroc``
        and ``fpr95`` of `clip_randlora.confidence.unknown.detection`, and the shares of the other
        images that are ``kept`` and of these that are ``rejected`` at the threshold.
    """
    assert predictions.scores is not None
    is_none = predictions.labels >= len(classes)
    is_none |= torch.isin(predictions.labels, torch.tensor(none_labels(classes), dtype=torch.int64))
    if is_none.all() or not is_none.any():
        return {}
    known, unknown = predictions.scores[~is_none], predictions.scores[is_none]
    return {
        "none_of_these": {
            "images": len(unknown),
            **detection(known, unknown),
            "kept": float((known >= threshold).double().mean()),
            "rejected": float((unknown < threshold).double().mean()),
        }
    }


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence (the largest probability) lies in one interval.

    Attributes:
        center: of the interval.
        images: number of images in it.
        confidence, accuracy: their means; 0 without images.
    """

    center: float
    images: int
    confidence: float
    accuracy: float


def calibration_bins(probabilities: Tensor, labels: Tensor) -> list[CalibrationBin]:
    """Group images by confidence into 15 intervals of equal width.

    Args:
        probabilities: float (N, C).
        labels: int64 (N,).
    """
    confidence, answer = probabilities.double().max(dim=-1)
    correct = (answer == labels).double()
    place = (confidence * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
    counts = torch.bincount(place, minlength=_CALIBRATION_BINS)
    means = (
        torch.bincount(place, values, _CALIBRATION_BINS) / counts.clamp(min=1)
        for values in (confidence, correct)
    )
    rows = zip(counts.tolist(), *(values.tolist() for values in means), strict=True)
    return [
        CalibrationBin((index + 0.5) / _CALIBRATION_BINS, *row) for index, row in enumerate(rows)
    ]


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
    """Return the confusion matrices, zero-shot and tuned.

    Both are (C, C) counts of images, by true class (rows) and predicted class (columns).
    """
    from sklearn.metrics import confusion_matrix  # takes 130 MB and a second

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


def _top1(probabilities: Tensor, labels: Tensor | int) -> float:
    return float((probabilities.argmax(dim=-1) == labels).double().mean())
