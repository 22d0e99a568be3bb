"""Tip-Adapter-F: the training images' features as the keys of a cache, trained, beside zero-shot.

With unit features f, keys K (N, E), their one-hot labels L (N, C), and zero-shot logits z::

    logits = z + alpha * exp(-beta (1 - f K^T)) L

K starts at the means of the training images' features over augmented views, and is trained; L is
fixed (Zhang et al., ECCV 2022, arXiv 2207.09519). AdamW, 20 epochs over the
views, learning rate 1e-3 with a cosine and alpha = 1, beta = 5.5 while training are its released
code's. Afterwards alpha and beta are searched on the validation images, where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clip_randlora.adapters.heads.head import Fit, HeadConfig, HeadData, require_matrix
from clip_randlora.errors import UserError

_BATCH = 256
_ALPHAS = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
_BETAS = (1.0, 2.0, 3.5, 5.5, 8.0, 12.0)


class TipAdapterF(HeadConfig):
    """A trained cache of the training images' features (Zhang et al., arXiv 2207.09519).

    Attributes:
        alpha: the factor of the cache's logits.
        beta: how sharply they fall with the distance between features.
        views: of each training image: itself, and augmented ones.
        epochs: passes over all views.
        learning_rate: of AdamW, with a cosine to zero.
    """

    uses_validation: ClassVar[bool] = True

    method: Literal["tip_adapter_f"] = "tip_adapter_f"
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=5.5, gt=0)
    views: int = Field(default=10, ge=1)
    epochs: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)

    @property
    def number_of_views(self) -> int:
        """How many views of each training image the head is fitted to."""
        return self.views

    def zero_shot_head(self, data: HeadData) -> CacheHead:
        """Return a head with an empty cache, which gives the zero-shot logits."""
        return CacheHead(data.logit_scale * data.classes, len(data.labels))

    def fit(self, head: nn.Module, data: HeadData) -> Fit:
        """Fill the cache, train its keys, and search alpha and beta if there is a validation set.

        The views are drawn in a fixed order, so nothing is random.
        """
        assert isinstance(head, CacheHead)
        head.fill(data.features.mean(dim=0), data.labels, self.alpha, self.beta)
        features, labels = data.views()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        batches = order.to(labels.device).split(_BATCH)
        steps = self.epochs * len(batches)
        optimizer = torch.optim.AdamW([head.keys], lr=self.learning_rate, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for step in range(steps):
                rows = batches[step % len(batches)]
                loss = F.cross_entropy(head(features[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if data.validation is None:
            return Fit(steps)
        alpha, beta = _search(head, *data.validation)
        head.alpha.fill_(alpha)
        head.beta.fill_(beta)
        note = f"Tip-Adapter-F: alpha = {alpha:g} and beta = {beta:g}, by the validation images."
        return Fit(steps, (note,))

    def head_of(self, tensors: Mapping[str, Tensor]) -> CacheHead:
        """Return an empty head of the size of a file's tensors."""
        classes, keys = (require_matrix(tensors, name) for name in ("classes", "keys"))
        if keys.shape[1] != classes.shape[1]:
            raise UserError("tensor head.keys has another shape")
        return CacheHead(torch.zeros_like(classes, dtype=torch.float32), len(keys))


class CacheHead(nn.Module):
    """Zero-shot logits plus those of a cache; trains the keys (N, E).

    Attributes:
        classes: class features times the logit scale, (C, E).
        values: one-hot labels of the keys, (N, C).
        alpha, beta: scalars.
    """

    classes: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, classes: Tensor, images: int):
        super().__init__()
        count, width = classes.shape
        self.keys = nn.Parameter(torch.zeros(images, width, device=classes.device))
        self.register_buffer("classes", classes.clone())
        self.register_buffer("values", torch.zeros(images, count, device=classes.device))
        self.register_buffer("alpha", torch.tensor(0.0, device=classes.device))
        self.register_buffer("beta", torch.tensor(1.0, device=classes.device))

    @torch.no_grad()
    def fill(self, keys: Tensor, labels: Tensor, alpha: float, beta: float) -> None:
        """Set the keys (N, E), of which the mean of unit features is normalised, and the rest."""
        self.keys.copy_(F.normalize(keys, dim=-1))
        self.values.copy_(F.one_hot(labels, self.values.shape[1]))
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (M, C) of unit features (M, E)."""
        return features @ self.classes.T + self.alpha * self.cache_logits(features, self.beta)

    def cache_logits(self, features: Tensor, beta: Tensor | float) -> Tensor:
        """Return what the cache adds at alpha = 1, (M, C)."""
        return torch.exp(beta * (features @ self.keys.T - 1)) @ self.values


@torch.no_grad()
def _search(head: CacheHead, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the alpha and beta of the highest accuracy, by the lowest log loss among equals."""
    zero_shot, scores = features @ head.classes.T, {}
    for beta in _BETAS:
        cached = head.cache_logits(features, beta)
        for alpha in _ALPHAS:
            logits = zero_shot + alpha * cached
            correct = (logits.argmax(dim=-1) == labels).sum()
            scores[alpha, beta] = (int(correct), -float(F.cross_entropy(logits, labels)))
    return max(scores, key=scores.__getitem__)
