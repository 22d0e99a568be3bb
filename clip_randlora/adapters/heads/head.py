"""What the heads share: their settings, what they are fitted to, and a linear map to logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clip_randlora.adapters.config import MethodConfig
from clip_randlora.errors import UserError


@dataclass(frozen=True)
class HeadData:
    """What a head is fitted to.

    Attributes:
        features: unit features of V views of N training images, float32 (V, N, E); the first view
            is the image itself, the others are augmented.
        labels: their classes, int64 (N,), in ascending order.
        classes: unit class features of the text tower, float32 (C, E).
        logit_scale: the factor between cosine similarities and zero-shot logits.
        validation: unit features (M, E) and labels (M,) of the data set's validation images, if it
            has any.
    """

    features: Tensor
    labels: Tensor
    classes: Tensor
    logit_scale: float
    validation: tuple[Tensor, Tensor] | None = None

    @property
    def images_per_class(self) -> float:
        """The mean number of training images of a class."""
        return len(self.labels) / len(self.classes)

    def views(self) -> tuple[Tensor, Tensor]:
        """Return all views as features (V N, E), and their labels (V N,)."""
        return self.features.flatten(0, 1), self.labels.repeat(len(self.features))


@dataclass(frozen=True)
class Fit:
    """How a head was fitted: the optimiser's iterations, and notes on what was chosen."""

    iterations: int
    notes: tuple[str, ...] = ()


class HeadConfig(MethodConfig):
    """Settings of a method that trains a head on unit image features (N, E).

    A head is a module from features to logits (N, C). It starts as the zero-shot classifier.

    Attributes:
        uses_validation: whether settings are chosen by the data set's validation images.
    """

    uses_validation: ClassVar[bool] = False

    @property
    def number_of_views(self) -> int:
        """How many views of each training image the head is fitted to."""
        return 1

    @abstractmethod
    def zero_shot_head(self, data: HeadData) -> nn.Module:
        """Return a head that gives the zero-shot logits; ``data`` need not have features yet."""

    @abstractmethod
    def fit(self, head: nn.Module, data: HeadData) -> Fit:
        """Fit what `zero_shot_head` returned, in place."""

    @abstractmethod
    def head_of(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return an empty head of the size of a file's tensors.

        Raises:
            UserError: they are no head of this method.
        """


class LinearHead(nn.Linear):
    """A linear map from unit image features (N, E) to logits (N, C)."""

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor | None = None) -> LinearHead:
        """Copy weights (C, E) and biases (C,) into the head."""
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self


class LinearHeadConfig(HeadConfig):
    """Settings of a head that is one linear map."""

    @property
    def has_bias(self) -> bool:
        """Whether the head adds a trained bias to each logit."""
        return True

    def zero_shot_head(self, data: HeadData) -> LinearHead:
        """Return a head that gives the zero-shot logits."""
        classes = data.classes
        count, width = classes.shape
        head = LinearHead(width, count, bias=self.has_bias, device=classes.device)
        return head.set(data.logit_scale * classes, torch.zeros(count))

    def head_of(self, tensors: Mapping[str, Tensor]) -> LinearHead:
        """Return an empty head of the size of a file's tensors."""
        weight = require_matrix(tensors, "weight")
        return LinearHead(weight.shape[1], weight.shape[0], bias=self.has_bias)


def require_matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a matrix of a head's file.

    Raises:
        UserError: the file has none of this name.
    """
    if name not in tensors or tensors[name].ndim != 2:
        raise UserError(f"tensor head.{name} is missing or has another shape")
    return tensors[name]
