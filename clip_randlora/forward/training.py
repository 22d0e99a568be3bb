"""The forward pass of a training step, made fast and small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from clip_randlora.adapters import Adapter
from clip_randlora.forward.attention import batch_first_sdpa, last_block_cls_only
from clip_randlora.forward.block_checkpoints import checkpoint_blocks, find_blocks
from clip_randlora.forward.recompute import checkpoint_cheap_ops


@contextmanager
def training_forward(
    net: nn.Module, adapter: Adapter, *, checkpoints_blocks: bool = False
) -> Iterator[None]:
    """Make the forward pass of a training step fast and small inside the block.

    Losses and gradients are the same up to rounding. Call ``backward`` outside of the block::

        with cr.training_forward(net, adapter):
            loss = ...
        loss.backward()

    Args:
        net: an open_clip model that no other thread uses.
        adapter: an adapter that is attached to it.
        checkpoints_blocks: keep only the inputs of the residual blocks for the backward pass, which
            computes each block again: less memory, and about a third more time.
    """
    blocks = find_blocks(net) if checkpoints_blocks else []
    with (
        adapter.cached_weights(),  # each updated weight is computed once, however often it is read
        batch_first_sdpa(net),  # attention skips its transposed copies
        last_block_cls_only(net),  # the last block of a ViT computes the class token alone
        checkpoint_cheap_ops(net, but=blocks),  # GELUs and layer norms are computed again
        checkpoint_blocks(net) if blocks else nullcontext(),
    ):
        yield
