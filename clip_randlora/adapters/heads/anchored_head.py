"""Anchored head: a linear classifier that starts at the text features and is held there.

With unit features f of an image, unit class features T (C, E) of the text tower, and the logit
scale s, the head W (C, E) minimises over the training images::

    mean cross entropy of softmax(s W f)  +  strength / N * ||W - T||^2

N is the mean number of training images of a class. The problem is convex, so the result depends on
no learning rate and no number of steps.

Sources: the start at the text features is LP++'s (Huang et al., CVPR 2024, arXiv 2404.02285), the
penalty on the distance from them CLAP's (Silva-Rodriguez et al., CVPR 2024, arXiv 2312.12730), and
its fall with N is ProLIP's (Fahes et al., arXiv 2410.05270).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clip_randlora.adapters.heads.head import Fit, HeadData, LinearHead, LinearHeadConfig

_MAX_ITERATIONS = 200


class AnchoredHead(LinearHeadConfig):
    """A linear head on frozen features, held at the text features.

    Attributes:
        strength: of the penalty on the distance from the text features.
        views: of each training image: itself, and augmented ones.
    """

    method: Literal["anchored_head"] = "anchored_head"
    strength: float = Field(default=0.1, gt=0)
    views: int = Field(default=5, ge=1)

    @property
    def number_of_views(self) -> int:
        """How many views of each training image the head is fitted to."""
        return self.views

    @property
    def has_bias(self) -> bool:
        """The head has no bias: it stays a set of class vectors."""
        return False

    def fit(self, head: nn.Module, data: HeadData) -> Fit:
        """Fit the head to all views of the training images."""
        assert isinstance(head, LinearHead)
        features, labels = data.views()
        classes, iterations = fit_class_vectors(
            features,
            labels,
            data.classes,
            data.logit_scale,
            self.strength / data.images_per_class,
        )
        head.set(data.logit_scale * classes)
        return Fit(iterations)


def fit_class_vectors(
    features: Tensor,
    labels: Tensor,
    anchor: Tensor,
    logit_scale: float,
    penalty: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, int]:
    """Return the class vectors W (C, E) that minimise the loss above, and L-BFGS's iterations.

    Args:
        features: unit features, float32 (N, E).
        labels: int64 (N,).
        anchor: T, float32 (C, E).
        logit_scale: s.
        penalty: the factor of ``||W - T||^2``.
        label_smoothing: of the cross entropy.
    """
    weight = anchor.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = logit_scale * features @ weight.T
        entropy = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        total = entropy + penalty * (weight - anchor).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), optimizer.state[weight]["n_iter"]
