"""An adapted weight: torch's parametrization that adds the update wherever the weight is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clip_randlora.adapters.delta import Delta
from clip_randlora.adapters.fast import add_updates
from clip_randlora.adapters.targets import WHOLE, TargetWeight


class AdaptedWeight(nn.Module):
    """The parametrization of one weight: ``W -> W + strength * dW``, part by part."""

    def __init__(self, weight: TargetWeight, deltas: Sequence[Delta]):
        super().__init__()
        self.deltas = nn.ModuleDict(
            {part.target: delta for part, delta in zip(weight.parts, deltas, strict=True)}
        )
        self.rows = {part.target: part.rows for part in weight.parts}
        self.strength = 1.0
        self.base_required_grad = weight.weight.requires_grad
        self._is_caching = False
        self._cached: Tensor | None = None

    def parts(self) -> list[Delta]:
        """Return the updates, in the order of their rows."""
        return [delta for delta in self.deltas.values() if isinstance(delta, Delta)]

    def set_caching(self, is_on: bool) -> None:
        """Form the weight once from now on, however often it is read; or anew at each reading."""
        self._is_caching, self._cached = is_on, None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight in its shape and dtype; under bf16 autocast, in bf16."""
        if self._cached is not None:
            return self._cached
        # a whole tensor may be a norm's or an embedding's, which autocast leaves as they are
        dtype = weight.dtype if WHOLE in self.rows else _dtype_in_use(weight)
        adapted = self.updated(weight, self.strength, dtype)
        if self.base_required_grad and not adapted.requires_grad:
            # torch's CPU linear chooses its kernel by this flag: keep the base's choice, and bits
            adapted = adapted.detach().requires_grad_()
        if self._is_caching and adapted is not weight:  # at strength 0 there is nothing to form
            self._cached = adapted
        return adapted

    def updated(self, weight: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
        """Return ``W + strength * dW`` in the weight's shape and in ``dtype``."""
        if strength == 0:
            return weight
        rows, deltas = list(self.rows.values()), self.parts()
        flat = weight.reshape(len(weight), -1)
        with torch.autocast(weight.device.type, enabled=False):  # rounded once, at the end
            updated = add_updates(flat, rows, deltas, strength, dtype)
        return updated.view(weight.shape)

    def delta(self, weight: Tensor) -> Tensor:
        """Return dW at full strength; rows that no part adapts are zero."""
        update = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        flat = weight.reshape(len(weight), -1)
        for rows, delta in zip(self.rows.values(), self.parts(), strict=True):
            update[rows] = delta.update_of(flat[rows]).view(-1, *weight.shape[1:])
        return update


def _dtype_in_use(weight: Tensor) -> torch.dtype:
    """Return what the layer computes in: bf16 where autocast would round the weight to it."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        asked = torch.get_autocast_dtype(kind)
        return asked if asked == torch.bfloat16 else weight.dtype
    return weight.dtype
