"""Which prompts a step takes, and how they become class features."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_randlora.adapters import Adapter
from clip_randlora.clip.text import TextClassifier
from clip_randlora.forward.frozen_prefix import CachedText, CannotCache, has_frozen_blocks
from clip_randlora.utils.devices import send


class TextInputs:
    """The prompts of the steps: all of them, or some drawn at random if there are too many.

    A text tower that is not adapted encodes all prompts once.
    """

    def __init__(self, text: TextClassifier, adapter: Adapter, prompts_per_step: int):
        self._text, self._adapter, self._most = text, adapter, prompts_per_step
        self._owners = text.owners.cpu()  # prompts are drawn on the CPU
        self._fixed: Tensor | None = None
        self._cache: CachedText | None = None
        if "text" not in adapter.towers:
            with torch.no_grad():
                self._fixed = text.features()
        self._draws = self._fixed is None and len(self._owners) > prompts_per_step

    def fill_cache(self) -> list[str]:
        """Cache the activations of frozen blocks; return notes on what could not be cached."""
        if self._fixed is not None or self._draws or not has_frozen_blocks(self._adapter, "text"):
            return []
        try:
            self._cache = CachedText(self._adapter, self._text.features)
        except CannotCache as reason:
            return [f"Text tower: its frozen blocks run at every step, as {reason}."]
        return []

    def number_varies(self, batch_size: int) -> bool:
        """Return whether the number of prompts differs from step to step."""
        return self._draws and self._most < batch_size

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Return a step's prompts, and the labels as positions among its class features.

        One prompt of every class in the batch is drawn, and one of random other classes up to the
        number of prompts that a step takes.

        Args:
            labels: of the whole step, CPU int64 (B,).
            generator: of the draw.

        Returns:
            Rows of the prompts, int64 (R,) on the device, or None for all prompts; and CPU int64
            (B,).
        """
        if not self._draws:
            return None, labels
        shuffled = torch.randperm(len(self._owners), generator=generator)
        in_batch = torch.isin(self._owners[shuffled], labels)
        first: dict[int, int] = {}  # class -> its first prompt, the batch's classes first
        for row in torch.cat([shuffled[in_batch], shuffled[~in_batch]]).tolist():
            first.setdefault(int(self._owners[row]), row)
        chosen = list(first.items())[: max(self._most, len(labels.unique()))]
        position = torch.full((len(self._text.classes),), -1, dtype=torch.int64)
        position[[label for label, _ in chosen]] = torch.arange(len(chosen))
        rows = torch.tensor([row for _, row in chosen])
        return send(rows, self._text.owners.device), position[labels]

    def features(self, prompts: Tensor | None) -> Tensor:
        """Return the class features (R, E) of the prompts that `draw` returned."""
        if self._fixed is not None:
            return self._fixed
        return self._cache.features() if self._cache else self._text.features(prompts)
