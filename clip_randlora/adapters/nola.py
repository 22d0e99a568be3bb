"""NoLA: both factors of a low-rank update are combinations of frozen random matrices.

``dW = alpha / r * (sum_j beta_j B_j) (sum_i alpha_i A_i)`` with B_j (out, r) and A_i (r, in)
frozen. Trained are the coefficients (Koohpayegani et al., ICLR 2024, arXiv 2310.02556, 2.1).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.bases import RandomMatrices, check_size
from clip_randlora.adapters.config import RankedConfig
from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.adapters.lora import LowRankDelta


class NoLA(RankedConfig):
    """Low-rank factors combined of random ones (Koohpayegani et al., arXiv 2310.02556).

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / r.
        number_of_bases: k random matrices are combined to each of the two factors; an update has
            2 k trainable parameters.
    """

    method: Literal["nola"] = "nola"
    rank: int = Field(default=1, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    number_of_bases: int = Field(default=1024, ge=1)

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in).

        Raises:
            UserError: the rank is above that of every weight, or the random matrices would be too
                large.
        """
        self.check_rank(shapes)
        rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
        check_size("number_of_bases", self.number_of_bases, (rows + columns) * self.rank)
        up, down = (
            RandomMatrices(self.number_of_bases, side, self.rank, stream, self.seed or 0)
            for stream, side in enumerate((rows, columns))
        )
        return [NoLADelta(shape, self, up, down) for shape in shapes]


class NoLADelta(LowRankDelta):
    """NoLA's update; trains beta (k), zero at first, and alpha (k), 1 / k at first.

    B_j and A_i are uniform with standard deviation 1, and corners of the same random matrices for
    all layers.
    """

    linear_in = "beta"

    def __init__(self, shape: Shape, config: NoLA, up: RandomMatrices, down: RandomMatrices):
        super().__init__(shape)
        self.scale, self.rank = config.scale, config.rank
        self.frozen_up, self.frozen_down = up, down
        count = config.number_of_bases
        self.beta = nn.Parameter(torch.zeros(count))
        self.alpha = nn.Parameter(torch.full((count,), 1 / count))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        out, width = self.shape
        up = self._combine(self.beta, self.frozen_up, out)
        return up, self._combine(self.alpha, self.frozen_down, width).T

    def _combine(self, coefficients: Tensor, matrices: RandomMatrices, rows: int) -> Tensor:
        """Return the sum of the matrices' first rows, (rows, r), each times its coefficient."""
        flat = matrices.on(coefficients.device).flatten(1)[:, : rows * self.rank]
        return torch.mv(flat.T, coefficients).view(rows, self.rank)
