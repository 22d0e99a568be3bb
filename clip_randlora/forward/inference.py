"""A network that only answers: a copy in which everything that is fixed is made ready once.

An adapter adds its update wherever a weight is read, and a training step replaces forward passes
for its time. Both are a network's state, and threads that answer at the same time would see one
another's. So answers come from networks of their own. A copy shares every tensor with the network
that it is made from but those that an update changes, which are formed once; batch norms are
folded into convolutions, and a last block computes the pooled token alone. Nothing changes it
afterwards, so any number of threads may call it at once.
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
from clip_randlora.clip.models import Model
from clip_randlora.forward.attention import pooled_token_forward
from clip_randlora.forward.batch_norm import find_pairs, fold
from clip_randlora.forward.replace import without_replacements


@torch.no_grad()
def answering_model(model: Model, weights: Mapping[str, Tensor] | None = None) -> Model:
    """Return a model that answers as ``model`` would with other weights, and never changes.

    Args:
        model: with or without an adapter; it stays as it is, and may be read by other threads.
        weights: ``{name: tensor}`` of the adapted weights that differ from the base's, as
            `Adapter.updated_weights` returns them.
    """
    ready = replace(model, net=_copy(model.net, weights or {}))
    fold(find_pairs(ready))
    for block, forward in pooled_token_forward(ready.net.visual).items():
        block.forward = partial(forward, block.forward)
    return ready


def _copy(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy the modules of a network, not its tensors; adapted weights become plain ones."""
    parametrized = {
        name: module for name, module in net.named_modules() if parametrize.is_parametrized(module)
    }
    same = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    without = {id(module.parametrizations): nn.ModuleDict() for module in parametrized.values()}
    copied = copy.deepcopy(net, {**same, **without})
    for module in copied.modules():
        without_replacements(module)
    for name, module in parametrized.items():
        plain = copied.get_submodule(name)
        plain.__class__ = parametrize.type_before_parametrizations(module)
        del plain.parametrizations
        for tensor_name, added in module.parametrizations.items():
            tensor = weights.get(f"{name}.{tensor_name}" if name else tensor_name)
            if tensor is None:
                tensor = _base(module, tensor_name, added)
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            plain.register_parameter(tensor_name, tensor)
    return copied


def _base(module: nn.Module, tensor_name: str, added: parametrize.ParametrizationList) -> Tensor:
    """Return a weight without an adapter's update; with what else may be parametrized."""
    if all(isinstance(parametrization, AdaptedWeight) for parametrization in added):
        return added.original
    return getattr(module, tensor_name)
