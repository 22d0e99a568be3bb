"""Whether an image is of none of a run's classes.

The score of an image x, the higher the more it is of one of the classes, is::

    score(x) = (max_c z_c - mean_c z_c) / s  +  max_i f(x) . f_i

z are the logits of its answer at temperature 1 and s is the logit scale, so the first term is by
how much the cosine of the best class exceeds the mean. It is the maximum concept match (Ming et
al., Delving into Out-of-Distribution Detection with Vision-Language Representations, NeurIPS 2022)
at a high temperature. f are the zero-shot features of the image and of training images i, so the
second term is the distance to the nearest neighbour (Sun et al., Out-of-Distribution Detection with
Deep Nearest Neighbors, ICML 2022). `docs/data.md` compares it with others.
"""

from __future__ import annotations

import torch
from torch import Tensor


def margins(logits: Tensor) -> Tensor:
    """Return by how much the largest of the logits (N, C) exceeds their mean, (N,).

    Log probabilities of the same temperature give the same.
    """
    return logits.max(dim=1).values - logits.mean(dim=1)


def nearest(features: Tensor, others: Tensor, *, same: bool = False) -> Tensor:
    """Return the cosine of each unit feature (N, E) with the nearest of others (M, E), (N,).

    Args:
        same: the others are the same images in the same order, none of which is its own neighbour.
    """
    found = []
    for start in range(0, len(features), 1024):
        cosines = features[start : start + 1024] @ others.T
        if same:
            cosines.diagonal(start).fill_(-1.0)
        found.append(cosines.max(dim=1).values)
    return torch.cat(found) if found else features.new_zeros(0)


def lower_quantile(scores: Tensor, kept: float) -> float:
    """Return the score that a share ``kept`` of the scores (N,) reaches or exceeds."""
    return float(torch.quantile(scores.double(), 1 - kept, interpolation="lower"))


def detection(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """Return how well scores tell images of the classes from others.

    Args:
        known, unknown: scores of images of the classes, and of others.

    Returns:
        ``auroc``, the chance that an image of a class has the higher score of two; and ``fpr95``,
        the share of the others that are taken for one where 95 % of the known images are.
    """
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(known) + [0] * len(unknown)
    auroc = float(roc_auc_score(labels, torch.cat([known, unknown]).numpy()))
    threshold = lower_quantile(known, 0.95)
    return {"auroc": auroc, "fpr95": float((unknown >= threshold).double().mean())}
