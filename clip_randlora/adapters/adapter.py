"""Attach trained updates to a model's weights, blend them, bake them in, or take them off."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clip_randlora.adapters.bases import Bases
from clip_randlora.adapters.config import (
    LinearProbe,
    MethodConfig,
    RandLoRA,
    Sum,
    Tower,
    parse_stored,
    with_seed,
)
from clip_randlora.adapters.delta import Delta, largest_sides
from clip_randlora.adapters.deltas import add_updates, make_deltas
from clip_randlora.adapters.fast.linear import short_forwards
from clip_randlora.adapters.io import adapter_files, peft_files
from clip_randlora.adapters.targets import (
    WHOLE,
    TargetWeight,
    require_attention,
    select_weights,
)
from clip_randlora.errors import UserError
from clip_randlora.forward.replace import replaced_forwards


class AdaptedWeight(nn.Module):
    """The parametrization of one weight: ``W -> W + strength * dW``, part by part."""

    def __init__(self, weight: TargetWeight, deltas: list[Delta]):
        super().__init__()
        self.deltas = nn.ModuleDict(
            {part.target: delta for part, delta in zip(weight.parts, deltas, strict=True)}
        )
        self.rows = {part.target: part.rows for part in weight.parts}
        self.strength = 1.0
        self.base_required_grad = weight.weight.requires_grad
        # prompts pass their tower in two parts, which would form each of its weights twice
        self.may_form_again = weight.tower == "vision"
        self.keeps, self.kept = False, None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight in its shape and dtype; under bf16 autocast, in bf16."""
        if not self.keeps:
            return self._adapt(weight)
        kept = self.formed
        if kept is None:
            kept = self._adapt(weight)
            is_passing = torch.is_grad_enabled() and self.is_formed_again(kept.dtype)
            self.kept = weakref.ref(kept) if is_passing else partial(_same, kept)
        return kept

    def is_formed_again(self, dtype: torch.dtype) -> bool:
        """Tell whether backward forms the weight in ``dtype`` again, so that none is kept."""
        return self.may_form_again and all(d.is_cheap(dtype) for d in self.deltas.values())

    def keep(self, keeps: bool) -> None:
        """Form the weight once from now on, however often it is read, or anew at each reading.

        In training, one that is formed again in backward lives as long only as it is held.
        """
        self.keeps, self.kept = keeps, None

    @property
    def formed(self) -> Tensor | None:
        """The weight that is kept, if it has been read."""
        return self.kept() if self.kept else None

    def _adapt(self, weight: Tensor) -> Tensor:
        # a whole tensor may be a norm's or an embedding's, which autocast leaves as they are
        dtype = weight.dtype if WHOLE in self.rows else _dtype_in_use(weight)
        adapted = self.updated(weight, self.strength, dtype)
        if self.base_required_grad and not adapted.requires_grad:
            # torch's CPU linear chooses its kernel by this flag: keep the base's choice, and bits
            adapted = adapted.detach().requires_grad_()
        return adapted

    def updated(self, weight: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
        """Return ``W + strength * dW`` in the weight's shape and in ``dtype``."""
        if strength == 0:
            return weight
        rows, deltas = list(self.rows.values()), list(self.deltas.values())
        flat = weight.reshape(len(weight), -1)
        with torch.autocast(weight.device.type, enabled=False):  # rounded once, at the end
            updated = add_updates(flat, rows, deltas, strength, dtype)
        return updated.view(weight.shape)

    def delta(self, weight: Tensor) -> Tensor:
        """Return dW at full strength; rows that no part adapts are zero."""
        update = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        for target, rows in self.rows.items():
            update[rows] = self.deltas[target]().view(-1, *weight.shape[1:])
        return update


def check_strength(value: float) -> float:
    """Return a strength as a float.

    Raises:
        UserError: it is no number between 0 and 1.
    """
    try:
        strength = float(value)
    except (TypeError, ValueError):
        strength = nan
    if isinstance(value, str | bool) or not 0 <= strength <= 1:  # NaN, too
        raise UserError(f"strength: {value!r}; give a number between 0 and 1")
    return strength


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _dtype_in_use(weight: Tensor) -> torch.dtype:
    """Return what the layer computes in: bf16 where autocast would round the weight to it."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        asked = torch.get_autocast_dtype(kind)
        return asked if asked == torch.bfloat16 else weight.dtype
    return weight.dtype


@dataclass(frozen=True)
class AdaptedSummary:
    """What is adapted for one kind of target in one tower."""

    tower: str
    target: str
    weights: int
    parameters: int


class Adapter:
    """The trained updates of one model; made by `attach`, `load_adapter` or `add_adapters`.

    Attributes:
        bases: RandLoRA's frozen bases if they came with the adapter; None if the config's seed
            makes them.
        head: a linear probe's weights (C, E) and biases (C,) on unit image features (N, E), which
            updates no weight of the model; None for every other method.
    """

    def __init__(
        self,
        net: nn.Module,
        config: MethodConfig,
        name: str | None = None,
        bases: Bases | None = None,
    ):
        _check_has_none(net)
        self.net, self.config, self.bases = net, with_seed(config, 0), bases
        self.weights = {weight.name: weight for weight in select_weights(net, config)}
        self.head: nn.Linear | None = None
        self.base = adapter_files.identify(net, name)
        self._required_grad = {parameter: parameter.requires_grad for parameter in net.parameters()}
        self._adapted: dict[str, AdaptedWeight] = {}
        self._strength = 1.0
        self._is_attached, self._is_merged = True, False
        self._register()
        for parameter in self._required_grad:
            parameter.requires_grad_(False)

    def _register(self) -> None:
        parts = [(weight, part) for weight in self.weights.values() for part in weight.parts]
        shapes = [weight.part_shape(part) for weight, part in parts]
        deltas = iter(make_deltas(shapes, self.config, self.bases))
        for name, weight in self.weights.items():
            adapted = AdaptedWeight(weight, [next(deltas) for _ in weight.parts])
            adapted.to(weight.weight.device)
            parametrize.register_parametrization(
                weight.module,
                weight.tensor_name,
                adapted,
                unsafe=True,  # shape and dtype are kept
            )
            self._adapted[name] = adapted

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The encoders of which a weight is adapted."""
        return tuple(dict.fromkeys(weight.tower for weight in self.weights.values()))

    @property
    def strength(self) -> float:
        """How much of the update is applied: 0 is zero-shot, 1 is tuned, between interpolates.

        Weight-space interpolation as in WiSE-FT (Wortsman et al., arXiv 2109.01903), exact and
        without a second model.
        """
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = check_strength(value)
        for adapted in self._adapted.values():
            adapted.strength = self._strength

    @contextmanager
    def formed_once(self) -> Iterator[None]:
        """Form each updated weight once inside the block, however often the network reads it.

        For one forward pass, and for passes without gradients at one strength. It is this
        adapter's alone (`parametrize.cached` is the process's): others may train meanwhile.
        """
        for adapted in self._adapted.values():
            adapted.keep(True)
        try:
            yield
        finally:
            for adapted in self._adapted.values():
                adapted.keep(False)

    @torch.no_grad()
    def updated_weights(self, strength: float, tower: Tower) -> dict[str, Tensor]:
        """Return ``{weight name: W + strength * dW}`` of one tower, like each weight.

        Nothing of the adapter or the network changes, so any thread may ask.
        """
        weights = {}
        for name, adapted in self._adapted.items():
            weight = self.weights[name]
            if weight.tower == tower:
                original = weight.module.parametrizations[weight.tensor_name].original
                weights[name] = adapted.updated(original, strength, original.dtype)
        return weights

    @property
    def is_attached(self) -> bool:
        """Whether the model still has the adapter: it was neither detached nor merged."""
        return self._is_attached

    @property
    def is_merged(self) -> bool:
        """Whether the update is baked into the model's weights."""
        return self._is_merged

    @contextmanager
    def short_gradients(self) -> Iterator[None]:
        """Spare linear layers the gradient of their whole weight inside, where that is shorter.

        For one forward pass; see `clip_randlora.adapters.fast.linear`.
        """
        layers = [
            (self.weights[name].module, list(adapted.deltas.values()))
            for name, adapted in self._adapted.items()
        ]
        with replaced_forwards(short_forwards(layers, lambda: self._strength)):
            yield

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained tensors as ``WEIGHT.TARGET.TENSOR``, in the network's order.

        A linear probe's are ``head.weight`` and ``head.bias``.
        """
        for name, adapted in self._adapted.items():
            for suffix, parameter in adapted.deltas.named_parameters():
                yield f"{name}.{suffix}", parameter
        if self.head is not None:
            yield from self.head.named_parameters(prefix="head")

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """Count the trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def shapes(self) -> list[tuple[int, int]]:
        """Return (out, in) of every part of a weight that is adapted on its own."""
        return [d.shape for adapted in self._adapted.values() for d in adapted.deltas.values()]

    def deltas(self) -> dict[str, Tensor]:
        """Return ``{weight name: dW}`` at full strength, each in its weight's shape and dtype."""
        deltas = {}
        with torch.no_grad():
            for name, adapted in self._adapted.items():
                weight = self.weights[name]
                original = weight.module.parametrizations[weight.tensor_name].original
                deltas[name] = adapted.delta(original).contiguous()
        return deltas

    def summary(self) -> list[AdaptedSummary]:
        """Count what is adapted, for each tower and kind of target."""
        rows: dict[tuple[str, str], list[int]] = {}
        for name, weight in self.weights.items():
            for part in weight.parts:
                delta = self._adapted[name].deltas[part.target]
                counts = rows.setdefault((weight.tower, part.target), [0, 0])
                counts[0] += 1
                counts[1] += sum(parameter.numel() for parameter in delta.parameters())
        if self.head is not None:
            rows["", "linear probe"] = [0, self.num_parameters()]  # none of the model's weights
        return [AdaptedSummary(*key, *counts) for key, counts in rows.items()]

    def merge(self) -> None:
        """Bake the update, at the present strength, into the weights: plain open_clip again.

        Raises:
            UserError: it is a linear probe, which updates no weight.
        """
        if self.head is not None:
            raise UserError("a linear probe updates no weight of the model: nothing to merge")
        self._remove(bake=True)

    def detach(self) -> None:
        """Take the update off: every weight is bit for bit what it was before."""
        self._remove(bake=False)

    def _remove(self, bake: bool) -> None:
        if not self._is_attached:
            raise UserError("this adapter is no longer attached to its model")
        self._is_attached, self._is_merged = False, bake
        for weight in self.weights.values():
            parametrize.remove_parametrizations(
                weight.module, weight.tensor_name, leave_parametrized=bake
            )
        self._adapted.clear()
        for parameter, required in self._required_grad.items():
            parameter.requires_grad_(required)

    def save(self, path: str | Path, task: Mapping[str, Any] | None = None) -> None:
        """Write the trained numbers, the settings and the base's fingerprint: one safetensors file.

        The frozen bases are not in it: they are made again from the seed. Only those of an
        adapter that was trained elsewhere have to be.

        Args:
            path: the file to write.
            task: what else a classifier needs, as `Classifier.load` reads it.
        """
        tensors = dict(self.named_parameters()) | adapter_files.bases_to_tensors(self.bases)
        adapter_files.write(path, self.config, self.base, tensors, task)

    def _fill(self, tensors: Mapping[str, Tensor], source: str | Path) -> None:
        """Copy trained numbers from a file; if they do not fit, detach and raise a UserError."""
        parameters = dict(self.named_parameters())
        try:
            adapter_files.check_tensors(source, tensors, parameters)
        except UserError:
            self.detach()
            raise
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])


def _check_has_none(net: nn.Module) -> None:
    """Refuse a model with an adapter, whose weights would also look like another model's."""
    if any(isinstance(module, AdaptedWeight) for module in net.modules()):
        raise UserError("this model has an adapter already: detach() or merge() it first")


def attach(net: nn.Module, config: MethodConfig, name: str | None = None) -> Adapter:
    """Attach a fresh adapter, which changes no output, and freeze every weight of the model.

    Args:
        net: an open_clip model.
        config: of one of the `METHODS`. A linear probe's head is made where its classes are
            known, by `fit`.
        name: what to call the model in messages; by default the name that `load_model` gave it.

    Raises:
        UserError: the configuration matches no weight, a tower has attention that would be left
            out (see `clip_randlora.adapters.targets.require_attention`), or the model has an
            adapter already.
    """
    _check_has_none(net)
    require_attention(net, config)
    return Adapter(net, config, name)


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
        _check_has_none(net)
        imported = peft_files.read(path, net)
        _check_bases(path, net, imported.config, imported.bases)
        adapter = Adapter(net, imported.config, name, imported.bases)
        adapter._fill(imported.tensors, path)
        return adapter
    stored = adapter_files.read(path)
    _check_has_none(net)
    adapter_files.refuse_other_base(path, stored.base, adapter_files.identify(net, name))
    config = _parse_config(path, stored.config)
    _check_bases(path, net, config, stored.bases)
    adapter = Adapter(net, config, name, stored.bases)
    if isinstance(config, LinearProbe):
        adapter.head = _empty_head(path, stored.tensors, next(net.parameters()).device)
    adapter._fill(stored.tensors, path)
    return adapter


def _parse_config(path: str | Path, config: Mapping[str, Any]) -> MethodConfig:
    try:
        return parse_stored(config)
    except UserError as error:
        raise UserError(f"{path}: damaged adapter file, {error}") from error


def _empty_head(
    path: str | Path, tensors: Mapping[str, Tensor], device: torch.device
) -> nn.Linear | None:
    """Make a probe's head of the file's size; None if the file has none, as it was not trained."""
    weight = tensors.get("head.weight")
    if weight is None:
        return None
    if weight.ndim != 2:
        raise UserError(f"{path}: damaged adapter file, tensor head.weight has another shape")
    return nn.Linear(weight.shape[1], weight.shape[0], device=device)


def _check_bases(
    path: str | Path, net: nn.Module, config: MethodConfig, bases: Bases | None
) -> None:
    """Check that bases that came with an adapter are those of its settings on this model."""
    if bases is None:
        return
    if not isinstance(config, RandLoRA):
        raise UserError(f"{path}: damaged adapter file, bases of no RandLoRA; use another copy")
    shapes = [w.part_shape(part) for w in select_weights(net, config) for part in w.parts]
    adapter_files.check_bases(path, bases, config.rank, *largest_sides(shapes))


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
    _check_has_none(net)
    stored = [adapter_files.read(path) for path in paths]
    present = adapter_files.identify(net, name)
    for path, one in zip(paths, stored, strict=True):
        adapter_files.refuse_other_base(path, one.base, present)
        if one.bases or one.config.get("method") == "sum":
            raise UserError(f"{path}: imported or a sum itself; only trained runs can be added")
        if one.config.get("method") == "linear_probe":
            raise UserError(f"{path}: a linear probe, which updates no weight that could be added")
    terms = [_parse_config(path, one.config) for path, one in zip(paths, stored, strict=True)]
    for path, term in zip(paths, terms, strict=True):
        for setting in ("towers", "targets", "blocks"):
            first, this = (getattr(each, setting, None) for each in (terms[0], term))
            if this != first:
                raise UserError(
                    f"{path}: adapts other weights than {paths[0]} ({setting} {this}, not "
                    f"{first}); only adapters of the same weights can be added"
                )
    config = Sum(terms=tuple(terms), weights=weights)
    adapter = Adapter(net, config, name)
    adapter._fill(
        {
            key.rpartition(".")[0] + f".terms.{i}." + key.rpartition(".")[2]: tensor
            for i, one in enumerate(stored)
            for key, tensor in one.tensors.items()
        },
        " + ".join(map(str, paths)),
    )
    return adapter
