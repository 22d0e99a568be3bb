"""``W + strength * dW`` in as few passes over memory as possible.

RandLoRA's sum over n bases is one matrix product. All B_i together are one matrix B (D, n r),
whose column ``k n + i`` is the k-th column of B_i. It meets row k of A, scaled by both diagonals::

    dW = scale * B S,    S[k n + i, j] = lambda[i, k] * A[k, j] * gamma[i, j]

The backward pass needs ``M = B^T G`` (n r, d) alone, where G is the gradient of the weight. Both
gradients are sums over M's entries, so nothing but the inputs is kept between the passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from clip_randlora.adapters.delta import Delta
from clip_randlora.adapters.randlora import RandLoRADelta

_SMALL_PIECES_ON = ("cpu",)
_ROWS_IN_CACHE = 256  # three runs of so many rows of a weight fit the cache of a CPU's core


def add_updates(
    weight: Tensor,
    rows: Sequence[slice],
    deltas: Sequence[Delta],
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``weight + strength * dW``, (out, in), where each delta updates a run of rows.

    Args:
        weight: (out, in).
        rows: the run of each delta, in order and without overlap; other rows stay as they are.
        deltas: one for each run.
        strength: the factor of all updates.
        dtype: of the result: the weight's, or bfloat16. The sum is rounded to it once. RandLoRA's
            products with B are bfloat16's then, with sums in float32.
    """
    covered = sum(run.stop - run.start for run in rows)
    randlora = [delta for delta in deltas if isinstance(delta, RandLoRADelta)]
    if len(randlora) == len(deltas) and covered == len(weight) and weight.dtype == _dtype(randlora):
        return _add_randlora(weight, randlora, strength, dtype)
    pieces, end = [], 0
    for run, delta in zip(rows, deltas, strict=True):
        pieces += [weight[end : run.start], delta.added_to(weight[run], strength)]
        end = run.stop
    pieces = [piece for piece in (*pieces, weight[end:]) if len(piece)]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(dtype)


def _dtype(deltas: Sequence[RandLoRADelta]) -> torch.dtype:
    return deltas[0].lam.dtype


def _add_randlora(
    weight: Tensor, deltas: Sequence[RandLoRADelta], strength: float, dtype: torch.dtype
) -> Tensor:
    """Update a weight of equal parts, one for each delta; they share one pair of bases."""
    first = deltas[0]
    compute = torch.bfloat16 if dtype == torch.bfloat16 else first.lam.dtype
    pair = first.bases.pair(compute, weight.device)
    b, _ = pair.sliced(first.rows, first.columns, first.count)
    a = first.bases.basis_a(first.lam.dtype, weight.device)[:, : first.columns]
    matrix = b.permute(1, 2, 0).flatten(1)
    diagonals = chain.from_iterable((delta.lam, delta.gamma) for delta in deltas)
    return _WeightUpdate.apply(
        weight, matrix, a, strength * first.scale, first.is_transposed, dtype, *diagonals
    )


class _WeightUpdate(torch.autograd.Function):
    """``W + scale * B S``, part by part; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, weight, matrix, a, scale, is_transposed, dtype, *diagonals) -> Tensor:
        """Update a weight of P equal parts, each with a lambda and a gamma in ``diagonals``."""
        ctx.save_for_backward(matrix, a, *diagonals)
        ctx.scale, ctx.is_transposed = scale, is_transposed
        updated = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for w, out, lam, gamma in _parts(weight, updated, diagonals):
            scaled = _scale_a(a, lam, gamma, matrix.dtype)
            update = scaled.mT @ matrix.T if is_transposed else matrix @ scaled
            _add(w, update, scale, out)
        return updated

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrix, a, *diagonals = ctx.saved_tensors
        grads: list[Tensor] = []
        for part, _, lam, gamma in _parts(grad, grad, diagonals):
            g = part.to(matrix.dtype)
            m = matrix.T @ (g.mT if ctx.is_transposed else g)
            of_lam, of_gamma = _diagonal_grads(m.to(lam.dtype), a, lam, gamma, ctx.scale)
            if lam.dim() == 2:
                grads += [of_lam, of_gamma]
            else:  # all parts together
                grads += chain.from_iterable(zip(of_lam, of_gamma, strict=True))
        return None, None, None, None, None, None, *grads


def _parts(
    weight: Tensor, other: Tensor, diagonals: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of both (D, d), lambda (n, r) and gamma (n, d), or all of them with P in front.

    On a CPU, one part after the other fits the cache. On a GPU, fewer launches are faster.
    """
    lams, gammas = diagonals[::2], diagonals[1::2]
    count = len(lams)
    if _takes_small_pieces(weight) or count == 1:
        yield from zip(weight.chunk(count), other.chunk(count), lams, gammas, strict=True)
    else:
        parts = (tensor.unflatten(0, (count, -1)) for tensor in (weight, other))
        yield *parts, torch.stack(tuple(lams)), torch.stack(tuple(gammas))


def _takes_small_pieces(tensor: Tensor) -> bool:
    """Return whether pieces that fit the cache are faster than few large operations."""
    return tensor.device.type in _SMALL_PIECES_ON


def _add(weight: Tensor, update: Tensor, scale: float, out: Tensor) -> None:
    """Write ``weight + scale * update`` to ``out``, rounded once if that is of another dtype."""
    rows = len(weight)
    if _takes_small_pieces(weight) and update.dtype != weight.dtype:
        rows = _ROWS_IN_CACHE  # torch converts a whole operand before it adds
    for w, u, o in zip(weight.split(rows), update.split(rows), out.split(rows), strict=True):
        torch.add(w, u, alpha=scale, out=o)


def _scale_a(a: Tensor, lam: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """Return S, (..., n r, d), of lambda (..., n, r) and gamma (..., n, d)."""
    if not _takes_small_pieces(a):
        scaled = (gamma[..., None, :, :] * a[:, None]).mul_(lam.mT[..., None])
        return scaled.flatten(-3, -2).to(dtype)
    # row by row: larger temporary tensors leave gaps in a CPU's memory, 0.2 GB of a ViT-B-32's step
    scaled = a.new_empty(a.shape[0], *gamma.shape, dtype=dtype)
    for k, row in enumerate(a):
        torch.mul(gamma * row, lam[:, k : k + 1], out=scaled[k])
    return scaled.flatten(0, 1)


def _diagonal_grads(
    m: Tensor, a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lambda (..., n, r) and gamma (..., n, d) from M (..., n r, d).

    ``m`` may be written to.
    """
    if not _takes_small_pieces(m):
        m = m.unflatten(-2, (a.shape[0], -1)) * a[:, None].mul(scale)
        grad_gamma = (m * lam.mT[..., None]).sum(dim=-3)
        return m.mul_(gamma[..., None, :, :]).sum(dim=-1).mT, grad_gamma
    grad_lam, grad_gamma = torch.empty_like(lam), torch.zeros_like(gamma)
    for k, (rows, row) in enumerate(zip(m.view(a.shape[0], *gamma.shape), a, strict=True)):
        rows.mul_(row)
        grad_gamma.addcmul_(rows, lam[:, k : k + 1], value=scale)
        grad_lam[:, k] = rows.mul_(gamma).sum(dim=1).mul_(scale)
    return grad_lam, grad_gamma
