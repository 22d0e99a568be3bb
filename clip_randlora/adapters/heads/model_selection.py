"""Choose a head's setting by the validation images, or by cross-validation on training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_randlora.adapters.heads.head import HeadData

_FOLDS = 4


def cross_validated(
    candidates: Sequence[float],
    logits_of: Callable[[HeadData, Tensor], list[Tensor]],
    data: HeadData,
    default: float,
) -> tuple[float, str]:
    """Return the candidate with the lowest mean log loss, and how it was chosen.

    Args:
        candidates: values of the setting.
        logits_of: takes the data to fit to and features (M, E); returns logits (M, C) for each
            candidate.
        data: with validation images, which decide then; else its training images are split.
        default: the value if a class has a single image and there are no validation images.
    """
    if data.validation is not None:
        features, labels = data.validation
        losses = [float(cross_entropy(x, labels)) for x in logits_of(data, features)]
        return candidates[losses.index(min(losses))], "by the validation images"
    folds = min(_FOLDS, int(torch.bincount(data.labels, minlength=len(data.classes)).min()))
    if folds < 2:
        return default, "as a class has a single training image"
    fold = _places_in_class(data.labels) % folds
    totals = [0.0] * len(candidates)
    for held_out in range(folds):
        kept, left = fold != held_out, fold == held_out
        part = replace(data, features=data.features[:, kept], labels=data.labels[kept])
        found = logits_of(part, data.features[0, left])
        for place, logits in enumerate(found):
            totals[place] += float(cross_entropy(logits, data.labels[left], reduction="sum"))
    best = totals.index(min(totals))
    return candidates[best], f"by {folds}-fold cross-validation on the training images"


def _places_in_class(labels: Tensor) -> Tensor:
    """Return the number of each image among those of its class, from 0."""
    one_hot = torch.nn.functional.one_hot(labels)
    return one_hot.cumsum(dim=0).gather(1, labels[:, None]).squeeze(1) - 1


def describe_choice(setting: str, value: float, how: str) -> str:
    """Return a note on a choice."""
    return f"{setting} = {value:.3g}, {how}."
