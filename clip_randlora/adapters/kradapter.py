"""KRAdapter: a full-rank update whose rows are outer products of two trained vectors.

For a weight whose smaller side is m and whose larger side is M, with ``r = floor(sqrt(m))`` and
``k = ceil(M / r)``::

    dW[i, a r + b] = alpha * v[i, a] * u[i, b]

Trained are u (m, r), zero at first, and v (m, k), Kaiming uniform. Each row has r k >= M entries,
of which the first M are kept. A weight that is taller than wide is updated through its transpose.
The matrix of all rows is the Khatri-Rao product of v and u, and has rank m in general. There is no
rank to choose.

Source: Albert et al., ICCV 2025, arXiv 2508.00230; alpha = 2 and the start of v are those of the
authors' code (PaulAlbert31/KRAdapter).
"""

from collections.abc import Sequence
from math import ceil, isqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.config import AdapterConfig
from clip_randlora.adapters.delta import Delta, Shape


class KRAdapter(AdapterConfig):
    """Full-rank update by a Khatri-Rao product (Albert et al., ICCV 2025, arXiv 2508.00230).

    Attributes:
        alpha: the update is scaled by alpha.
    """

    method: Literal["kradapter"] = "kradapter"
    alpha: float = Field(default=2.0, gt=0)

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in), from one stream of the seed."""
        generator = torch.Generator().manual_seed(self.seed or 0)
        return [KRAdapterDelta(shape, self.alpha, generator) for shape in shapes]


class KRAdapterDelta(Delta):
    """KRAdapter's update; trains u (m, r), zero at first, and v (m, k), Kaiming uniform."""

    linear_in = "u"

    def __init__(self, shape: Shape, alpha: float, generator: torch.Generator):
        super().__init__(shape)
        self.alpha = alpha
        rows, self.columns = min(shape), max(shape)  # m and M
        r = isqrt(rows)
        self.u = nn.Parameter(torch.zeros(rows, r))
        self.v = nn.Parameter(torch.empty(rows, ceil(self.columns / r)))
        nn.init.kaiming_uniform_(self.v, a=5, generator=generator)  # a = 5 as in the authors' code

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        products = self.v[:, :, None] * (self.alpha * self.u)[:, None, :]  # (m, k, r)
        update = products.flatten(1)[:, : self.columns]
        return update.T if self.shape[0] > self.shape[1] else update
