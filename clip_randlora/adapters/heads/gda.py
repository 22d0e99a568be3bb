"""GDA: a Gaussian for each class on the frozen features, added to the zero-shot logits.

All classes share one covariance S, so the log likelihood ratios are linear in the features. With
the class means m_c, unit features f, zero-shot logits z and C classes::

    logit_c = z_c + alpha * (f P m_c - m_c P m_c / 2 - log C)
    P = E ((n - 1) S + trace(S) I)^-1

P is the ridge estimate of the inverse of S from n vectors of length E (Wang et al., ICLR 2024,
arXiv 2402.04087; P as in their code). Nothing is trained by gradients.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.heads.head import Fit, HeadData, LinearHead, LinearHeadConfig
from clip_randlora.adapters.heads.model_selection import cross_validated, describe_choice

_ALPHAS = tuple(10.0 ** (power / 2) for power in range(-8, 5))
_ALPHA_WITHOUT_FOLDS = 1.0


class GDA(LinearHeadConfig):
    """Gaussian discriminant analysis beside zero-shot (Wang et al., arXiv 2402.04087).

    Attributes:
        alpha: the factor of the Gaussians' logits. None chooses it by the validation images, if
            the data set has any, else by cross-validation on the training images; with a single
            image of a class it is 1.
        views: of each training image: itself, and augmented ones.
    """

    uses_validation: ClassVar[bool] = True

    method: Literal["gda"] = "gda"
    alpha: float | None = Field(default=None, ge=0)
    views: int = Field(default=5, ge=1)

    @property
    def number_of_views(self) -> int:
        """How many views of each training image the head is fitted to."""
        return self.views

    def fit(self, head: nn.Module, data: HeadData) -> Fit:
        """Estimate the Gaussians from all views of the training images, and choose alpha."""
        assert isinstance(head, LinearHead)
        alpha, notes = self.alpha, []
        if alpha is None:
            alpha, how = cross_validated(_ALPHAS, _logits, data, _ALPHA_WITHOUT_FOLDS)
            notes.append(describe_choice("GDA: alpha", alpha, how))
        weight, bias = gaussian_logits(*data.views(), len(data.classes))
        head.set(data.logit_scale * data.classes + alpha * weight, alpha * bias)
        return Fit(1, tuple(notes))


def gaussian_logits(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the weights (C, E) and biases (C,) of the Gaussians' logits.

    Args:
        features: unit features, float32 (N, E); every class has at least one.
        labels: int64 (N,).
        classes: C.
    """
    count, width = features.shape
    sums = features.new_zeros(classes, width).index_add(0, labels, features)
    means = sums / torch.bincount(labels, minlength=classes)[:, None]
    centred = features - means[labels]
    scatter = centred.T @ centred  # (n - 1) S
    ridge = scatter.trace() / max(count - 1, 1) + torch.finfo(features.dtype).eps
    matrix = scatter + ridge * torch.eye(width, device=features.device)
    weight = width * torch.linalg.solve(matrix, means.T).T
    return weight, -(weight * means).sum(dim=1) / 2 - math.log(classes)


def _logits(train: HeadData, features: Tensor) -> list[Tensor]:
    """Return the logits of features (M, E) for every candidate of alpha."""
    weight, bias = gaussian_logits(*train.views(), len(train.classes))
    zero_shot = train.logit_scale * features @ train.classes.T
    gaussian = features @ weight.T + bias
    return [zero_shot + alpha * gaussian for alpha in _ALPHAS]
