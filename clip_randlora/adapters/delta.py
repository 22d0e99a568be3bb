"""What every method's update of a weight is: a module that forms ``dW`` when it is called."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

Shape = tuple[int, int]
"""(out, in) of a weight, or of the part of one that is updated on its own."""


class Delta(nn.Module, ABC):
    """An update of one weight of shape ``shape`` = (out, in).

    It holds the trainable parameters, and is exactly zero at first.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self) -> Tensor:
        """Return dW, (out, in)."""

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return ``weight + strength * dW``, (out, in), of the weight's dtype."""
        return weight + strength * self().to(weight.dtype)
