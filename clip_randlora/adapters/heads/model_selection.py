"""Choose a head's setting by the validation images, or by cross-validation on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    totals = [0.0] * len(candidates)
    for kept, left in split_into_folds(data.labels, folds):
        part = replace(data, features=data.features[:, kept], labels=data.labels[kept])
        found = logits_of(part, data.features[0, left])
        for place, logits in enumerate(found):
            totals[place] += float(cross_entropy(logits, data.labels[left], reduction="sum"))
    best = totals.index(min(totals))
    return candidates[best], f"by {folds}-fold cross-validation on the training images"


def split_into_folds(labels: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each fold the rows of the images that are kept and of those that are left out.

    There are at most as many folds as the largest class has images. The image of a class that has
    no other is never left out.

    Args:
        labels: int64 (N,).
        most: upper bound on the number of folds.
    """
    counts = torch.bincount(labels)
    folds = min(most, int(counts.max()))
    one_hot = torch.nn.functional.one_hot(labels)
    places = one_hot.cumsum(dim=0).gather(1, labels[:, None]).squeeze(1) - 1
    for number in range(folds):
        is_left = (places % folds == number) & (counts[labels] > 1)
        if is_left.any():
            yield (~is_left).nonzero().flatten(), is_left.nonzero().flatten()


def describe_choice(setting: str, value: float, how: str) -> str:
    """Return a note on a choice."""
    return f"{setting} = {value:.3g}, {how}."
