"""Frozen random bases that come back bit for bit, so that no adapter file has to store them.

Every number is made from the raw 64-bit output of the Philox counter-based generator, whose
stream NumPy guarantees (unlike that of its distributions), by integer arithmetic and one float32
product: the same bits on every device and under every version of torch. Base ``i`` has a stream
of its own and fills its rows in order, so the base of a smaller layer is a prefix of a larger
one's: slicing one pair for the largest shapes serves every layer.

Source: RandLoRA (Albert et al., ICLR 2025, arXiv 2502.00987). One departure: under the sparse
distributions only B is sparse, and A holds +-1. A column of A that is all zeros makes that column
of the update zero (at r = 6, one column in eleven with s = 3, and four in five with s = sqrt(768)),
so a sparse A would take away the full rank that the method is for.
"""

from functools import lru_cache
from math import ceil, sqrt
from typing import Literal, NamedTuple

import numpy as np
import torch

Distribution = Literal["uniform", "sparse", "very_sparse"]

_CPU = torch.device("cpu")
_STREAM_OF_A = 0  # base B_i draws from stream i + 1


class Bases(NamedTuple):
    """One pair of frozen bases; their entries have standard deviation 1.

    ``b``: (n, D, r), the bases ``B_i``; ``a``: (r, d), the one basis that all of them share.
    """

    b: torch.Tensor
    a: torch.Tensor

    def sliced(self, rows: int, columns: int) -> "Bases":
        """Return the views that a weight of shape (rows, columns), rows >= columns, uses."""
        count = number_of_bases(columns, self.a.shape[0])
        return Bases(self.b[:count, :rows], self.a[:, :columns])


def number_of_bases(columns: int, rank: int) -> int:
    """Return ``n = ceil(d / r)``, the fewest rank-r bases that sum to full rank d."""
    return ceil(columns / rank)


@lru_cache(maxsize=16)
def random_bases(
    rank: int,
    rows: int,
    columns: int,
    distribution: Distribution = "uniform",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> Bases:
    """Generate, once per process, the pair for the largest adapted shapes.

    Args:
        rank: r, at least 1.
        rows: D, the largest of the adapted weights' larger sides.
        columns: d, the largest of their smaller sides; ``n = ceil(d / r)`` bases are made.
        distribution: ``uniform``; or ternary entries {-1, 0, 1} of B, each sign with probability
            ``1 / (2 s)``: ``sparse`` has s = 3, ``very_sparse`` has s = sqrt(d); A is then +-1.
        seed: key of the bit stream, 0 to 2^64 - 1.
        dtype: the entries are made in float32 and then rounded to this.
        device: where to put them.

    Returns:
        Tensors of standard deviation 1; shared by all callers, so not to be written to.
    """
    if dtype != torch.float32 or device != _CPU:
        made = random_bases(rank, rows, columns, distribution, seed)
        return Bases(made.b.to(device, dtype), made.a.to(device, dtype))
    count = number_of_bases(columns, rank)
    b = np.empty((rows, count, rank), dtype=np.float32)  # laid out so that (D, n r) is a view
    for i in range(count):
        bits = _raw_uint32(seed, i + 1, rows * rank)
        b[:, i] = _entries_of_b(bits, distribution, columns).reshape(rows, rank)
    bits = _raw_uint32(seed, _STREAM_OF_A, columns * rank)
    a = _uniform(bits) if distribution == "uniform" else _ternary(bits, 1.0)
    # A is drawn column by column, so that a smaller layer's A is a prefix too
    return Bases(
        torch.from_numpy(b).transpose(0, 1), torch.from_numpy(a.reshape(columns, rank).T.copy())
    )


def _raw_uint32(seed: int, stream: int, count: int) -> np.ndarray:
    """Return ``count`` uniform 32-bit integers: each raw 64-bit word's low half, then its high."""
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=-1)
    return halves.reshape(-1)[:count].astype(np.uint32)


def _entries_of_b(bits: np.ndarray, distribution: Distribution, columns: int) -> np.ndarray:
    if distribution == "uniform":
        return _uniform(bits)
    return _ternary(bits, 3.0 if distribution == "sparse" else sqrt(columns))


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Map bits to (-sqrt(3), sqrt(3)): odd 25-bit integers over 2^24, exact in float32."""
    odd = 2 * (bits >> np.uint32(8)).astype(np.int64) + 1 - 2**24
    return odd.astype(np.float32) * np.float32(2**-24) * np.float32(sqrt(3))


def _ternary(bits: np.ndarray, sparsity: float) -> np.ndarray:
    """Map bits to {-1, 0, 1} / std: each sign with probability 1 / (2 s), so std = 1 / sqrt(s)."""
    threshold = int(2**32 / (2 * sparsity))
    positive = bits >= np.uint32(2**32 - threshold)
    negative = bits < np.uint32(threshold)
    return (positive.astype(np.float32) - negative) * np.float32(sqrt(sparsity))
