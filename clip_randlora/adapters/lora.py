"""LoRA: a low-rank update, ``dW = scale * up @ down``; and CLIP-LoRA's settings of it."""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.config import RankedConfig, Target
from clip_randlora.adapters.delta import Delta, Shape


class LoRA(RankedConfig):
    """Low-rank update (Hu et al., ICLR 2022, arXiv 2106.09685).

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / r.
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=32.0, gt=0)

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in), from one stream of the seed.

        Raises:
            UserError: the rank is above that of every weight.
        """
        self.check_rank(shapes)
        generator = torch.Generator().manual_seed(self.seed or 0)
        return [LoRADelta(shape, self.rank, self.scale, generator) for shape in shapes]


class CLIPLoRA(LoRA):
    """Low-rank update of the attention, as CLIP-LoRA has it (arXiv 2405.18541, section 4).

    The same as theirs: rank 2 on q, k and v of all blocks of both towers, the scale alpha / sqrt(r)
    of their code, the start and the learning rate. Different: their dropout of 0.25 on the inputs
    of the update has no counterpart, because here the update is added to the weight. The number of
    steps, the prompts and the augmentation are those of `TrainConfig`.

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / sqrt(r).
    """

    method: Literal["clip_lora"] = "clip_lora"  # type: ignore[assignment]
    targets: tuple[Target, ...] = Field(default=("q", "k", "v"), min_length=1)
    rank: int = Field(default=2, ge=1)
    alpha: float = Field(default=1.0, gt=0)

    @property
    def scale(self) -> float:
        """The factor alpha / sqrt(r) of the update."""
        return self.alpha / sqrt(self.rank)


def initial_factors(
    shape: Shape, rank: int, generator: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """Return up (out, r), zero, and down (r, in), Kaiming uniform."""
    down = torch.empty(rank, shape[1])
    nn.init.kaiming_uniform_(down, a=sqrt(5), generator=generator)
    return nn.Parameter(torch.zeros(shape[0], rank)), nn.Parameter(down)


class LowRankDelta(Delta):
    """An update ``scale * up @ down``; a method says what its two factors are."""

    scale: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        up, down = self.factors()
        return self.scale * (up @ down)

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return ``weight + strength * dW``, (out, in), in one product where dtypes allow it."""
        up, down = self.factors()
        if weight.dtype != up.dtype:
            return super().added_to(weight, strength)
        return torch.addmm(weight, up, down, alpha=strength * self.scale)


class LoRADelta(LowRankDelta):
    """LoRA's update ``scale * up @ down`` (arXiv 2106.09685, eq. 3).

    Trains down (r, in), Kaiming uniform at first, and up (out, r), zero at first.
    """

    linear_in = "up"

    def __init__(self, shape: Shape, rank: int, scale: float, generator: torch.Generator):
        super().__init__(shape)
        self.scale = scale
        self.up, self.down = initial_factors(shape, rank, generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        return self.up, self.down
