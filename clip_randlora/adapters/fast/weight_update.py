"""``W + strength * dW`` in as few passes over memory as possible.

RandLoRA's sum over n bases is one matrix product. All B_i together are one matrix B (D, n r),
whose column ``k n + i`` is the k-th column of B_i. It meets row k of A, scaled by both diagonals::

    dW = scale * B S,    S[k n + i, j] = lambda[i, k] * A[k, j] * gamma[i, j]

The backward pass needs ``M = B^T G`` (n r, d) alone, where G is the gradient of the weight. Both
gradients are sums over M's entries, so nothing but the inputs is kept between the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from clip_randlora.adapters.delta import Delta
from clip_randlora.adapters.randlora import RandLoRADelta

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
    """``W + scale * B S`` for a weight (P D, d) of P parts; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, weight, matrix, a, scale, is_transposed, dtype, *diagonals) -> Tensor:
        """Update a weight by the lambda and the gamma of each part, which are in ``diagonals``."""
        ctx.save_for_backward(matrix, a, *diagonals)  # not their stacks, which are copies
        ctx.scale, ctx.is_transposed = scale, is_transposed
        scaled = _scale_a(a, *_stack(diagonals), matrix.dtype)
        update = scaled.mT @ matrix.T if is_transposed else matrix @ scaled
        return _add(weight, update.flatten(0, 1), scale, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrix, a, *diagonals = ctx.saved_tensors
        lam, gamma = _stack(diagonals)
        g = grad.unflatten(0, (len(lam), -1)).to(matrix.dtype)
        m = matrix.T @ (g.mT if ctx.is_transposed else g)
        by_part = zip(*_diagonal_grads(m.to(lam.dtype), a, lam, gamma, ctx.scale), strict=True)
        return None, None, None, None, None, None, *chain.from_iterable(by_part)


def _stack(diagonals: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return lambda (P, n, r) and gamma (P, n, d)."""
    return torch.stack(diagonals[::2]), torch.stack(diagonals[1::2])


def _add(weight: Tensor, update: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return ``weight + scale * update``, rounded once if that is of another dtype."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    rows = len(weight)
    if weight.device.type == "cpu" and update.dtype != weight.dtype:
        rows = _ROWS_IN_CACHE  # torch converts a whole operand before it adds
    for w, u, o in zip(weight.split(rows), update.split(rows), out.split(rows), strict=True):
        torch.add(w, u, alpha=scale, out=o)
    return out


def _scale_a(a: Tensor, lam: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """Return S, (P, n r, d), of lambda (P, n, r) and gamma (P, n, d)."""
    scaled = (gamma[:, None] * a[:, None]).mul_(lam.mT[..., None])
    return scaled.flatten(1, 2).to(dtype)


def _diagonal_grads(
    m: Tensor, a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lambda (P, n, r) and gamma (P, n, d) from M (P, n r, d).

    ``m`` may be written to.
    """
    m = m.unflatten(1, (a.shape[0], -1)).mul_(a[:, None].mul(scale))
    grad_gamma = (m * lam.mT[..., None]).sum(dim=1)
    return m.mul_(gamma[:, None]).sum(dim=-1).mT, grad_gamma
