"""Products with the bases of RandLoRA's update: dense ones, or compressed where that is faster."""

import torch

from clip_randlora.adapters.bases import Source, number_of_bases
from clip_randlora.utils.quiet import without_warnings

_DENSEST_COMPRESSED = 1 / 8  # share of entries that are not zero


class Products:
    """Products with the matrix ``B`` (D, n r) of some bases, and with its transpose.

    ``dtype`` is that of ``B`` and of the other factor; bfloat16 products are summed in float32
    and rounded once. ``cost`` is the time of a product, in that of a dense one.
    """

    cost = 1.0

    def __init__(self, matrix: torch.Tensor):
        self.dtype = matrix.dtype
        self.matrix = matrix

    def update(self, scaled_a: torch.Tensor, transposed: bool) -> torch.Tensor:
        """Return ``B S``, (..., D, d), of ``S`` (..., n r, d), or its transpose."""
        if transposed:
            return torch.matmul(scaled_a.mT, self.matrix.T)
        return torch.matmul(self.matrix, scaled_a)

    def contract(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``B^T G``, (..., n r, d), of ``G`` (..., D, d)."""
        return torch.matmul(self.matrix.T, grad)


class SparseProducts(Products):
    """The same with ``B`` in compressed rows, so that its zeros cost nothing."""

    cost = 0.2  # at one entry in 28

    def __init__(self, matrix: torch.Tensor):
        super().__init__(_compressed_rows(matrix))
        self.transpose = _compressed_rows(matrix.T)

    def update(self, scaled_a: torch.Tensor, transposed: bool) -> torch.Tensor:
        """Return ``B S``, (D, d), of ``S`` (n r, d), or its transpose, a view."""
        update = torch.mm(self.matrix, scaled_a)
        return update.T if transposed else update

    def contract(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``B^T G``, (n r, d), of ``G`` (D, d)."""
        return torch.mm(self.transpose, grad)


def _compressed_rows(matrix: torch.Tensor) -> torch.Tensor:
    with without_warnings():  # torch says at its first use that the layout is in beta
        rows = matrix.contiguous().to_sparse_csr()
        indices = rows.crow_indices().int(), rows.col_indices().int()
        return torch.sparse_csr_tensor(*indices, rows.values(), rows.shape)


@torch.inference_mode(False)
def products_with(
    source: Source, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Products:
    """Choose how to multiply with the bases of a weight of shape (rows, columns).

    Compressed rows pay on CPUs if the matrix is sparse enough: at one entry in 28 (very sparse
    bases for width 768) they take a fifth of the dense time, at one in three (sparse) twice that.

    Args:
        source: of the pair for the largest shapes.
        rows: D, and ``columns``: d.
        dtype: float32, float64 or bfloat16. Compressed rows stay in float32, which is faster
            than dense bfloat16.
        device: of the weight.
    """
    may_compress = device.type == "cpu" and dtype != torch.float64
    if may_compress and source.density() < _DENSEST_COMPRESSED:
        rank = len(source.basis_a(dtype, device))
        width = number_of_bases(columns, rank) * rank
        return SparseProducts(source.matrix()[:rows, :width])
    return Products(source.pair(dtype, device).sliced(rows, columns).matrix())
