"""What every method's update of a weight is: a module that forms ``dW``."""

from typing import ClassVar

import torch
from torch import Tensor, nn

Shape = tuple[int, int]
"""(out, in) of a weight, or of the part of one that is updated on its own."""


class Delta(nn.Module):
    """An update of one weight of shape ``shape`` = (out, in).

    It holds the trainable parameters, and is exactly zero at first. A method defines `forward`;
    or `update_of`, if dW depends on the weight.

    Attributes:
        linear_in: the trainable parameter that dW is proportional to, if there is one.
    """

    linear_in: ClassVar[str | None] = None

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape

    def forward(self) -> Tensor:
        """Return dW, (out, in), if it is the same for every weight."""
        raise NotImplementedError(f"{type(self).__name__} depends on the weight: call update_of")

    def update_of(self, weight: Tensor) -> Tensor:
        """Return dW, (out, in), for a frozen weight (out, in)."""
        return self()

    @torch.no_grad()
    def scale_by(self, factor: float) -> None:
        """Multiply dW by a factor, for good; only if `linear_in` says how."""
        assert self.linear_in is not None
        getattr(self, self.linear_in).mul_(factor)

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return ``weight + strength * dW``, (out, in), of the weight's dtype."""
        return weight + strength * self.update_of(weight).to(weight.dtype)
