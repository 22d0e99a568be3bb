"""What a forward pass keeps for the backward pass, without what is cheap to compute again.

A linear layer keeps its input for its weight's gradient. Where that input is the output of an
activation or a layer norm, which keeps its own input anyway, both are kept: for the MLP of a
transformer's block that is five of some seventeen times the width. Computing them again costs one
pass over memory, less than a hundredth of a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

_CHEAP = (nn.GELU, QuickGELU, nn.LayerNorm)


@dataclass(frozen=True)
class _Output:
    """An output of a cheap module: the tensor while it lives, and how to compute it again."""

    tensor: weakref.ref[Tensor]
    compute: Callable[[], Tensor]


@dataclass(frozen=True)
class _View:
    """What stands for a view of such an output until the backward pass asks for it."""

    compute: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def recomputed_in_backward(net: nn.Module) -> Iterator[None]:
    """Keep no outputs of GELUs and layer norms in the forward passes inside the block.

    The backward pass computes them again, to the same bits; it may run outside of the block.
    """
    outputs: dict[int, _Output] = {}

    def remember(output: Tensor, compute: Callable[[], Tensor]) -> None:
        if output.requires_grad:
            outputs[_address(output)] = _Output(weakref.ref(output), compute)

    def remember_module(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) == 1:
            remember(output, _same_again(module, inputs[0].detach()))

    def pack(tensor: Tensor) -> Tensor | _View:
        output = outputs.get(_address(tensor))
        # a dead output's memory may be another tensor's by now
        if output is None or output.tensor() is None:
            return tensor
        return _View(output.compute, tensor.shape, tensor.stride(), tensor.storage_offset())

    hooks = [
        module.register_forward_hook(remember_module)
        for module in net.modules()
        if isinstance(module, _CHEAP)
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


def _same_again(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return what computes a module's output again, under the present autocast."""
    kind = x.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def compute() -> Tensor:
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=enabled):
            return module.forward(x)

    return compute


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
