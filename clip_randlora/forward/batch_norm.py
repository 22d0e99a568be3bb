"""Fold frozen batch norms into the convolutions before them, temporarily or permanently.

``norm(conv(x)) = conv(x; W * s) + b`` with ``s = weight / sqrt(running_var + eps)`` and ``b = bias
- running_mean * s`` (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2). This saves one pass
over the activations, forward and backward. In training, weights are scaled where they are read:
gradients reach an adapter's update through the scaling, and no stored tensor changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
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


def find_conv_bn_pairs(model: Model) -> list[Pair]:
    """Find the pairs of an image tower that can be folded, by watching one forward pass.

    A pair is left out if anything else reads the convolution's output, if either module is used
    more than once, has hooks or is of a class with its own forward pass, or if the norm is trained
    or uses the batch's statistics.
    """
    tower: Any = model.net.visual
    if not any(_is_foldable_norm(module) for module in tower.modules()):
        return []
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # keeping the tensors keeps their ids unique
    read: dict[nn.BatchNorm2d, int] = {}

    def after_conv(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        outputs[id(output)] = conv, output

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        calls[norm] += 1
        read[norm] = id(inputs[0])

    convs = [module for module in tower.modules() if _is_foldable_conv(module)]
    norms = [module for module in tower.modules() if _is_foldable_norm(module)]
    with ExitStack() as hooks, torch.no_grad(), _Reads(outputs) as reads:
        for conv in convs:
            hooks.enter_context(_removing(conv.register_forward_hook(after_conv)))
        for norm in norms:
            hooks.enter_context(_removing(norm.register_forward_pre_hook(before_norm)))
        side, dtype = model.image_size, next(tower.parameters()).dtype
        output = tower(torch.zeros(1, 3, side, side, dtype=dtype, device=model.device))
    returned = {id(leaf) for leaf in tree_leaves(output)}
    return [
        Pair(outputs[key][0], norm)
        for norm, key in read.items()
        if key in outputs
        and key not in returned
        and reads.counts[key] == 1
        and calls[outputs[key][0]] == calls[norm] == 1
    ]


@contextmanager
def folded_conv_bn(pairs: list[Pair]) -> Iterator[None]:
    """Fold each pair inside the block; outputs and gradients stay the same up to rounding.

    Only the modules' ``forward`` is replaced, so afterwards every module is bit for bit as before.
    """
    replacements: dict[nn.Module, Replacement] = {}
    for pair in pairs:
        replacements[pair.conv] = _folded_forward(pair)
        replacements[pair.norm] = partial(_after_norm, pair.norm)
    with replaced_forwards(replacements):
        yield


def fuse_conv_bn(pairs: list[Pair]) -> None:
    """Fold each pair permanently, for inference; outputs stay the same up to rounding."""
    for pair in pairs:
        fused = fuse_conv_bn_eval(pair.conv, pair.norm)
        pair.conv.weight, pair.conv.bias = fused.weight, fused.bias
        pair.norm.forward = partial(_after_norm, pair.norm, None)  # type: ignore[method-assign]


def _folded_forward(pair: Pair) -> Replacement:
    """Return a forward pass that computes the convolution and its norm."""
    conv: Any = pair.conv
    scale, bias = _scale_and_bias(pair)
    scale = scale[:, None, None, None]
    is_trained = is_parametrized(conv, "weight") or conv.weight.requires_grad
    constant = None if is_trained else conv.weight * scale
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


def _padding(conv: Any, images: Tensor) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom), in `torch.nn.functional.pad`'s order."""
    if isinstance(conv, Conv2dSame):
        settings = (list(of) for of in (conv.kernel_size, conv.stride, conv.dilation))
        left, right, top, bottom = pad_same_arg(list(images.shape[2:]), *settings)
        return left, right, top, bottom
    if isinstance(conv.padding, str):
        return tuple(conv._reversed_padding_repeated_twice)
    down, right = conv.padding
    return right, right, down, down


@torch.no_grad()
def _scale_and_bias(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return s and b, each (C,) in the weight's dtype; b includes the convolution's own bias."""
    norm: Any = pair.norm
    conv = pair.conv
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
    """Do the rest of the norm's forward pass: timm's also applies the activation."""
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
    """Counts the operations that read each tensor whose id is a key of ``tensors``."""

    def __init__(self, tensors: dict[int, Any]):
        super().__init__()
        self.tensors: dict[int, Any] = tensors
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        keys = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.counts.update(keys & self.tensors.keys())
        return func(*args, **kwargs)


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
