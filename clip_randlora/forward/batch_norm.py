"""Frozen batch norm folded into the convolution before it: for the time of a block, or for good.

``norm(conv(x)) = conv(x; W * s) + b`` with ``s = weight / sqrt(running_var + eps)`` and ``b = bias
- running_mean * s``: one pass over the activations less, forward and backward (Jacob et al., CVPR
2018, arXiv 1712.05877, section 3.2). In training weights are scaled where they are read, so an
adapter's update is scaled and trained along, and nothing that is stored changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip_randlora.clip.models import Model
from clip_randlora.forward.depthwise import depthwise_conv
from clip_randlora.forward.replace import Replacement, replaced_forwards

_FULL_PRECISION = torch.float32, torch.float64  # a scaled weight would round otherwise


@dataclass(frozen=True)
class Pair:
    """A convolution and the frozen batch norm that alone reads its output."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d


def find_pairs(model: Model) -> list[Pair]:
    """Find what `folded` can fold in an image tower, by watching one forward pass.

    A pair is left out where anything else reads the convolution's output, where either module is
    used more than once, is of a class with a forward pass of its own, has hooks, or where the norm
    uses the batch's statistics or is trained.

    """
    tower = model.net.visual
    if not any(_is_foldable_norm(module) for module in tower.modules()):
        return []
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept, so that ids stay theirs
    read: dict[nn.BatchNorm2d, int] = {}

    def after_conv(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        made[id(output)] = conv, output

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        calls[norm] += 1
        read[norm] = id(inputs[0])

    convs = [module for module in tower.modules() if _is_foldable_conv(module)]
    norms = [module for module in tower.modules() if _is_foldable_norm(module)]
    with ExitStack() as hooks, torch.no_grad(), _Reads(made) as reads:
        for conv in convs:
            hooks.enter_context(_removing(conv.register_forward_hook(after_conv)))
        for norm in norms:
            hooks.enter_context(_removing(norm.register_forward_pre_hook(before_norm)))
        side, dtype = model.image_size, next(tower.parameters()).dtype
        output = tower(torch.zeros(1, 3, side, side, dtype=dtype, device=model.device))
    returned = {id(leaf) for leaf in tree_leaves(output)}
    return [
        Pair(made[key][0], norm)
        for norm, key in read.items()
        if key in made
        and key not in returned
        and reads.counts[key] == 1
        and calls[made[key][0]] == calls[norm] == 1
    ]


@contextmanager
def folded(pairs: list[Pair]) -> Iterator[None]:
    """Fold each pair inside the block; outputs and gradients equal the unfolded to rounding.

    On leaving, every module is what it was, bit for bit: only ``forward`` is another inside.
    """
    replacements: dict[nn.Module, Replacement] = {}
    for pair in pairs:
        replacements[pair.conv] = _folded_forward(pair)
        replacements[pair.norm] = partial(_after_norm, pair.norm)
    with replaced_forwards(replacements):
        yield


def fold(pairs: list[Pair]) -> None:
    """Fold each pair for good: the convolutions get other weights, the norms do nothing more.

    For a network that only answers; outputs equal the unfolded to rounding.
    """
    for pair in pairs:
        fused = fuse_conv_bn_eval(pair.conv, pair.norm)
        pair.conv.weight, pair.conv.bias = fused.weight, fused.bias
        pair.norm.forward = partial(_after_norm, pair.norm, None)


def _folded_forward(pair: Pair) -> Replacement:
    """Return what replaces the convolution's forward pass: it has the norm in it."""
    conv = pair.conv
    scale, bias = _scale_and_bias(pair)
    scale = scale[:, None, None, None]
    changes = is_parametrized(conv, "weight") or conv.weight.requires_grad
    constant = None if changes else conv.weight * scale
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels

    def forward(_: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        weight = conv.weight * scale if constant is None else constant
        padding = _padding(conv, images)
        if is_depthwise and conv.dilation == (1, 1):
            return depthwise_conv(images, weight, bias, conv.stride, padding)
        left, right, top, bottom = padding
        if (left, top) != (right, bottom):
            images, left, top = F.pad(images, padding), 0, 0
        return F.conv2d(images, weight, bias, conv.stride, (top, left), conv.dilation, conv.groups)

    return forward


def _padding(conv: nn.Conv2d, images: Tensor) -> tuple[int, int, int, int]:
    """Return the zeros at the left, right, top and bottom, as `torch.nn.functional.pad` does."""
    if isinstance(conv, Conv2dSame):
        sizes = images.shape[2:], conv.kernel_size, conv.stride, conv.dilation
        return tuple(pad_same_arg(*sizes))
    if isinstance(conv.padding, str):
        return tuple(conv._reversed_padding_repeated_twice)
    down, right = conv.padding
    return right, right, down, down


@torch.no_grad()
def _scale_and_bias(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return s and b, (C,) of the weight's dtype; the convolution's own bias is in b."""
    norm, conv = pair.norm, pair.conv
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    dtype = norm.running_var.dtype
    return scale.to(dtype), bias.to(dtype)


def _after_norm(norm: nn.BatchNorm2d, _: object, images: Tensor) -> Tensor:
    """Do what is left of the norm's forward pass: timm's holds the activation too."""
    return norm.act(norm.drop(images)) if isinstance(norm, BatchNormAct2d) else images


def _is_foldable_conv(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward in (nn.Conv2d.forward, Conv2dSame.forward)
        and module.padding_mode == "zeros"
        and next(module.parameters()).dtype in _FULL_PRECISION
        and not _has_own_behaviour(module)
    )


def _is_foldable_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.BatchNorm2d)
        and type(module).forward in (nn.BatchNorm2d.forward, BatchNormAct2d.forward)
        and not module.training
        and module.running_var is not None
        and module.running_var.dtype in _FULL_PRECISION
        and not any(parameter.requires_grad for parameter in module.parameters())
        and not _has_own_behaviour(module)
    )


def _has_own_behaviour(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks
    return any(hooks) or "forward" in module.__dict__


class _Reads(TorchDispatchMode):
    """Counts the operations that read each of the ``watched`` tensors, a mapping by id."""

    def __init__(self, watched: dict[int, Any]):
        super().__init__()
        self.watched, self.counts = watched, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        keys = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.counts.update(keys & self.watched.keys())
        return func(*args, **kwargs)


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
