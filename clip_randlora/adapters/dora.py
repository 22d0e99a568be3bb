"""DoRA: the length and the direction of each row of a weight are updated on their own.

For a weight W (out, in), with LoRA's up (out, r) and down (r, in)::

    V = W + scale * up @ down
    W + dW = diag(m / ||V||) V,    m = ||W|| + magnitude_change

The norms are those of the rows, one for each output, as peft has it. Trained are up, down and
magnitude_change (out), zero at first. So dW is zero at first, m starts at the norms of W, as in the
paper, and weight decay draws m towards them. The gradient treats ||V|| as a constant (section 4.3).

Source: Liu et al., DoRA, ICML 2024, arXiv 2402.09353, eq. 5.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.adapters.lora import LoRA, initial_factors


class DoRA(LoRA):
    """Low-rank update of the rows' directions, and of their lengths (Liu et al., arXiv 2402.09353).

    Attributes:
        rank: r, the rank of the update of the directions.
        alpha: that update is scaled by alpha / r.
    """

    method: Literal["dora"] = "dora"  # type: ignore[assignment]

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in), from one stream of the seed.

        Raises:
            UserError: the rank is above that of every weight.
        """
        self.check_rank(shapes)
        generator = torch.Generator().manual_seed(self.seed or 0)
        return [DoRADelta(shape, self.rank, self.scale, generator) for shape in shapes]


class DoRADelta(Delta):
    """DoRA's update; trains up (out, r), down (r, in) and magnitude_change (out).

    up and magnitude_change are zero at first, down is Kaiming uniform.
    """

    def __init__(self, shape: Shape, rank: int, scale: float, generator: torch.Generator):
        super().__init__(shape)
        self.scale = scale
        self.up, self.down = initial_factors(shape, rank, generator)
        self.magnitude_change = nn.Parameter(torch.zeros(shape[0]))

    def update_of(self, weight: Tensor) -> Tensor:
        """Return dW, (out, in), for a frozen weight (out, in)."""
        weight = weight.to(self.up.dtype)
        v = torch.addmm(weight, self.up, self.down, alpha=self.scale)
        smallest = torch.finfo(v.dtype).tiny  # a row of zeros stays one
        length = v.detach().norm(dim=1).clamp_min(smallest)
        start = weight.norm(dim=1).clamp_min(smallest)
        return ((start + self.magnitude_change) / length)[:, None] * v - weight
