"""Full fine-tuning: the update itself is trained."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.config import MethodConfig, Tower
from clip_randlora.adapters.delta import Delta, Shape


class Full(MethodConfig):
    """Full fine-tuning: every weight of the chosen towers, biases, norms and embeddings too.

    The statistics of batch norms stay as they are, and so does the logit scale, which belongs to
    neither tower. The difference from the base weights is trained, so weight decay draws the
    weights towards their start, not towards zero.

    Attributes:
        towers: the encoders to train.
    """

    method: Literal["full"] = "full"
    towers: tuple[Tower, ...] = Field(default=("vision", "text"), min_length=1)

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in)."""
        return [FullDelta(shape) for shape in shapes]


class FullDelta(Delta):
    """Trains dW itself, (out, in), zero at first."""

    linear_in = "difference"

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.difference = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        return self.difference
