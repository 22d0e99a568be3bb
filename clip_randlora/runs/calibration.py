"""Fit temperatures and thresholds of a run's answers, on images that they were not trained on.

Zero-shot has seen none of the training images. The tuned encoders have seen all of them, and to
train again without some would take as long as the training. An anchored head on the frozen features
takes a second, and is fitted to all but a fold of the images for each of the folds. It is fitted to
the same loss as the encoders, whose label smoothing decides how far the logits go apart. So it has
about the temperature of the tuned encoders, though not their accuracy: `docs/data.md` has figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_randlora.adapters import AnchoredHead, HeadConfig, ZeroShot
from clip_randlora.adapters.heads import HeadData
from clip_randlora.adapters.heads.anchored_head import fit_class_vectors
from clip_randlora.adapters.heads.model_selection import split_into_folds
from clip_randlora.clip.none_of_these import none_labels
from clip_randlora.confidence import Confidence, fit_temperature
from clip_randlora.confidence.confidence import Threshold
from clip_randlora.confidence.unknown import lower_quantile, margins, nearest
from clip_randlora.data import ImageBatch, TrainingImages, augment
from clip_randlora.evaluation import PairedPredictor
from clip_randlora.training.config import TrainConfig

_MOST_IMAGES = 1024  # but four of each class
_BATCH = 64
_FOLDS = 4
_FEWEST_GOOD = 10
KEPT = 0.95
"""Share of the right answers that are not taken for images of no class."""


@dataclass(frozen=True)
class _Asked:
    """Logits of images that they were not trained on.

    Attributes:
        zero_shot, tuned: logits at temperature 1, float32 (N, C); tuned of the images ``rows`` of
            them, and empty if every class has a single image.
        labels: int64 (N,).
        rows: int64 (M,).
        neighbours: cosine with the nearest training image that is another, (N,).
    """

    zero_shot: Tensor
    tuned: Tensor
    labels: Tensor
    rows: Tensor
    neighbours: Tensor


@torch.no_grad()
def calibrate(
    both: PairedPredictor,
    images: TrainingImages,
    config: TrainConfig,
    validation: ImageBatch | None = None,
    head_data: HeadData | None = None,
) -> tuple[Confidence, Tensor]:
    """Fit the temperatures and thresholds of zero-shot and of the full strength.

    Args:
        both: answers at temperature 1 and full strength.
        images: what was trained on; a thousand of them are used, or four of each class.
        config: the settings of the training.
        validation: of the data set. If there are any, everything is fitted on these.
        head_data: what the head was fitted to, of a method that has one.

    Returns:
        What was fitted, and the zero-shot features of the training images, float32 (N, E).
    """
    if not len(images):  # the method zero_shot draws none
        return Confidence(), torch.empty(0, both.zero_shot_classes.shape[1])
    if head_data is not None:
        labels, known = head_data.labels, head_data.features[0]
        after = None
    else:
        rows = _evenly(images.labels.cpu(), len(both.text.classes))
        labels = images.labels.cpu()[rows]
        known, after = _encode(both, _whole(both, images, rows))
    scale, way, said = float(both.model.logit_scale()), 1.0, f"{len(labels)} training images"
    if validation is not None and len(validation):
        features, tuned_features = _encode(both, validation.images.split(_BATCH))
        asked = _Asked(
            _logits(both, features, tuned=False),
            _logits(both, tuned_features),
            validation.labels.cpu(),
            torch.arange(len(validation)),
            nearest(features, known),
        )
        said = f"{len(validation)} validation images"
    else:
        zero_shot = _logits(both, known, tuned=False)
        if isinstance(config.method, ZeroShot):
            out_of_fold = zero_shot, torch.arange(len(labels))
        elif isinstance(config.method, HeadConfig) and head_data is not None:
            out_of_fold = _ask_head(config.method, head_data)
        else:
            assert after is not None
            head = _ProxyHead(both, known, labels, config)
            out_of_fold = head.ask_out_of_fold()
            way = head.share_of_training(zero_shot, _logits(both, after))
        neighbours = nearest(known, known, same=True)
        asked = _Asked(zero_shot, out_of_fold[0], labels, out_of_fold[1], neighbours)
        said += ", in folds"
    of_zero_shot = fit_temperature(asked.zero_shot, asked.labels)
    # where each class has a single image, none can be left out: the answers stay as they are
    of_tuned = fit_temperature(asked.tuned, asked.labels[asked.rows]) if len(asked.rows) else 1.0
    confidence = Confidence(
        zero_shot=float(f"{of_zero_shot:.4g}"),
        tuned=float(f"{of_zero_shot ** (1 - way) * of_tuned**way:.4g}"),
        fitted_on=said,
        unknown=_thresholds(asked, _is_none(both, asked.labels), scale, way),
    )
    return confidence, known[~_is_none(both, labels)]


def _is_none(both: PairedPredictor, labels: Tensor) -> Tensor:
    """Return which labels (N,) are of a class of images that are of none of the others."""
    return torch.isin(labels, torch.tensor(none_labels(both.text.classes), dtype=torch.int64))


def _thresholds(asked: _Asked, is_none: Tensor, scale: float, way: float) -> Threshold:
    """Return what a stated share of the right answers exceeds."""
    found = []
    for logits, rows in (
        (asked.zero_shot, torch.arange(len(asked.labels))),
        (asked.tuned, asked.rows) if len(asked.rows) else (asked.zero_shot, slice(None)),
    ):
        margin = margins(logits)
        of_class = ~is_none[rows]
        good = of_class & (logits.argmax(dim=1) == asked.labels[rows])
        if good.sum() < _FEWEST_GOOD:  # zero-shot may hardly know the classes
            good = of_class
        scores = margin / scale + asked.neighbours[rows]
        found.append([lower_quantile(of[good], KEPT) for of in (scores, margin)])
    zero_shot, tuned = found
    tuned = [a + way * (b - a) for a, b in zip(zero_shot, tuned, strict=True)]
    return Threshold(
        zero_shot=zero_shot[0],
        tuned=tuned[0],
        zero_shot_margin=zero_shot[1],
        tuned_margin=tuned[1],
        kept=KEPT,
    )


def _ask_head(method: HeadConfig, data: HeadData) -> tuple[Tensor, Tensor]:
    """Return a head's logits out of fold, and the rows of the images that they are of."""
    found, rows = [torch.empty(0, len(data.classes))], [torch.empty(0, dtype=torch.int64)]
    for kept, left in split_into_folds(data.labels, _FOLDS):
        part = replace(data, features=data.features[:, kept], labels=data.labels[kept])
        head = method.zero_shot_head(part)
        method.fit(head, part)
        found.append(head(data.features[0, left]))
        rows.append(left)
    return torch.cat(found), torch.cat(rows)


class _ProxyHead:
    """An anchored head that is fitted to the loss of a training, in place of the encoders.

    Args:
        both: has the zero-shot classes.
        features: zero-shot features of training images, float32 (N, E).
        labels: int64 (N,).
        config: the settings of the training.
    """

    def __init__(
        self, both: PairedPredictor, features: Tensor, labels: Tensor, config: TrainConfig
    ):
        self.features, self.labels, self.smoothing = features, labels, config.label_smoothing
        self.anchor = both.zero_shot_classes.float().cpu().clone()
        self.answered = float(both.model.logit_scale())
        self.trained = config.logit_scale or self.answered

    def _fit(self, rows: Tensor) -> Tensor:
        penalty = AnchoredHead().strength * len(self.anchor) / len(rows)
        data = self.features[rows], self.labels[rows], self.anchor
        return fit_class_vectors(*data, self.trained, penalty, self.smoothing)[0]

    def ask_out_of_fold(self) -> tuple[Tensor, Tensor]:
        """Return the logits out of fold, and the rows of the images that they are of."""
        found, rows = [torch.empty(0, len(self.anchor))], [torch.empty(0, dtype=torch.int64)]
        for kept, left in split_into_folds(self.labels, _FOLDS):
            found.append(self.answered * self.features[left] @ self._fit(kept).T)
            rows.append(left)
        return torch.cat(found), torch.cat(rows)

    def share_of_training(self, zero_shot: Tensor, tuned: Tensor) -> float:
        """Return how far the encoders went from zero-shot to the loss of the head, 0 to 1.

        A training of a few steps, or an update of half its strength, is near zero-shot.
        """
        whole = self._fit(torch.arange(len(self.labels)))
        before, after, best = (
            float(F.cross_entropy(logits, self.labels, label_smoothing=self.smoothing))
            for logits in (zero_shot, tuned, self.trained * self.features @ whole.T)
        )
        return min(max((before - after) / (before - best), 0.0), 1.0) if best < before else 0.0


def _encode(both: PairedPredictor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return zero-shot and tuned features of images, float32 (N, E) each, on the CPU."""
    encoded = [both.features(batch) for batch in batches]
    before, after = (
        torch.cat([features.float().cpu() for features in of]) for of in zip(*encoded, strict=True)
    )
    return before, after


def _logits(both: PairedPredictor, features: Tensor, *, tuned: bool = True) -> Tensor:
    """Return logits on the CPU, of features that are there."""
    return both.logits(features.to(both.model.device), tuned=tuned).cpu()


def _evenly(labels: Tensor, classes: int) -> Tensor:
    """Return the rows of the images to use, about equally many of each class."""
    count = max(_MOST_IMAGES // classes, _FOLDS)
    kept = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return torch.cat(kept)


def _whole(both: PairedPredictor, images: TrainingImages, rows: Tensor) -> Iterator[Tensor]:
    """Yield images whole, in the size in which the model answers."""
    parts, size = rows.split(_BATCH), both.model.image_size
    for pixels in images.stream(parts):
        if pixels.shape[-1] == size:
            yield pixels
        else:
            whole = pixels.to(both.model.device), size, torch.Generator(), (1.0, 1.0)
            yield augment(*whole, flip=False, ratio=(1.0, 1.0))
