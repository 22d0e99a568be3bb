"""Networks for inference: copies that never change, so that any number of threads may call them.

An adapter adds its update wherever a weight is read, and a training step replaces forward passes.
Both change the network, so threads that answer at the same time would disturb one another. A copy
shares every tensor with its original except the updated weights, which are computed once. Its
batch norms are folded into convolutions, and its last block computes the class token alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clip_randlora.adapters.parametrization import AdaptedWeight
from clip_randlora.clip.models import CLIPNet, Model
from clip_randlora.forward.attention import last_block_cls_forward
from clip_randlora.forward.batch_norm import find_conv_bn_pairs, fuse_conv_bn
from clip_randlora.forward.replace import remove_replacements


@torch.no_grad()
def inference_model(model: Model, weights: Mapping[str, Tensor] | None = None) -> Model:
    """Return a copy of ``model`` for inference, with its own or with other weights.

    Args:
        model: with or without an adapter; it stays as it is, and other threads may read it.
        weights: ``{name: tensor}`` from `Adapter.updated_weights`; None for the base's weights.
    """
    ready = replace(model, net=_copy(model.net, weights or {}))
    fuse_conv_bn(find_conv_bn_pairs(ready))
    for block, forward in last_block_cls_forward(ready.net).items():
        block.forward = partial(forward, block.forward)
    return ready


@torch.no_grad()
def text_inference_net(model: Model, weights: Mapping[str, Tensor]) -> CLIPNet:
    """Return a network that encodes prompts with other weights in its text tower.

    Its image tower is that of ``model`` itself, which is not copied and not to be called.
    """
    return _copy(model.net, weights, kept=model.net.visual)


def _copy(
    net: nn.Module, weights: Mapping[str, Tensor], kept: nn.Module | None = None
) -> nn.Module:
    """Copy a network's modules but not its tensors; adapted weights become plain parameters.

    The module ``kept`` is not copied.
    """
    left_alone = set(kept.modules()) if kept is not None else set()
    parametrized = {
        name: module
        for name, module in net.named_modules()
        if module not in left_alone and parametrize.is_parametrized(module)
    }
    same: dict[int, object] = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    same[id(kept)] = kept
    without = {id(module.parametrizations): nn.ModuleDict() for module in parametrized.values()}
    copied = copy.deepcopy(net, {**same, **without})
    for module in copied.modules():
        if module not in left_alone:
            remove_replacements(module)
    for name, module in parametrized.items():
        plain = copied.get_submodule(name)
        plain.__class__ = parametrize.type_before_parametrizations(module)
        del plain.parametrizations
        for tensor_name, added in module.parametrizations.items():
            tensor = weights.get(f"{name}.{tensor_name}" if name else tensor_name)
            if tensor is None:
                tensor = _base_weight(module, tensor_name, added)
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            plain.register_parameter(tensor_name, tensor)
    return copied


def _base_weight(
    module: nn.Module, tensor_name: str, added: parametrize.ParametrizationList
) -> Tensor:
    """Return a weight without an adapter's update, but with any other parametrization."""
    if all(isinstance(parametrization, AdaptedWeight) for parametrization in added):
        return added.original
    return getattr(module, tensor_name)
