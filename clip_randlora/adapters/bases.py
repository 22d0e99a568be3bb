"""Frozen random bases that come back bit for bit, so that no adapter file has to store them.

Every number is made from the raw 64-bit output of the Philox counter-based generator, whose
stream NumPy guarantees (unlike that of its distributions), by integer arithmetic and one float32
product: the same bits on every device and under every version of torch. The bases B_i are dealt
from the columns of one matrix (D, n r), as peft deals them: column ``k n + i`` is B_i's k-th. Each
run of r columns has a stream of its own and fills its rows in order, so a smaller layer's matrix
is a corner of a larger one's: slicing one pair for the largest shapes serves every layer.

Source: RandLoRA (Albert et al., ICLR 2025, arXiv 2502.00987). One departure: under the sparse
distributions only B is sparse, and A holds +-1. A column of A that is all zeros makes that column
of the update zero (at r = 6, one column in eleven with s = 3, and four in five with s = sqrt(768)),
so a sparse A would take away the full rank that the method is for.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from math import ceil, sqrt
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

Distribution = Literal["uniform", "sparse", "very_sparse"]

_CPU = torch.device("cpu")
_STREAM_OF_A = 0  # the matrix of the B_i draws its columns j r to (j + 1) r from stream j + 1


class Bases(NamedTuple):
    """One pair of frozen bases; their entries have standard deviation 1.

    ``b``: (n, D, r), the bases ``B_i``; ``a``: (r, d), the one basis that all of them share.
    """

    b: torch.Tensor
    a: torch.Tensor

    @classmethod
    def deal(cls, matrix: torch.Tensor, a: torch.Tensor) -> "Bases":
        """Make the pair whose B_i are dealt from the columns of ``matrix`` (D, n r), as views."""
        return cls(matrix.unflatten(1, (a.shape[0], -1)).permute(2, 0, 1), a)

    def matrix(self) -> torch.Tensor:
        """Return all B_i as the one matrix (D, n r) that they were dealt from, a view of it."""
        return self.b.permute(1, 2, 0).flatten(1)

    def sliced(self, rows: int, columns: int) -> "Bases":
        """Return the views that a weight of shape (rows, columns), rows >= columns, uses."""
        rank = self.a.shape[0]
        width = number_of_bases(columns, rank) * rank
        return Bases.deal(self.matrix()[:rows, :width], self.a[:, :columns])


def number_of_bases(columns: int, rank: int) -> int:
    """Return ``n = ceil(d / r)``, the fewest rank-r bases that sum to full rank d."""
    return ceil(columns / rank)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what inference asked for first has to serve training too
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
    matrix = _make_matrix(rank, rows, columns, distribution, seed)
    a = random_basis_a(rank, columns, distribution, seed, dtype=dtype, device=device)
    return Bases.deal(matrix.to(device, dtype), a)


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
    """Return the A, (r, d), of `random_bases`, which it takes no B to make."""
    bits = _raw_uint32(seed, _STREAM_OF_A, columns * rank)
    entries = _uniform(bits) if distribution == "uniform" else _ternary(bits, 1.0)
    # drawn column by column, so that a smaller layer's A is a prefix too
    return torch.from_numpy(entries.reshape(columns, rank).T.copy()).to(device, dtype)


def _make_matrix(
    rank: int, rows: int, columns: int, distribution: Distribution, seed: int
) -> torch.Tensor:
    count = number_of_bases(columns, rank)
    matrix = np.empty((rows, count * rank), dtype=np.float32)
    for j in range(count):
        bits = _raw_uint32(seed, j + 1, rows * rank)
        entries = _entries_of_b(bits, distribution, columns)
        matrix[:, j * rank : (j + 1) * rank] = entries.reshape(rows, rank)
    return torch.from_numpy(matrix)


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


class Source(Protocol):
    """Where the pair of bases for the largest adapted shapes comes from."""

    def pair(self, dtype: torch.dtype, device: torch.device) -> Bases:
        """Return the pair; it is kept, and all who ask share it."""

    def basis_a(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the pair's A alone, (r, d)."""

    def matrix(self) -> torch.Tensor:
        """Return the matrix (D, n r) of the B_i, float32 on the CPU, which is not kept."""

    def density(self) -> float:
        """Return the share of the B_i's entries that are not zero."""


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

    def matrix(self) -> torch.Tensor:
        """Return the matrix (D, n r) of the B_i, float32 on the CPU, generated anew."""
        return _make_matrix(*astuple(self))

    def density(self) -> float:
        """Return the share of the B_i's entries that are expected not to be zero."""
        is_dense = self.distribution == "uniform"
        return 1.0 if is_dense else 1 / _sparsity(self.distribution, self.columns)


class StoredBases:
    """A pair that came with an adapter trained elsewhere, whose bases no seed of ours makes."""

    def __init__(self, bases: Bases):
        self._bases = bases
        self._converted: dict[tuple[torch.dtype, torch.device], Bases] = {}

    @torch.inference_mode(False)
    def pair(self, dtype: torch.dtype, device: torch.device) -> Bases:
        """Return the pair, converted once."""
        if (dtype, device) not in self._converted:
            converted = Bases(*(tensor.to(device, dtype) for tensor in self._bases))
            self._converted[dtype, device] = converted
        return self._converted[dtype, device]

    def basis_a(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the pair's A alone, (r, d)."""
        return self.pair(dtype, device).a

    def matrix(self) -> torch.Tensor:
        """Return the matrix (D, n r) of the B_i, float32 on the CPU."""
        return self._bases.matrix().to(_CPU, torch.float32)

    def density(self) -> float:
        """Return the share of the B_i's entries that are not zero."""
        return float(torch.count_nonzero(self._bases.b)) / self._bases.b.numel()


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
