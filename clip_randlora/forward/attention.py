"""Attention without work that a CLIP's features do not need, or that is slow on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.transformer import Attention, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.nn.utils.parametrize import type_before_parametrizations

from clip_randlora.forward.replace import Replacement, replaced_forwards

_CHUNK_ELEMENTS = 2**18  # elements of the queries that are converted to float32 at once


@contextmanager
def last_block_cls_only(net: nn.Module) -> Iterator[None]:
    """Compute the class token alone in the last block of a ViT that returns nothing else.

    The block's keys and values need every token; its queries, output projection and MLP do not.
    Other image towers stay as they are.
    """
    with replaced_forwards(last_block_cls_forward(net)):
        yield


def last_block_cls_forward(net: nn.Module) -> dict[nn.Module, Replacement]:
    """Return ``{last block: its forward pass}`` for `last_block_cls_only`; empty for others."""
    visual: Any = net.visual
    if not _returns_class_token_only(visual):
        return {}
    block = visual.transformer.resblocks[-1]

    def forward(_: Callable[..., Tensor], x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = block.ln_1(x)
        attended = block.attention(normed[:, :1], normed, normed, attn_mask)
        x = x[:, :1] + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    return {block: forward}


def _returns_class_token_only(visual: Any) -> bool:
    return (
        isinstance(visual, VisionTransformer)
        and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock
        and getattr(visual.transformer, "batch_first", True)  # open_clip 4 has no other order
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
    )


@contextmanager
def batch_first_sdpa(net: nn.Module) -> Iterator[None]:
    """Compute packed self-attention in batch-first order, on CPUs in float32 instead of bf16.

    `nn.MultiheadAttention` transposes the tokens to token-first order, and autograd keeps these
    copies. open_clip 4's own class reads its weight once for each of q, k and v, which would
    compute the weight's update three times. On CPUs, torch's fused attention is slow in bf16:
    forward and backward of 32 images (12 heads, 50 tokens, width 64) take 34 ms, against 16 ms in
    float32 with the casts included. Under autocast the linear projections stay in bf16.
    """
    forwards = {}
    for module in net.modules():
        if _is_plain_multihead(module):
            forwards[module] = _multihead_forward(module)
        elif _is_plain_open_clip(module):
            forwards[module] = _open_clip_forward(module)
    with replaced_forwards(forwards):
        yield


def _is_plain_multihead(module: Any) -> bool:
    """Return whether a module is torch's attention: packed, batch-first and without extras."""
    return (
        type_before_parametrizations(module) is nn.MultiheadAttention
        and module.q_proj_weight is None  # reading the packed weight would compute its update
        and module.batch_first
        and module.bias_k is None
        and not module.add_zero_attn
        and not (module.training and module.dropout)
    )


def _is_plain_open_clip(module: Any) -> bool:
    """Return whether a module is open_clip's own attention: packed and without extras."""
    return (
        type_before_parametrizations(module) is Attention
        and getattr(module, "q_proj_weight", None) is None  # version 3 has no such attribute
        and module.logit_scale is None
        and module.head_scale is None
        and all(type(norm) is nn.Identity for norm in (module.ln_q, module.ln_k, module.ln_inner))
        and not (module.training and (module.attn_drop.p or module.out_drop.p))
    )


def _multihead_forward(attention: nn.Module) -> Replacement:
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


def _open_clip_forward(attention: nn.Module) -> Replacement:
    def forward(
        usual: Callable[..., Tensor],
        x: Tensor,
        *args: Tensor | None,
        attn_mask: Tensor | None = None,
        **others: Tensor | None,
    ) -> Tensor:
        # version 4 may pass keys and values, by name
        is_self = not args and all(other is None or other is x for other in others.values())
        if is_self and _is_additive(attn_mask):
            return _attend(attention, x, attn_mask)
        return usual(x, *args, attn_mask=attn_mask, **others)

    return forward


def _is_additive(mask: Tensor | None) -> bool:
    """Return whether a mask is added to the scores; boolean ones differ from version to version."""
    return mask is None or mask.is_floating_point()


def _attend(attention: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the projected self-attention of tokens (N, L, W).

    Args:
        attention: has ``in_proj_weight``, ``in_proj_bias``, ``num_heads`` and ``out_proj``.
        tokens: float (N, L, W).
        mask: added to the scores, (L, L) or (N H, L, L).
    """
    packed = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    heads = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    has_mask_per_head = mask is not None and mask.ndim == 3
    if mask is not None and has_mask_per_head:
        mask = mask.unflatten(0, (len(tokens), attention.num_heads))
    project = attention.out_proj
    if packed.device.type == "cpu" and packed.dtype == torch.bfloat16 and not has_mask_per_head:
        bias = project.bias.to(packed.dtype) if project.bias is not None else None
        weight = project.weight.to(packed.dtype)
        return _Float32Attention.apply(heads, mask, weight, bias)
    query, key, value = heads
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return project(attended.transpose(1, 2).flatten(2))


class _Float32Attention(torch.autograd.Function):
    """Attention in float32 of bf16 queries, keys and values (3, N, H, L, D), and its projection.

    Returns bf16 (N, L, H D). Only the bf16 inputs are saved: the backward pass computes the
    attention again, which it needs for the projection's gradient too. Both passes convert a few
    sequences at a time, so that the float32 tensors stay in the processor's cache.
    """

    @staticmethod
    def forward(ctx, heads: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None):
        ctx.save_for_backward(heads, weight)
        ctx.mask = mask.float() if mask is not None else None
        attended = _empty_tokens(heads)
        with torch.autocast(heads.device.type, enabled=False):
            for some, out in _chunks(heads, _by_head(attended, heads)):
                query, key, value = some.float()
                out.copy_(scaled_dot_product_attention(query, key, value, attn_mask=ctx.mask))
            return linear(attended, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, weight = ctx.saved_tensors
        grads, attended = torch.empty_like(heads), _empty_tokens(heads)
        attended_grad = _by_head(grad @ weight, heads)
        with torch.enable_grad(), torch.autocast(heads.device.type, enabled=False):
            for some, g, out, recomputed in _chunks(
                heads, attended_grad, grads, _by_head(attended, heads)
            ):
                exact = some.detach().float().requires_grad_()
                query, key, value = exact
                result = scaled_dot_product_attention(query, key, value, attn_mask=ctx.mask)
                out.copy_(torch.autograd.grad(result, exact, g.float())[0])
                recomputed.copy_(result.detach())
        rows, needs = grad.flatten(0, 1), ctx.needs_input_grad
        weight_grad = rows.T @ attended.flatten(0, 1) if needs[2] else None
        return grads, None, weight_grad, rows.sum(dim=0) if needs[3] else None


def _empty_tokens(heads: Tensor) -> Tensor:
    """Return an uninitialised (N, L, H D) for the attention of heads (3, N, H, L, D)."""
    _, sequences, count, length, size = heads.shape
    return heads.new_empty(sequences, length, count * size)


def _by_head(tokens: Tensor, heads: Tensor) -> Tensor:
    """View tokens (N, L, H D) as (N, H, L, D)."""
    return tokens.unflatten(-1, (heads.shape[2], -1)).transpose(1, 2)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors (..., N, H, L, D) along N, together."""
    count = max(_CHUNK_ELEMENTS // math.prod(tensors[0].shape[-3:]), 1)
    return zip(*(tensor.split(count, dim=-4) for tensor in tensors), strict=True)
