"""What a transformer's attention need not do: for nothing, or in a way that is slow on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


@contextmanager
def pooled_token_only(visual: nn.Module) -> Iterator[None]:
    """Let the last block of a ViT compute the class token alone, where nothing else is read.

    Its keys and values need every token; its queries, output projection and MLP do not.
    """
    if not _reads_class_token_only(visual):
        yield
        return
    block = visual.transformer.resblocks[-1]

    def forward(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = block.ln_1(x)
        query = normed[:, :1]
        attended = block.attn(query, normed, normed, need_weights=False, attn_mask=attn_mask)[0]
        x = x[:, :1] + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    with _forwards({block: forward}):
        yield


def _reads_class_token_only(visual: nn.Module) -> bool:
    """Tell whether a tower is open_clip's ViT whose feature is its class token's."""
    return (
        isinstance(visual, VisionTransformer)
        and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock
        and visual.transformer.batch_first
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
    )


@contextmanager
def direct_self_attention(net: nn.Module) -> Iterator[None]:
    """Let packed self-attention keep its tokens in batch-first order, and compute in float32.

    `nn.MultiheadAttention` turns them token-first and copies them before and after its products,
    which training then keeps. And on CPUs torch's fused attention is slow in bf16: forward and
    backward take 34 ms for 32 images with 12 heads, 50 tokens and width 64, against 16 in
    float32, the casts included. Under autocast the products with the weights stay in bf16.
    """
    plain = [module for module in net.modules() if _is_plain(module)]
    with _forwards({module: _direct_forward(module) for module in plain}):
        yield


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a module is packed, batch-first attention without extras."""
    return (
        type(module) is nn.MultiheadAttention
        and module.in_proj_weight is not None
        and module.batch_first
        and module.bias_k is None
        and not module.add_zero_attn
        and not (module.training and module.dropout)
    )


def _direct_forward(attention: nn.MultiheadAttention) -> Callable[..., tuple[Tensor, None]]:
    usual = attention.forward

    def forward(
        query: Tensor, key: Tensor, value: Tensor, *, need_weights=False, attn_mask=None
    ) -> tuple[Tensor, None]:
        if query is not key or key is not value or need_weights:
            return usual(query, key, value, need_weights=need_weights, attn_mask=attn_mask)
        packed = linear(query, attention.in_proj_weight, attention.in_proj_bias)
        heads = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if packed.device.type == "cpu" and packed.dtype == torch.bfloat16:
            attended = _attend_in_float32(heads, attn_mask).to(packed.dtype)
        else:
            attended = scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        return attention.out_proj(attended.transpose(1, 2).flatten(2)), None

    return forward


def _attend_in_float32(heads: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with bf16 queries, keys and values (3, N, H, L, D): float32 (N, H, L, D)."""
    with torch.autocast(heads.device.type, enabled=False):
        mask = mask.float() if mask is not None else None
        return scaled_dot_product_attention(*heads.float(), attn_mask=mask)


@contextmanager
def _forwards(forwards: dict[nn.Module, Callable[..., object]]) -> Iterator[None]:
    """Give modules other forward passes inside the block."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)  # another thread may have taken it off already
