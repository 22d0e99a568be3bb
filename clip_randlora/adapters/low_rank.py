"""Updates that are a product of two thin factors: LoRA's, VeRA's and NoLA's."""

from abc import abstractmethod
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn

from clip_randlora.adapters.bases import random_matrices
from clip_randlora.adapters.config import LoRA, NoLA, VeRA
from clip_randlora.adapters.delta import Delta


class LowRankDelta(Delta):
    """An update ``scale * up @ down``; a method says what its two factors are."""

    scale: float

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        return torch.mm(*self.factors()).mul(self.scale)

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return ``weight + strength * dW``, (out, in), in one product where dtypes allow it."""
        up, down = self.factors()
        if weight.dtype != up.dtype:
            return super().added_to(weight, strength)
        return torch.addmm(weight, up, down, alpha=strength * self.scale)


class LoRADelta(LowRankDelta):
    """LoRA's update ``scale * up @ down`` (Hu et al., arXiv 2106.09685, eq. 3).

    Trains down (r, in), Kaiming uniform from the config's seed, and up (out, r), zero at first.
    """

    def __init__(self, shape: tuple[int, int], config: LoRA, generator: torch.Generator):
        super().__init__(shape)
        self.scale = config.scale
        self.down = nn.Parameter(torch.empty(config.rank, shape[1]))
        self.up = nn.Parameter(torch.zeros(shape[0], config.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5, generator=generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        return self.up, self.down


class VeRADelta(LowRankDelta):
    """VeRA's update ``alpha * diag(b) B diag(d) A`` (Kopiczko et al., arXiv 2310.11454, eq. 2).

    B (out, r) and A (r, in) are frozen, Kaiming uniform for the weight's own size, and corners of
    the same two random matrices for all layers. Trains b (out), zero at first, and d (r).
    """

    def __init__(self, shape: tuple[int, int], config: VeRA, largest: tuple[int, int]):
        """Make a fresh update; ``largest`` are the most rows and columns of all weights."""
        super().__init__(shape)
        # both matrices are drawn with standard deviation 1; Kaiming's is sqrt(2 / fan in)
        self.scale = config.scale * sqrt(2 / config.rank) * sqrt(2 / shape[1])
        self.matrices = [
            partial(random_matrices, 1, side, config.rank, stream, config.seed)
            for stream, side in enumerate(largest)
        ]
        self.b = nn.Parameter(torch.zeros(shape[0]))
        self.d = nn.Parameter(torch.full((config.rank,), config.initial_d))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        frozen_b, frozen_a = (made(device=self.b.device)[0] for made in self.matrices)
        rows, columns = self.shape
        return self.b[:, None] * frozen_b[:rows] * self.d, frozen_a[:columns].T


class NoLADelta(LowRankDelta):
    """NoLA's update ``alpha / r * (sum_j beta_j B_j) (sum_i alpha_i A_i)`` (arXiv 2310.02556, 2.1).

    A_i (r, in) and B_j (out, r) are frozen, uniform of standard deviation 1, and corners of the
    same random matrices for all layers. Trains the coefficients beta, zero at first, and alpha,
    1 / k at first, as many of each as there are matrices.
    """

    def __init__(self, shape: tuple[int, int], config: NoLA, largest: tuple[int, int]):
        """Make a fresh update; ``largest`` are the most rows and columns of all weights."""
        super().__init__(shape)
        self.scale, self.rank = config.scale, config.rank
        count = config.number_of_bases
        self.matrices = [
            partial(random_matrices, count, side, config.rank, stream, config.seed)
            for stream, side in enumerate(largest)
        ]
        self.beta = nn.Parameter(torch.zeros(count))
        self.alpha = nn.Parameter(torch.full((count,), 1 / count))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in)."""
        coefficients = zip((self.beta, self.alpha), self.matrices, self.shape, strict=True)
        up, down = (
            torch.mv(made(device=of.device).flatten(1)[:, : side * self.rank].T, of).view(side, -1)
            for of, made, side in coefficients
        )
        return up, down.T
