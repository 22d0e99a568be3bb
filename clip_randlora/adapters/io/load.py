"""Load adapters from files, and add several of them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_randlora.adapters.adapter import Adapter, check_has_none
from clip_randlora.adapters.bases import Bases
from clip_randlora.adapters.config import MethodConfig
from clip_randlora.adapters.heads import HeadConfig
from clip_randlora.adapters.io import adapter_files, peft_files
from clip_randlora.adapters.methods import Sum, parse_stored
from clip_randlora.adapters.randlora import RandLoRA
from clip_randlora.adapters.targets import select_weights
from clip_randlora.errors import UserError


def load_adapter(net: nn.Module, path: str | Path, name: str | None = None) -> Adapter:
    """Attach the adapter that `Adapter.save`, ``export --format adapter`` or peft wrote.

    Args:
        net: the base model, unadapted.
        path: a file of this project's or the exported folder around one; or the folder (or its
            ``adapter_model.safetensors``) of a RandLoRA adapter that peft trained on transformers'
            ``CLIPModel``, for which ``net`` must be the same model in open_clip's layout: peft
            stores no fingerprint to check that by.
        name: of the model, for messages.

    Raises:
        UserError: the file cannot be read, or was trained on another base model; both are named.
    """
    if peft_files.is_peft(path):
        check_has_none(net)
        imported = peft_files.read(path, net)
        _check_bases(path, net, imported.config, imported.bases)
        adapter = Adapter(net, imported.config, name, imported.bases)
        adapter.load_parameters(imported.tensors, path)
        return adapter
    stored = adapter_files.read(path)
    check_has_none(net)
    adapter_files.refuse_other_base(path, stored.base, adapter_files.identify(net, name))
    config = _parse_config(path, stored.config)
    _check_bases(path, net, config, stored.bases)
    adapter = Adapter(net, config, name, stored.bases)
    if isinstance(config, HeadConfig):
        adapter.head = _empty_head(path, config, stored.tensors, next(net.parameters()).device)
    adapter.load_parameters(stored.tensors, path)
    return adapter


def _adapted(net: nn.Module, config: MethodConfig) -> list[str]:
    return [weight.name for weight in select_weights(net, config)]


def _parse_config(path: str | Path, config: Mapping[str, Any]) -> MethodConfig:
    try:
        return parse_stored(config)
    except UserError as error:
        raise UserError(f"{path}: damaged adapter file, {error}") from error


def _empty_head(
    path: str | Path, config: HeadConfig, tensors: Mapping[str, Tensor], device: torch.device
) -> nn.Module | None:
    """Make a head of the file's size; None if the file has none, as it was not trained."""
    own = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
    if not own:
        return None
    try:
        return config.head_of(own).to(device)
    except UserError as error:
        raise UserError(f"{path}: damaged adapter file, {error}") from error


def _check_bases(
    path: str | Path, net: nn.Module, config: MethodConfig, bases: Bases | None
) -> None:
    """Check that bases that came with an adapter are those of its settings on this model."""
    if bases is None:
        return
    if not isinstance(config, RandLoRA):
        raise UserError(f"{path}: damaged adapter file, bases of no RandLoRA; use another copy")
    shapes = [w.part_shape(part) for w in select_weights(net, config) for part in w.parts]
    rows, columns = max(map(max, shapes)), max(map(min, shapes))
    adapter_files.check_bases(path, bases, config.rank, rows, columns)


def add_adapters(
    net: nn.Module,
    paths: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    name: str | None = None,
) -> Adapter:
    """Attach the weighted sum of several adapters' updates: their average, by default.

    Arithmetic in weight space: ``dW = sum_i weight_i dW_i`` (Ilharco et al., ICLR 2023,
    arXiv 2212.04089).

    Args:
        net: the base model, unadapted.
        paths: adapter files as `Adapter.save` writes them, trained on ``net``.
        weights: one for each, of any sign; by default 1 / their number.
        name: of the model, for messages.

    Raises:
        UserError: an adapter is of another base or adapts other weights, or the numbers of
            adapters and weights differ.
    """
    weights = tuple(weights) if weights is not None else (1 / len(paths),) * len(paths)
    if len(weights) != len(paths):
        raise UserError(f"weights: {len(weights)} for {len(paths)} adapters; give one for each")
    for weight in weights:
        if isinstance(weight, str | bool) or not isfinite(weight):
            raise UserError(f"weights: {weight!r}; give finite numbers")
    check_has_none(net)
    stored = [adapter_files.read(path) for path in paths]
    present = adapter_files.identify(net, name)
    for path, one in zip(paths, stored, strict=True):
        adapter_files.refuse_other_base(path, one.base, present)
        if one.bases or one.config.get("method") == "sum":
            raise UserError(f"{path}: imported or a sum itself; only trained runs can be added")
    terms = [_parse_config(path, one.config) for path, one in zip(paths, stored, strict=True)]
    for path, term in zip(paths, terms, strict=True):
        if isinstance(term, HeadConfig):
            raise UserError(f"{path}: a head, which updates no weight that could be added")
        for setting in ("towers", "targets", "blocks"):
            first, this = (getattr(each, setting, None) for each in (terms[0], term))
            if this != first:
                raise UserError(
                    f"{path}: adapts other weights than {paths[0]} ({setting} {this}, not "
                    f"{first}); only adapters of the same weights can be added"
                )
        if _adapted(net, term) != _adapted(net, terms[0]):
            raise UserError(
                f"{path}: {term.method} adapts other weights than {terms[0].method} in {paths[0]}; "
                f"only adapters of the same weights can be added"
            )
    config = Sum(terms=tuple(terms), weights=weights)
    adapter = Adapter(net, config, name)
    adapter.load_parameters(
        {
            key.rpartition(".")[0] + f".terms.{i}." + key.rpartition(".")[2]: tensor
            for i, one in enumerate(stored)
            for key, tensor in one.tensors.items()
        },
        " + ".join(map(str, paths)),
    )
    return adapter
