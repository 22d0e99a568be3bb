"""Activation checkpointing by block: the backward pass computes each residual block again.

Only a block's input is kept between the passes (Chen et al., "Training Deep Nets with Sublinear
Memory Cost", arXiv 1604.06174), and neither its activations nor its updated weights are. That
costs one more forward pass of the blocks, and one more computation of their updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clip_randlora.adapters.parametrization import AdaptedWeight
from clip_randlora.adapters.targets import block_name
from clip_randlora.forward.replace import present_forwards, replaced_forwards


def find_blocks(net: nn.Module) -> list[nn.Module]:
    """List the residual blocks of both towers, in the network's order."""
    names = dict.fromkeys(block_name(name) for name, _ in net.named_parameters())
    return [net.get_submodule(name) for name in names if name is not None]


@contextmanager
def checkpoint_blocks(net: nn.Module) -> Iterator[None]:
    """Keep nothing but the inputs of the blocks in the forward passes inside the context.

    The backward pass computes each block again to the same bits, by the forward passes that its
    modules have now. It may run outside of the context. Passes without gradients are left alone.
    """
    with replaced_forwards({block: partial(_run, block) for block in find_blocks(net)}):
        yield


def _run(block: nn.Module, inner: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """Run a block whose present forward pass is ``inner``, and keep its inputs only."""
    if not torch.is_grad_enabled():
        return inner(*inputs, **named)
    forwards = present_forwards(module for module in block.modules() if module is not block)
    weights = [module for module in block.modules() if isinstance(module, AdaptedWeight)]

    def compute(*inputs: Any, **named: Any) -> Any:
        with ExitStack() as afterwards:
            for weight in weights:  # computed once, and not kept after the block
                weight.set_caching(True)
                afterwards.callback(weight.set_caching, False)
            afterwards.enter_context(replaced_forwards(forwards))
            return inner(*inputs, **named)

    # no block draws random numbers: models train in evaluation mode
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
