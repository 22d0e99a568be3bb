"""A linear layer whose update gets its gradient without the gradient of the whole weight.

Backward needs ``M = B^T G`` (see `clip_randlora.adapters.randlora`), and for T tokens the weight's
gradient is itself a product, ``G = Y^T X`` with Y (T, D) and X (T, d). ``(B^T Y^T) X`` instead of
``B^T (Y^T X)`` takes ``2 T d (c D + d)`` operations instead of ``2 D d (T + c d)``, where products
with a sparse B cost c of dense ones. With dense bases that is less if there are fewer tokens than
D, as in the MLPs of a transformer at small batches; with very sparse ones in MLPs always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.parametrize import type_before_parametrizations

from clip_randlora.adapters.fast.basis_matmul import Products, SparseProducts
from clip_randlora.adapters.randlora import RandLoRADelta, contract
from clip_randlora.forward.replace import Replacement

_TOKENS_AT_ONCE = 256


class _Linear(torch.autograd.Function):
    """``x W^T + bias`` with an updated W (out, in); gradients for x, lambda and gamma."""

    @staticmethod
    def forward(ctx, x, weight, bias, products, a, scale, lam, gamma) -> Tensor:
        ctx.save_for_backward(x, weight, a, lam, gamma)
        ctx.products, ctx.scale = products, scale
        return linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, a, lam, gamma = ctx.saved_tensors
        y, x = grad.flatten(0, -2), x.flatten(0, -2)
        tall, wide = (x, y) if weight.shape[0] < weight.shape[1] else (y, x)
        m = _contract_tokens(ctx.products, tall) @ wide
        grads = contract(m.to(lam.dtype), a, lam, gamma, ctx.scale)
        into_x = grad @ weight if ctx.needs_input_grad[0] else None
        return into_x, None, None, None, None, None, *grads


def _contract_tokens(products: Products, tokens: Tensor) -> Tensor:
    """Return ``B^T Y^T`` (n r, T), of the dtype of the tokens ``Y`` (T, D)."""
    if not isinstance(products, SparseProducts):
        return products.contract(tokens.T)
    # compressed rows need a transposed, maybe converted copy: of a few tokens at a time
    contracted = tokens.new_empty(products.transpose.shape[0], len(tokens))
    some, out = tokens.split(_TOKENS_AT_ONCE), contracted.split(_TOKENS_AT_ONCE, dim=1)
    for y, m in zip(some, out, strict=True):
        m.copy_(products.contract(y.T.to(products.dtype)))
    return contracted


def short_forwards(
    layers: Iterable[tuple[nn.Module, list[nn.Module]]], strength: Callable[[], float]
) -> dict[nn.Module, Replacement]:
    """Return what replaces the forward passes of the layers that may have the shorter gradient.

    Args:
        layers: adapted modules, each with the updates of its weight.
        strength: of the updates, asked for at each pass.
    """
    return {
        module: _short_forward(module, deltas[0], strength)
        for module, deltas in layers
        if type_before_parametrizations(module) is nn.Linear
        and len(deltas) == 1
        and isinstance(deltas[0], RandLoRADelta)
        and deltas[0].shape == (module.out_features, module.in_features)
    }


def _short_forward(
    module: nn.Linear, delta: RandLoRADelta, strength: Callable[[], float]
) -> Replacement:
    def forward(usual: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or strength() == 0:
            return usual(x)
        formed = module.weight  # with its graph: a longer pass may read the same tensor
        weight = formed.detach()  # but this pass has no use for that
        products = delta.products_for(weight.dtype)
        tokens = x.numel() // x.shape[-1]
        if _computes_in(x, weight) != weight.dtype or not _is_shorter(delta, products, tokens):
            return usual(x)
        bias = module.bias.to(weight.dtype) if module.bias is not None else None
        return _Linear.apply(
            x.to(weight.dtype),
            weight,
            bias,
            products,
            delta.basis_a(),
            strength() * delta.scale,
            delta.lam,
            delta.gamma,
        )

    return forward


def _is_shorter(delta: RandLoRADelta, products: Products, tokens: int) -> bool:
    rows, columns, cost = delta.rows, delta.columns, products.cost
    return tokens * (cost * rows + columns) < rows * (tokens + cost * columns)


def _computes_in(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return what a linear layer computes in: autocast's dtype, or the weight's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
