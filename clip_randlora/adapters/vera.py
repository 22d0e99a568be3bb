"""VeRA: two random matrices that all layers share, scaled by trained vectors.

``dW = alpha * diag(b) B diag(d) A`` with B (out, r) and A (r, in) frozen; trained are b (out) and
d (r) (Kopiczko et al., ICLR 2024, arXiv 2310.11454, eq. 2).
"""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.bases import RandomMatrices, check_size
from clip_randlora.adapters.config import AdapterConfig
from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.adapters.lora import LowRankDelta


class VeRA(AdapterConfig):
    """Two scaled random matrices, shared by all layers (Kopiczko et al., arXiv 2310.11454).

    Attributes:
        rank: r, of the shared matrices; an update has r + out trainable parameters.
        alpha: the update is scaled by alpha; the paper has no such factor.
        initial_d: the start of every entry of the trained vector d.
        as_released: scaled as in the code of the RandLoRA paper for CLIP: the matrices have
            standard deviation 1, and the update is scaled by alpha / r. By default they are Kaiming
            uniform, as in VeRA's paper.
    """

    method: Literal["vera"] = "vera"
    rank: int = Field(default=256, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    initial_d: float = Field(default=0.1, gt=0)
    as_released: bool = False

    @property
    def scale(self) -> float:
        """The factor of the update: alpha, or alpha / r."""
        return self.alpha / self.rank if self.as_released else self.alpha

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in).

        Raises:
            UserError: the random matrices would be too large.
        """
        rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
        check_size("rank", self.rank, rows + columns)
        b, a = (
            RandomMatrices(1, side, self.rank, stream, self.seed or 0)
            for stream, side in enumerate((rows, columns))
        )
        return [VeRADelta(shape, self, b, a) for shape in shapes]


class VeRADelta(LowRankDelta):
    """VeRA's update; trains b (out), zero at first, and d (r).

    B and A are Kaiming uniform for the weight's own size, and corners of the shared matrices;
    `VeRA.as_released` describes another scale.
    """

    linear_in = "b"

    def __init__(self, shape: Shape, config: VeRA, b: RandomMatrices, a: RandomMatrices):
        super().__init__(shape)
        # the shared matrices have standard deviation 1; Kaiming's is sqrt(2 / fan in)
        kaiming = sqrt(2 / config.rank) * sqrt(2 / shape[1])
        self.scale = config.scale * (1.0 if config.as_released else kaiming)
        self.frozen_b, self.frozen_a = b, a
        self.b = nn.Parameter(torch.zeros(shape[0]))
        self.d = nn.Parameter(torch.full((config.rank,), config.initial_d))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        out, width = self.shape
        b, a = (frozen.on(self.b.device)[0] for frozen in (self.frozen_b, self.frozen_a))
        return self.b[:, None] * b[:out] * self.d, a[:width].T
