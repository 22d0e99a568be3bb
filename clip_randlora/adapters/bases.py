"""Frozen random bases that come back bit for bit, so that no adapter file has to store them.

Every entry is made from the raw 64-bit output of the Philox counter-based generator by integer
arithmetic and one float32 product. NumPy guarantees that raw output, unlike that of its
distributions, so the bits are the same on every device and under every version of torch.

The bases B_i are the columns of one matrix (D, n r), in peft's order: column ``k n + i`` is the
k-th column of B_i. Each run of r columns has a bit stream of its own, which fills its rows in
order. So the matrix of a smaller layer is a corner of that of a larger one, and one pair for the
largest shapes serves every layer.

Source: RandLoRA (Albert et al., ICLR 2025, arXiv 2502.00987). One departure: under the sparse
distributions only B is sparse, and A holds +-1. A column of A that is all zeros makes that column
of the update zero. At r = 6 that would be one column in eleven with s = 3, and four in five with
s = sqrt(768), which would take away the full rank that the method is for.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from math import ceil, sqrt
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from clip_randlora.errors import UserError

Distribution = Literal["uniform", "sparse", "very_sparse"]

_CPU = torch.device("cpu")
_MOST_ENTRIES = 2**30
_STREAM_OF_A = 0  # columns j r to (j + 1) r of the matrix of the B_i have stream j + 1


class Bases(NamedTuple):
    """One pair of frozen bases; their entries have standard deviation 1.

    ``b``: (n, D, r), the bases ``B_i``; ``a``: (r, d), the one basis that all of them share.
    """

    b: torch.Tensor
    a: torch.Tensor

    @classmethod
    def from_matrix(cls, matrix: torch.Tensor, a: torch.Tensor) -> "Bases":
        """Make the pair whose B_i are the columns of ``matrix`` (D, n r), as views."""
        return cls(matrix.unflatten(1, (a.shape[0], -1)).permute(2, 0, 1), a)

    def matrix(self) -> torch.Tensor:
        """Return all B_i as one matrix (D, n r), a view if they were made from one."""
        return self.b.permute(1, 2, 0).flatten(1)

    def sliced(self, rows: int, columns: int, count: int | None = None) -> "Bases":
        """Return the views that a weight of shape (rows, columns), rows >= columns, uses.

        ``count`` is its number of bases, by default `number_of_bases`.
        """
        rank = self.a.shape[0]
        width = (count or number_of_bases(columns, rank)) * rank
        return Bases.from_matrix(self.matrix()[:rows, :width], self.a[:, :columns])


def number_of_bases(columns: int, rank: int) -> int:
    """Return ``n = ceil(d / r)``, the fewest rank-r bases that sum to full rank d."""
    return ceil(columns / rank)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # tensors that inference makes first must serve training too
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
    n = number_of_bases(columns, rank)
    matrix = np.empty((rows, n * rank), dtype=np.float32)
    for j in range(n):
        bits = _raw_uint32(seed, j + 1, rows * rank)
        entries = _entries_of_b(bits, distribution, columns)
        matrix[:, j * rank : (j + 1) * rank] = entries.reshape(rows, rank)
    a = random_basis_a(rank, columns, distribution, seed, dtype=dtype, device=device)
    return Bases.from_matrix(torch.from_numpy(matrix).to(device, dtype), a)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def random_basis_a(
    rank: int,
    columns: int,
    distribution: Distribution = "uniform",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> torch.Tensor:
    """Return A, (r, d), of `random_bases`, without making B."""
    bits = _raw_uint32(seed, _STREAM_OF_A, columns * rank)
    entries = _uniform(bits) if distribution == "uniform" else _ternary(bits, 1.0)
    # drawn column by column, so that a smaller layer's A is a prefix too
    return torch.from_numpy(entries.reshape(columns, rank).T.copy()).to(device, dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def random_matrices(
    count: int, rows: int, columns: int, stream: int, seed: int, *, device: torch.device = _CPU
) -> torch.Tensor:
    """Generate, once per process, frozen random matrices that all layers use corners of.

    Args:
        count: how many.
        rows: of each; those of a matrix with fewer rows are the first of these.
        columns: of each.
        stream: 0 or 1, two sets that have nothing in common.
        seed: key of the bit stream, 0 to 2^64 - 1.
        device: where to put them.

    Returns:
        float32 (count, rows, columns), uniform with standard deviation 1; shared by all callers,
        so not to be written to.
    """
    if device != _CPU:
        return random_matrices(count, rows, columns, stream, seed).to(device)
    made = np.empty((count, rows * columns), dtype=np.float32)
    for i in range(count):
        made[i] = _uniform(_raw_uint32(seed, 2 * i + stream, rows * columns))
    return torch.from_numpy(made).view(count, rows, columns)


@dataclass(frozen=True)
class RandomMatrices:
    """Frozen random matrices; the fields are the arguments of `random_matrices`."""

    count: int
    rows: int
    columns: int
    stream: int
    seed: int

    def on(self, device: torch.device) -> torch.Tensor:
        """Return them on a device, float32 (count, rows, columns); not to be written to."""
        return random_matrices(*astuple(self), device=device)


def check_size(setting: str, value: int, entries: int) -> None:
    """Refuse a number of rows, or of matrices, whose random matrices would fill the memory.

    Args:
        setting: the name of the number, for the message.
        value: the number.
        entries: how many random entries each of them has.

    Raises:
        UserError: they would have more than 2^30 entries, 4 GiB.
    """
    most = _MOST_ENTRIES // entries
    if value > most:
        raise UserError(
            f"{setting}: {value}, whose random matrices would take more than 4 GiB; give at most "
            f"{most}"
        )


class BasisProvider(Protocol):
    """Where the pair of bases for the largest adapted shapes comes from."""

    def pair(self, dtype: torch.dtype, device: torch.device) -> Bases:
        """Return the pair, which all callers share."""

    def basis_a(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the pair's A alone, (r, d)."""


@dataclass(frozen=True)
class SeededBases:
    """The pair that a seed makes; the fields are the arguments of `random_bases`."""

    rank: int
    rows: int
    columns: int
    distribution: Distribution = "uniform"
    seed: int = 0

    def pair(self, dtype: torch.dtype, device: torch.device) -> Bases:
        """Return the pair, generated once per process."""
        return random_bases(*astuple(self), dtype=dtype, device=device)

    def basis_a(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the pair's A alone, (r, d)."""
        settings = self.rank, self.columns, self.distribution, self.seed
        return random_basis_a(*settings, dtype=dtype, device=device)


class StoredBases:
    """A pair that came with an adapter trained elsewhere, which no seed makes again."""

    def __init__(self, bases: Bases):
        self._bases = bases
        self._converted: dict[tuple[torch.dtype, torch.device], Bases] = {}

    @torch.inference_mode(False)
    def pair(self, dtype: torch.dtype, device: torch.device) -> Bases:
        """Return the pair, converted once."""
        if (dtype, device) not in self._converted:
            b, a = (tensor.to(device, dtype) for tensor in self._bases)
            self._converted[dtype, device] = Bases(b, a)
        return self._converted[dtype, device]

    def basis_a(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the pair's A alone, (r, d)."""
        return self.pair(dtype, device).a


def _raw_uint32(seed: int, stream: int, count: int) -> np.ndarray:
    """Return ``count`` uniform 32-bit integers: each raw 64-bit word's low half, then its high."""
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=-1)
    return halves.reshape(-1)[:count].astype(np.uint32)


def _entries_of_b(bits: np.ndarray, distribution: Distribution, columns: int) -> np.ndarray:
    if distribution == "uniform":
        return _uniform(bits)
    return _ternary(bits, _sparsity(distribution, columns))


def _sparsity(distribution: Distribution, columns: int) -> float:
    """Return s: one in s entries of a ternary B is not zero."""
    return 3.0 if distribution == "sparse" else sqrt(columns)


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
