"""Selective gradient checkpointing: what is cheap to recompute is not kept for the backward pass.

A linear layer saves its input for its weight's gradient. If an activation or a layer norm returned
that input, both modules save a tensor: for the MLPs of a transformer block these are five of about
seventeen times the width. Recomputing them costs one pass over memory, less than a hundredth of a
step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

_CHEAP = (nn.GELU, QuickGELU, nn.LayerNorm)


@dataclass(frozen=True)
class _Output:
    """The output of a cheap module, and how to recompute it."""

    tensor: weakref.ref[Tensor]
    compute: Callable[[], Tensor]


@dataclass(frozen=True)
class _View:
    """Replaces a saved view of such an output until the backward pass asks for it."""

    compute: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def checkpoint_cheap_ops(net: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Save no outputs of GELUs and layer norms in the forward passes inside the block.

    The backward pass recomputes them to the same bits. It may run outside of the block. The
    modules ``but``, with what they hold, are left alone.
    """
    left_alone = {module for outer in but for module in outer.modules()}
    outputs: dict[int, _Output] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) == 1 and output.requires_grad:
            compute = _recompute(module, inputs[0].detach())
            outputs[_address(output)] = _Output(weakref.ref(output), compute)

    def pack(tensor: Tensor) -> Tensor | _View:
        output = outputs.get(_address(tensor))
        # once an output is freed, another tensor may have its address
        if output is None or output.tensor() is None:
            return tensor
        return _View(output.compute, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    hooks = [
        module.register_forward_hook(remember)
        for module in net.modules()
        if isinstance(module, _CHEAP) and module not in left_alone
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _unpack(packed: Tensor | _View) -> Tensor:
    if not isinstance(packed, _View):
        return packed
    return packed.compute().as_strided(packed.size, packed.stride, packed.offset)


def _recompute(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes a module's output again, under the present autocast."""
    kind = x.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def compute() -> Tensor:
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=enabled):
            return module.forward(x)

    return compute


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
