"""What a transformer's attention need not do: for nothing, or in a way that is slow on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from open_clip.transformer import Attention, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.nn.utils.parametrize import type_before_parametrizations

from clip_randlora.forward.replace import Replacement, replaced_forwards

_NUMBERS_AT_ONCE = 2**18  # queries that are attended in float32 at once


@contextmanager
def pooled_token_only(visual: nn.Module) -> Iterator[None]:
    """Let the last block of a ViT compute the class token alone, where nothing else is read.

    Its keys and values need every token; its queries, output projection and MLP do not.
    """
    with replaced_forwards(pooled_token_forward(visual)):
        yield


def pooled_token_forward(visual: nn.Module) -> dict[nn.Module, Replacement]:
    """Return what replaces the last block's forward pass in `pooled_token_only`, if anything."""
    if not _reads_class_token_only(visual):
        return {}
    block = visual.transformer.resblocks[-1]

    def forward(_: Callable[..., Tensor], x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = block.ln_1(x)
        attended = block.attention(normed[:, :1], normed, normed, attn_mask)
        x = x[:, :1] + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    return {block: forward}


def _reads_class_token_only(visual: nn.Module) -> bool:
    """Tell whether a tower is open_clip's ViT whose feature is its class token's."""
    return (
        isinstance(visual, VisionTransformer)
        and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock
        and getattr(visual.transformer, "batch_first", True)  # always, from open_clip 4 on
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
    )


@contextmanager
def direct_self_attention(net: nn.Module) -> Iterator[None]:
    """Let packed self-attention keep its tokens in batch-first order, and compute in float32.

    `nn.MultiheadAttention` turns them token-first and copies them before and after its products,
    which training then keeps; open_clip 4's own class reads its weight, and so forms its update,
    once for each of q, k and v. And on CPUs torch's fused attention is slow in bf16: forward and
    backward take 34 ms for 32 images with 12 heads, 50 tokens and width 64, against 16 in
    float32, the casts included. Under autocast the products with the weights stay in bf16.
    """
    forwards = {}
    for module in net.modules():
        if _is_plain_multihead(module):
            forwards[module] = _direct_multihead(module)
        elif _is_plain_own(module):
            forwards[module] = _direct_own(module)
    with replaced_forwards(forwards):
        yield


def _is_plain_multihead(module: nn.Module) -> bool:
    """Tell whether a module is torch's attention, packed, batch-first and without extras."""
    return (
        type_before_parametrizations(module) is nn.MultiheadAttention
        and module.q_proj_weight is None  # asking for the packed one would form its update
        and module.batch_first
        and module.bias_k is None
        and not module.add_zero_attn
        and not (module.training and module.dropout)
    )


def _is_plain_own(module: nn.Module) -> bool:
    """Tell whether a module is open_clip's own attention, packed and without extras.

    That of version 3 has no separate projections, and masks of another meaning where they are
    boolean: those are never taken here.
    """
    return (
        type_before_parametrizations(module) is Attention
        and getattr(module, "q_proj_weight", None) is None
        and module.logit_scale is None
        and module.head_scale is None
        and all(type(norm) is nn.Identity for norm in (module.ln_q, module.ln_k, module.ln_inner))
        and not (module.training and (module.attn_drop.p or module.out_drop.p))
    )


def _direct_multihead(attention: nn.MultiheadAttention) -> Replacement:
    def forward(
        usual: Callable[..., tuple[Tensor, None]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights=False,
        attn_mask=None,
    ) -> tuple[Tensor, None]:
        if query is key and key is value and not need_weights and _is_additive(attn_mask):
            return _attend(attention, query, attn_mask), None
        return usual(query, key, value, need_weights=need_weights, attn_mask=attn_mask)

    return forward


def _direct_own(attention: Attention) -> Replacement:
    def forward(
        usual: Callable[..., Tensor],
        x: Tensor,
        *args: Tensor | None,
        attn_mask: Tensor | None = None,
        **others: Tensor | None,
    ) -> Tensor:
        # keys and values come by name, where they come at all
        is_own = not args and all(other is None or other is x for other in others.values())
        if is_own and _is_additive(attn_mask):
            return _attend(attention, x, attn_mask)
        return usual(x, *args, attn_mask=attn_mask, **others)

    return forward


def _is_additive(mask: Tensor | None) -> bool:
    return mask is None or mask.is_floating_point()


def _attend(attention: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the projected self-attention of tokens (N, L, W).

    Args:
        attention: has ``in_proj_weight``, ``in_proj_bias``, ``num_heads`` and ``out_proj``.
        mask: what is added to the scores, (L, L) or (N H, L, L).
    """
    packed = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    heads = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    is_same_for_all = mask is None or mask.ndim == 2
    if not is_same_for_all:
        mask = mask.unflatten(0, (len(tokens), attention.num_heads))
    project = attention.out_proj
    if packed.device.type == "cpu" and packed.dtype == torch.bfloat16 and is_same_for_all:
        bias = project.bias.to(packed.dtype) if project.bias is not None else None
        weight = project.weight.to(packed.dtype)
        return _AttentionInFloat32.apply(heads, mask, weight, bias)
    attended = scaled_dot_product_attention(*heads, attn_mask=mask)
    return project(attended.transpose(1, 2).flatten(2))


class _AttentionInFloat32(torch.autograd.Function):
    """Attention of bf16 queries, keys and values (3, N, H, L, D), in float32, and its projection.

    Returns bf16 (N, L, H D). Only the bf16 inputs are kept: backward attends once more, and so
    has what the projection's gradient needs. A few sequences at a time, so that what is float32
    stays in the cache.
    """

    @staticmethod
    def forward(ctx, heads: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None):
        ctx.save_for_backward(heads, weight)
        ctx.mask = mask.float() if mask is not None else None
        attended = _token_by_token(heads)
        with torch.autocast(heads.device.type, enabled=False):
            for some, out in _few_at_once(heads, _by_head(attended, heads)):
                out.copy_(scaled_dot_product_attention(*some.float(), attn_mask=ctx.mask))
            return linear(attended, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, weight = ctx.saved_tensors
        grads, attended = torch.empty_like(heads), _token_by_token(heads)
        into_attended = _by_head(grad @ weight, heads)
        with torch.enable_grad(), torch.autocast(heads.device.type, enabled=False):
            for some, g, out, again in _few_at_once(
                heads, into_attended, grads, _by_head(attended, heads)
            ):
                exact = some.detach().float().requires_grad_()
                result = scaled_dot_product_attention(*exact, attn_mask=ctx.mask)
                out.copy_(*torch.autograd.grad(result, exact, g.float()))
                again.copy_(result.detach())
        rows, needs = grad.flatten(0, 1), ctx.needs_input_grad
        into_weight = rows.T @ attended.flatten(0, 1) if needs[2] else None
        return grads, None, into_weight, rows.sum(dim=0) if needs[3] else None


def _token_by_token(heads: Tensor) -> Tensor:
    """Return room for what heads (3, N, H, L, D) attend to, (N, L, H D)."""
    _, sequences, count, length, size = heads.shape
    return heads.new_empty(sequences, length, count * size)


def _by_head(tokens: Tensor, heads: Tensor) -> Tensor:
    """View tokens (N, L, H D) as (N, H, L, D)."""
    return tokens.unflatten(-1, (heads.shape[2], -1)).transpose(1, 2)


def _few_at_once(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors (..., N, H, L, D) along N, together."""
    count = max(_NUMBERS_AT_ONCE // math.prod(tensors[0].shape[-3:]), 1)
    return zip(*(tensor.split(count, dim=-4) for tensor in tensors), strict=True)
