"""What a trained weight update is, and those that are no method of their own.

A delta stands for an update ``dW`` of one weight of shape (out, in). It holds the trained
numbers, starts at exactly zero, and forms ``dW`` whenever it is called.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Delta(nn.Module, ABC):
    """An update of one weight of shape ``shape`` = (out, in); called, it returns that update."""

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self) -> Tensor:
        """Return dW, (out, in)."""

    def is_cheap(self, dtype: torch.dtype) -> bool:
        """Tell whether to form it again, for a weight in ``dtype``, is worth the memory."""
        return False

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return ``weight + strength * dW``, (out, in), of the weight's dtype."""
        return weight + strength * self().to(weight.dtype)


class FullDelta(Delta):
    """Full fine-tuning's update: trains dW itself, (out, in), zero at first."""

    def __init__(self, shape: tuple[int, int]):
        super().__init__(shape)
        self.difference = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        return self.difference


class WeightedSum(Delta):
    """Updates of one weight added with fixed weights (task arithmetic, arXiv 2212.04089)."""

    def __init__(self, shape: tuple[int, int], terms: list[Delta], weights: tuple[float, ...]):
        super().__init__(shape)
        self.terms, self.weights = nn.ModuleList(terms), weights

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        return sum(weight * term() for weight, term in zip(self.weights, self.terms, strict=True))


def largest_sides(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the largest of the weights' larger sides, and of their smaller sides."""
    return max(max(shape) for shape in shapes), max(min(shape) for shape in shapes)
