"""Rank labels by how likely they are wrong: confident learning on out-of-fold probabilities.

An image is judged by heads that were fitted to the other images alone, on frozen features; twice.
With its probabilities p and its given class y, and the threshold t_c of a class, the mean of p_c
over the images that are labelled c, the first time says of a label that it may be wrong (Northcutt,
Jiang and Chuang, JAIR 2021, arXiv 1911.00068, eq. 2):

    if the largest p_c of those with p_c >= t_c is of another class

The second time, the heads are fitted without those images. A label is then listed if the largest
p_c is of another class. The list is ordered by p_y, the self-confidence (section 3.2 there).

The certainty is Bayes' rule for a share w of wrong labels, spread evenly over the C - 1 other
classes. s is p_y after a temperature that makes the answers of all classes calibrated:

    certainty = w (1 - s) / (C - 1) / (w (1 - s) / (C - 1) + (1 - w) s)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from clip_randlora.adapters.heads.anchored_head import fit_class_vectors
from clip_randlora.adapters.heads.gda import gaussian_logits
from clip_randlora.checking.findings import WrongLabel
from clip_randlora.utils.progress import OnProgress, report_progress

FOLDS = 5
_DRAWS = 2  # of the folds, whose answers are averaged
_ONE_DRAW = 5000  # images, of which one draw is enough
_PENALTY = 0.1  # of the anchored head, as its default
_WRONG = 0.05  # w
_LEAST = 0.03  # certainty of a label that is listed
_TEMPERATURES = [2 ** (power / 4) for power in range(-8, 17)]


def find_wrong_labels(
    features: Tensor,
    labels: Tensor,
    classes: Tensor,
    logit_scale: float,
    groups: Tensor | None = None,
    seed: int = 1,
    on_progress: OnProgress | None = None,
) -> list[WrongLabel]:
    """Return the labels that are likely wrong, the surest first.

    Args:
        features: unit features of V views of N images, float32 (N, V, E).
        labels: given classes, int64 (N,).
        classes: unit class features of the text tower, float32 (C, E).
        logit_scale: the factor between cosine similarities and zero-shot logits.
        groups: int64 (N,): images of the same number are judged by the same heads, which saw none
            of them; by default every image has its own.
        seed: of the folds.
        on_progress: told how many heads are fitted.
    """
    arguments = (features, labels, classes, logit_scale, groups)
    first = out_of_fold(*arguments, seed=seed, on_progress=on_progress)
    kept = _confident_class(first, labels) == labels
    second = out_of_fold(*arguments, kept=kept, seed=seed, on_progress=on_progress)
    probabilities = torch.where(second.isnan(), first, second)
    suggested = probabilities.argmax(dim=1)
    certainty = _certainty(probabilities, labels)
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    rows = ((suggested != labels) & (certainty >= _LEAST)).nonzero().flatten()
    rows = rows[own[rows].argsort(stable=True)]
    return [
        WrongLabel(row, int(labels[row]), int(suggested[row]), float(certainty[row]))
        for row in rows.tolist()
    ]


def _certainty(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the probability that each label is wrong, float32 (N,); NaN if it was not judged.

    The temperature divides log odds of single classes, so that the order is that of p_y.
    """
    odds = probabilities.double().logit(eps=1e-12)
    given = one_hot(labels, probabilities.shape[1]).double()
    is_judged = ~odds.isnan().any(dim=1)
    losses = [
        float(binary_cross_entropy_with_logits(odds[is_judged] / t, given[is_judged]))
        for t in _TEMPERATURES
    ]
    temperature = _TEMPERATURES[losses.index(min(losses))]
    right = (odds.gather(1, labels[:, None]).squeeze(1) / temperature).sigmoid()
    wrong = _WRONG * (1 - right) / max(probabilities.shape[1] - 1, 1)
    return (wrong / (wrong + (1 - _WRONG) * right)).float()


def _confident_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the class that each image counts as, int64 (N,).

    It is the likeliest of those that reach their threshold, and the given one if none does or if
    the image could not be judged.

    Args:
        probabilities: float32 (N, C), NaN where an image could not be judged.
        labels: given classes, int64 (N,).
    """
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    is_judged = ~own.isnan()
    counts = torch.bincount(labels[is_judged], minlength=probabilities.shape[1])
    sums = own.new_zeros(len(counts)).index_add(0, labels[is_judged], own[is_judged])
    thresholds = torch.where(counts > 0, sums / counts, torch.inf)
    confident = torch.where(probabilities >= thresholds, probabilities, -1.0)
    highest, likeliest = confident.max(dim=1)
    return torch.where(highest >= 0, likeliest, labels)


def out_of_fold(
    features: Tensor,
    labels: Tensor,
    classes: Tensor,
    logit_scale: float,
    groups: Tensor | None = None,
    kept: Tensor | None = None,
    seed: int = 1,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Return each image's probabilities, float32 (N, C), by heads that were not fitted to it.

    The logarithms of the probabilities of two heads, GDA and the anchored head, are averaged. They
    are NaN for an image whose class has no image in another group: nothing can be said of it.

    Args:
        features, labels, classes, logit_scale, groups, seed, on_progress: as for
            `find_wrong_labels`.
        kept: bool (N,): the heads are fitted to these images alone; by default to all.
    """
    groups = torch.arange(len(labels)) if groups is None else groups
    stage = "judging labels" if kept is None else "judging labels again"
    kept = torch.ones_like(labels, dtype=torch.bool) if kept is None else kept
    draws = _DRAWS if len(labels) < _ONE_DRAW else 1
    logs = features.new_zeros(len(labels), len(classes))
    folds = [
        (folds, fold)
        for turn in range(draws)
        for folds in [_draw_folds(labels, groups, seed + turn)]
        for fold in range(FOLDS)
    ]
    for drawn, fold in report_progress(folds, stage, len(folds), on_progress):
        inside, outside = (drawn != fold) & kept, drawn == fold
        if not outside.any() or not inside.any():
            logs[outside] = torch.nan
            continue
        views = features[inside].flatten(0, 1)
        repeated = labels[inside].repeat_interleave(features.shape[1])
        judged = features[outside]
        logs[outside] += sum(
            logits.log_softmax(dim=-1).mean(dim=1) / (2 * draws)
            for logits in _fit_and_ask(views, repeated, classes, logit_scale, judged)
        )
        is_known = torch.bincount(labels[inside], minlength=len(classes)) > 0
        logs[outside & ~is_known[labels]] = torch.nan
    return logs.softmax(dim=-1)


def _fit_and_ask(
    features: Tensor, labels: Tensor, classes: Tensor, logit_scale: float, judged: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits of both heads for the views of the judged images."""
    counts = torch.bincount(labels, minlength=len(classes))
    present = counts > 0
    weight, bias = gaussian_logits(features, labels, len(classes))
    gaussian = (judged @ weight.T + bias).masked_fill(~present, -torch.inf)
    penalty = _PENALTY / (len(labels) / len(classes))
    vectors, _ = fit_class_vectors(features, labels, classes, logit_scale, penalty)
    return gaussian, logit_scale * judged @ vectors.T


def _draw_folds(labels: Tensor, groups: Tensor, seed: int) -> Tensor:
    """Return the fold of each image, int64 (N,): classes are spread evenly, groups stay whole."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels)) % FOLDS
    first = torch.full((int(groups.max()) + 1,), len(labels)).scatter_reduce(
        0, groups, torch.arange(len(labels)), "amin"
    )
    return folds[first[groups]]
