"""Attach trained updates to a model's weights, blend them, bake them in, or take them off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clip_randlora.adapters.bases import Bases
from clip_randlora.adapters.config import MethodConfig, Tower
from clip_randlora.adapters.delta import Shape
from clip_randlora.adapters.io import adapter_files
from clip_randlora.adapters.parametrization import AdaptedWeight
from clip_randlora.adapters.randlora import RandLoRA
from clip_randlora.adapters.targets import require_attention, select_weights
from clip_randlora.errors import UserError


def check_strength(value: float) -> float:
    """Return a strength as a float.

    Raises:
        UserError: it is not a number between 0 and 1.
    """
    try:
        strength = float(value)
    except (TypeError, ValueError):
        strength = nan
    if isinstance(value, str | bool) or not 0 <= strength <= 1:  # NaN, too
        raise UserError(f"strength: {value!r}; give a number between 0 and 1")
    return strength


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
        net: the open_clip model that it is attached to.
        config: the settings of its method.
        weights: ``{name: weight}`` of what it adapts.
        bases: RandLoRA's frozen bases if they came with the adapter; None if the config's seed
            makes them.
        head: maps unit image features (N, E) to logits (N, C) in the methods of
            `clip_randlora.adapters.heads`, which update no weight; None for every other method.
        base: the name and the fingerprint of the model.
        is_attached: whether the model still has the adapter: it was neither detached nor merged.
        is_merged: whether the update was added to the model's weights.
    """

    def __init__(
        self,
        net: nn.Module,
        config: MethodConfig,
        name: str | None = None,
        bases: Bases | None = None,
    ):
        check_has_none(net)
        self.net, self.config, self.bases = net, config.with_seed(0), bases
        self.weights = {weight.name: weight for weight in select_weights(net, config)}
        self.head: nn.Module | None = None
        self.base = adapter_files.identify(net, name)
        self._required_grad = {parameter: parameter.requires_grad for parameter in net.parameters()}
        self._strength = 1.0
        self.is_attached, self.is_merged = True, False
        self._adapted = self._parametrize()
        for parameter in self._required_grad:
            parameter.requires_grad_(False)

    def _parametrize(self) -> dict[str, AdaptedWeight]:
        shapes = [w.part_shape(part) for w in self.weights.values() for part in w.parts]
        if isinstance(self.config, RandLoRA):
            deltas = iter(self.config.make_deltas(shapes, self.bases))
        else:
            deltas = iter(self.config.make_deltas(shapes))
        adapted = {}
        for name, weight in self.weights.items():
            adapted[name] = AdaptedWeight(weight, [next(deltas) for _ in weight.parts])
            adapted[name].to(weight.weight.device)
            parametrize.register_parametrization(
                weight.module,
                weight.tensor_name,
                adapted[name],
                unsafe=True,  # shape and dtype are kept
            )
        return adapted

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The encoders that have an adapted weight."""
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
    def cached_weights(self) -> Iterator[None]:
        """Form each updated weight once inside the block, however often the network reads it.

        For one forward pass, and for passes without gradients at one strength. Unlike
        `torch.nn.utils.parametrize.cached`, it leaves other networks in other threads alone.
        """
        for adapted in self._adapted.values():
            adapted.set_caching(True)
        try:
            yield
        finally:
            for adapted in self._adapted.values():
                adapted.set_caching(False)

    formed_once = cached_weights  # its earlier name

    def short_gradients(self) -> AbstractContextManager[None]:
        """Do nothing: kept for callers of earlier versions."""
        return nullcontext()

    @torch.no_grad()
    def updated_weights(self, strength: float, tower: Tower) -> dict[str, Tensor]:
        """Return ``{weight name: W + strength * dW}`` of one tower, each in its weight's dtype.

        Nothing of the adapter or the network changes, so any thread may ask.
        """
        return {
            name: adapted.updated(self.weights[name].base, strength, self.weights[name].base.dtype)
            for name, adapted in self._adapted.items()
            if self.weights[name].tower == tower
        }

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters as ``WEIGHT.TARGET.TENSOR``, in the network's order.

        Those of a head begin with ``head.``.
        """
        for name, adapted in self._adapted.items():
            for suffix, parameter in adapted.deltas.named_parameters():
                yield f"{name}.{suffix}", parameter
        if self.head is not None:
            yield from self.head.named_parameters(prefix="head")

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """Return how many numbers the trainable parameters hold."""
        return sum(parameter.numel() for parameter in self.parameters())

    def shapes(self) -> list[Shape]:
        """Return (out, in) of every part of a weight that is adapted on its own."""
        return [delta.shape for adapted in self._adapted.values() for delta in adapted.parts()]

    def deltas(self) -> dict[str, Tensor]:
        """Return ``{weight name: dW}`` at full strength, each in its weight's shape and dtype."""
        with torch.no_grad():
            return {
                name: adapted.delta(self.weights[name].base).contiguous()
                for name, adapted in self._adapted.items()
            }

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
            rows["", "head"] = [0, self.num_parameters()]  # none of the model's weights
        return [AdaptedSummary(*key, *counts) for key, counts in rows.items()]

    @torch.no_grad()
    def reset(self) -> None:
        """Put the trainable parameters back to those of a fresh adapter with the same seed."""
        deltas = [delta for adapted in self._adapted.values() for delta in adapted.parts()]
        for delta, fresh in zip(deltas, self.config.make_deltas(self.shapes()), strict=True):
            for parameter, start in zip(delta.parameters(), fresh.parameters(), strict=True):
                parameter.copy_(start)

    @property
    def is_scalable(self) -> bool:
        """Whether `scale_by` can scale the update: it is proportional to a parameter."""
        deltas = [delta for adapted in self._adapted.values() for delta in adapted.parts()]
        return self.head is None and all(delta.linear_in for delta in deltas)

    def scale_by(self, factor: float) -> None:
        """Multiply the update by a factor, for good: what was half strength is full strength then.

        Raises:
            UserError: the method's update is not proportional to any of its parameters.
        """
        if not self.is_scalable:
            raise UserError(f"strength: {self.config.method} trains at full strength only")
        for adapted in self._adapted.values():
            for delta in adapted.parts():
                delta.scale_by(factor)

    def merge(self) -> None:
        """Add the update, at the present strength, to the weights: plain open_clip again.

        Raises:
            UserError: it is a head, which updates no weight.
        """
        if self.head is not None:
            raise UserError("a head updates no weight of the model: nothing to merge")
        self._remove(bake=True)

    def detach(self) -> None:
        """Take the update off: every weight is bit for bit what it was before."""
        self._remove(bake=False)

    def _remove(self, bake: bool) -> None:
        if not self.is_attached:
            raise UserError("this adapter is no longer attached to its model")
        self.is_attached, self.is_merged = False, bake
        for weight in self.weights.values():
            parametrize.remove_parametrizations(
                weight.module, weight.tensor_name, leave_parametrized=bake
            )
        self._adapted.clear()
        for parameter, required in self._required_grad.items():
            parameter.requires_grad_(required)

    def save(self, path: str | Path, task: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file: trainable parameters, settings, the base's fingerprint.

        The frozen bases are made again from the seed. Only those of an adapter that was trained
        elsewhere are in the file.

        Args:
            path: the file to write.
            task: what else a classifier needs, as `Classifier.load` reads it.
        """
        tensors = self._stored_tensors() | adapter_files.bases_to_tensors(self.bases)
        adapter_files.write(path, self.config, self.base, tensors, task)

    def load_parameters(self, tensors: Mapping[str, Tensor], source: str | Path) -> None:
        """Copy the trainable parameters, and a head's other tensors, from a file's.

        Raises:
            UserError: they do not fit; the adapter is then detached, and the line names ``source``.
        """
        stored = self._stored_tensors()
        try:
            adapter_files.check_tensors(source, tensors, stored)
        except UserError:
            self.detach()
            raise
        with torch.no_grad():
            for key, tensor in stored.items():
                tensor.copy_(tensors[key])

    def _stored_tensors(self) -> dict[str, Tensor]:
        """Return what a file holds: trainable parameters, and what a head has beside them."""
        buffers = self.head.named_buffers(prefix="head") if self.head is not None else ()
        return {**dict(self.named_parameters()), **dict(buffers)}


def check_has_none(net: nn.Module) -> None:
    """Refuse a model that has an adapter already."""
    if any(isinstance(module, AdaptedWeight) for module in net.modules()):
        raise UserError("this model has an adapter already: detach() or merge() it first")


def attach(net: nn.Module, config: MethodConfig, name: str | None = None) -> Adapter:
    """Attach a fresh adapter, which changes no output, and freeze every weight of the model.

    Args:
        net: an open_clip model.
        config: of one of the `METHODS`. A head is made where its classes are
            known, by `fit`.
        name: what to call the model in messages; by default the name that `load_model` gave it.

    Raises:
        UserError: the configuration matches no weight, a tower has attention that would be left
            out (see `clip_randlora.adapters.targets.require_attention`), or the model has an
            adapter already.
    """
    check_has_none(net)
    require_attention(net, config)
    return Adapter(net, config, name)
