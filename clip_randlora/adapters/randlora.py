"""RandLoRA: a full-rank update from frozen random bases, of which only diagonals are trained.

For a weight of shape (D, d), D >= d, with bases of rank r and ``n = ceil(d / r)``::

    dW = scale * sum_{i=1..n} B_i diag(lambda_i) A diag(gamma_i)

The bases B_i (D, r) and A (r, d) are frozen, random, and shared by all weights. Trained are lambda
(n, r) and gamma (n, d). Each term has rank r at most, and n of them add up to rank d.

Source: Albert et al., RandLoRA, ICLR 2025, arXiv 2502.00987, section 4.
`clip_randlora.adapters.fast` computes the same faster.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.bases import (
    Bases,
    BasisProvider,
    Distribution,
    SeededBases,
    StoredBases,
    number_of_bases,
)
from clip_randlora.adapters.config import RankedConfig
from clip_randlora.adapters.delta import Delta, Shape


def randlora_delta(
    basis_b: Tensor, basis_a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> Tensor:
    """Form the full-rank update of a weight from frozen bases and trained diagonals.

    ``dW = scale * sum_{i=1..n} B_i diag(lambda_i) A diag(gamma_i)``
    (RandLoRA, arXiv 2502.00987, eq. 4; one ``A`` is shared by all i).

    Args:
        basis_b: (n, D, r), frozen.
        basis_a: (r, d), frozen.
        lam: (n, r), trained.
        gamma: (n, d), trained.
        scale: alpha / r.

    Returns:
        (D, d), of the inputs' dtype; differentiable in ``lam`` and ``gamma``.

    Raises:
        ValueError: the shapes do not fit together, named.
    """
    n, _, r = basis_b.shape
    d = basis_a.shape[-1]
    for name, tensor, shape in (
        ("basis_a", basis_a, (r, d)), ("lam", lam, (n, r)), ("gamma", gamma, (n, d))
    ):  # fmt: skip
        if tensor.shape != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {shape}")
    # einsum contracts from left to right, so the largest operand comes last
    return scale * torch.einsum("nr,rd,nd,nDr->Dd", lam, basis_a, gamma, basis_b)


class RandLoRA(RankedConfig):
    """Full-rank update from frozen random bases (Albert et al., ICLR 2025, arXiv 2502.00987).

    Attributes:
        rank: r, the rank of each base; a higher rank has fewer trainable parameters.
        alpha: the update is scaled by alpha / r.
        bases: distribution of the frozen bases, see `clip_randlora.adapters.bases.random_bases`.
        as_released: as in the code that the paper's authors released for CLIP: ``floor(d / r) + 1``
            bases, one more than here where r divides d; at first lambda is ``1 / max(n, r)`` and
            gamma is zero. By default the start is that of peft's RandLoRA.
    """

    method: Literal["randlora"] = "randlora"
    rank: int = Field(default=6, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    bases: Distribution = "uniform"
    as_released: bool = False

    def make_deltas(self, shapes: Sequence[Shape], bases: Bases | None = None) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in), all from one pair of bases.

        ``bases`` are those of an adapter that was trained elsewhere; by default the seed's.

        Raises:
            UserError: the rank is above that of every weight.
        """
        self.check_rank(shapes)
        rows, columns = max(map(max, shapes)), max(map(min, shapes))
        widest = columns + self.as_released  # floor(d / r) + 1 is ceil((d + 1) / r)
        seeded = SeededBases(self.rank, rows, widest, self.bases, self.seed or 0)
        provider = StoredBases(bases) if bases else seeded
        return [
            RandLoRADelta(shape, self.rank, self.scale, provider, self.as_released)
            for shape in shapes
        ]


class RandLoRADelta(Delta):
    """RandLoRA's update; trains lambda (n, r), zero at first, and gamma (n, d), 1 / max(n, d).

    A weight that is wider than tall is updated through its transpose, so that D >= d.
    `RandLoRA.as_released` describes another number n and another start.
    """

    linear_in = "lam"

    def __init__(
        self,
        shape: Shape,
        rank: int,
        scale: float,
        bases: BasisProvider,
        as_released: bool = False,
    ):
        super().__init__(shape)
        self.rows, self.columns = max(shape), min(shape)  # D and d
        self.is_transposed = shape[0] < shape[1]
        self.scale, self.bases = scale, bases
        n = self.count = number_of_bases(self.columns + as_released, rank)
        lam, gamma = (1 / max(n, rank), 0.0) if as_released else (0.0, 1 / max(n, self.columns))
        self.lam = nn.Parameter(torch.full((n, rank), lam))
        self.gamma = nn.Parameter(torch.full((n, self.columns), gamma))

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        # asked for at each use: the parameters may move to another device
        pair = self.bases.pair(self.lam.dtype, self.lam.device)
        bases = pair.sliced(self.rows, self.columns, self.count)
        update = randlora_delta(*bases, self.lam, self.gamma, self.scale)
        return update.T if self.is_transposed else update
