"""Which images to label first: those that stand for the most others that nothing stands for yet.

With few labels, images that are typical and cover all that there is teach more than uncertain ones
(Hacohen et al., TypiClust, ICML 2022, arXiv 2202.02794). The choice here maximises a coverage in
which uncertain images count more (Bae et al., MaxHerding, ECCV 2024, arXiv 2407.12212, and
Uncertainty Herding, ICLR 2025, arXiv 2412.20644)::

    C(S) = sum over images i of  u_i  max over s in S of  exp(-|x_i - x_s|^2 / w)

S holds the labelled images and the chosen ones, and u_i is the entropy of an image's probabilities
p. The vector x has two parts: the unit feature, and the square roots of p (Hellinger distance) with
half its weight, so that images of one answer stand less for those of another. The width w is the
mean squared distance of an image to the nearest 3 % of the images, at least 5 of them. Each choice
is the image that adds most to C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_randlora.data.sampling import permutation
from clip_randlora.errors import UserError

MOST_CANDIDATES = 4_000  # images to choose from: their square is in memory
_NEAR = 0.03  # share of the images that one image stands for
_FEWEST_NEAR = 5
_CLASS_SHARE = 0.5  # weight of the probabilities beside that of the features
_ROWS = 1000  # computed at a time
_AT_ONCE = 64  # gains that are computed again together


def suggest_next(
    features: Tensor,
    probabilities: Tensor | None,
    count: int,
    labelled: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
) -> list[int]:
    """Choose which images to label first.

    Args:
        features: unit image features, float (N, E).
        probabilities: of the classes, float (N, C), if they are known.
        count: how many images to choose.
        labelled: unit features (M, E) of images that have a label already.
        labels: their classes, int64 (M,), or probabilities of these, float (M, C). Without them,
            the probabilities of the others only say how uncertain these are.
        seed: of the draw of 4,000 images to choose from, if there are more.

    Returns:
        Indices of images, the one to label first in front: ``count``, or N if that is fewer. A
        shorter list is the beginning of a longer one.

    Raises:
        UserError: ``count`` is negative, or the sizes do not fit together.
    """
    _check_sizes(features, probabilities, count, labelled, labels)
    if not count or not len(features):
        return []
    places = permutation(len(features), "label next", seed, "")
    pool = torch.tensor(sorted(places[:MOST_CANDIDATES]), dtype=torch.int64)
    points = features.detach().cpu().float()[pool]
    known = points[:0] if labelled is None else labelled.detach().cpu().float()
    weights = torch.ones(len(pool))
    if probabilities is not None:
        chances = probabilities.detach().cpu().float()[pool]
        weights = _entropy(chances)
        if labelled is None or labels is not None:
            of_known = chances[:0] if labels is None else _chances(labels, chances.shape[1])
            points, known = _join(points, chances), _join(known, of_known)
    return pool[_choose(points, weights, known, min(count, len(pool)))].tolist()


def _entropy(probabilities: Tensor) -> Tensor:
    """Return each row's entropy, with a little more, so that sure images count too."""
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return entropy + 1e-3 * math.log(max(2, probabilities.shape[1]))


def _chances(labels: Tensor, classes: int) -> Tensor:
    """Return the probabilities (M, C) of labels (M,), or those that are given."""
    labels = labels.detach().cpu()
    return labels.float() if labels.ndim == 2 else F.one_hot(labels.long(), classes).float()


def _join(features: Tensor, chances: Tensor) -> Tensor:
    """Return unit vectors (N, E + C) of features (N, E) and probabilities (N, C)."""
    parts = features, _CLASS_SHARE**0.5 * chances.sqrt()
    return torch.cat(parts, dim=1) / (1 + _CLASS_SHARE) ** 0.5


def _choose(points: Tensor, weights: Tensor, known: Tensor, count: int) -> list[int]:
    """Choose points one by one, each the one that adds most to the coverage of all points.

    Coverage is submodular: a gain only falls as points are chosen. Gains are therefore computed
    again only for points whose former gain is among the largest (Minoux, 1978).

    Args:
        points: unit features (N, E).
        weights: how much each of them counts (N,).
        known: unit features (M, E) of labelled images.
        count: at most N.
    """
    width = _width(points)
    kernel = _kernel(points, points, width)
    covered = torch.zeros(len(points))
    for rows in known.split(_ROWS) if len(known) else ():
        covered = torch.maximum(covered, _kernel(rows, points, width).amax(dim=0))
    gains = torch.full((len(points),), math.inf)
    chosen: list[int] = []
    while len(chosen) < count:
        is_current = torch.zeros(len(points), dtype=torch.bool)
        while not is_current[best := int(gains.argmax())]:
            largest = gains.topk(min(_AT_ONCE, len(gains))).indices
            largest[-1] = best  # of many equal gains, it need not be among them
            gains[largest] = (kernel[largest] - covered).clamp_(min=0) @ weights
            gains[chosen] = -math.inf
            is_current[largest] = True
        chosen.append(best)
        covered = torch.maximum(covered, kernel[best])
        gains[best] = -math.inf
    return chosen


def _kernel(rows: Tensor, points: Tensor, width: float) -> Tensor:
    """Return the kernel (R, N) between some unit features (R, E) and all points (N, E)."""
    return (rows @ points.T).sub_(1).mul_(2 / width).exp_()


def _width(points: Tensor) -> float:
    """Return the mean squared distance of a point to the last of the points nearest to it."""
    some = points[:: math.ceil(len(points) / _ROWS)]
    near = min(len(points), 1 + max(_FEWEST_NEAR, math.ceil(_NEAR * len(points))))
    likeness = (some @ points.T).topk(near, dim=1).values[:, -1]
    return max(1e-6, 2 - 2 * float(likeness.mean()))


def _check_sizes(
    features: Tensor,
    probabilities: Tensor | None,
    count: int,
    labelled: Tensor | None,
    labels: Tensor | None,
) -> None:
    if count < 0:
        raise UserError(f"count: {count} is negative; give how many images to choose")
    if features.ndim != 2:
        raise UserError(f"features: of shape {tuple(features.shape)}; give (N, E)")
    if probabilities is not None and probabilities.shape[:1] != features.shape[:1]:
        raise UserError(
            f"probabilities: of {len(probabilities)} images, features of {len(features)}; give "
            f"both of the same images"
        )
    if labelled is not None and labelled.shape[1:] != features.shape[1:]:
        raise UserError(
            f"labelled: of shape {tuple(labelled.shape)}, features of {tuple(features.shape)}; "
            f"encode both with the same model"
        )
    if labels is None:
        return
    if labelled is None or len(labels) != len(labelled):
        raise UserError("labels: give one for each row of labelled")
    if probabilities is None:
        return
    classes = probabilities.shape[1]
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(f"labels: of {labels.shape[1]} classes, probabilities of {classes}")
    if (
        labels.ndim == 1
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) < classes
    ):
        raise UserError(f"labels: a class is not from 0 to {classes - 1}")
