"""Which prompts a step takes, and how they become class features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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

    def __init__(
        self, text: TextClassifier, adapter: Adapter, prompts_per_step: int | Literal["batch"]
    ):
        self._text, self._adapter, self._most = text, adapter, prompts_per_step
        self._owners = text.owners.cpu()  # prompts are drawn on the CPU
        self._fixed: Tensor | None = None
        self._cache: CachedText | None = None
        if "text" not in adapter.towers:
            with torch.no_grad():
                self._fixed = text.features()
        self.is_per_image = self._fixed is None and prompts_per_step == "batch"
        """Whether a step has one prompt for each image, in the order of the images."""
        self._draws = self._fixed is None and (
            prompts_per_step == "batch" or len(self._owners) > prompts_per_step
        )

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
        return self._draws and not self.is_per_image and int(self._most) < batch_size

    def draw(
        self, labels: Tensor, generator: torch.Generator, parts: Sequence[slice]
    ) -> tuple[Tensor | None, Tensor]:
        """Return a step's prompts, and the labels as positions among its class features.

        One prompt of every class in the batch is drawn, and one of random other classes up to the
        number of prompts that a step takes; or one prompt for each image.

        Args:
            labels: of the whole step, CPU int64 (B,).
            generator: of the draw.
            parts: of the batch, which are encoded one by one; read if there is a prompt for each
                image, whose position then is that in its part.

        Returns:
            Rows of the prompts, int64 (R,) on the device, or None for all prompts; and CPU int64
            (B,).
        """
        if not self._draws:
            return None, labels
        if self.is_per_image:
            rows, positions = self._draw_per_image(labels, generator, parts)
            return send(rows, self._text.owners.device), positions
        shuffled = torch.randperm(len(self._owners), generator=generator)
        in_batch = torch.isin(self._owners[shuffled], labels)
        first: dict[int, int] = {}  # class -> its first prompt, the batch's classes first
        for row in torch.cat([shuffled[in_batch], shuffled[~in_batch]]).tolist():
            first.setdefault(int(self._owners[row]), row)
        chosen = list(first.items())[: max(int(self._most), len(labels.unique()))]
        position = torch.full((len(self._text.classes),), -1, dtype=torch.int64)
        position[[label for label, _ in chosen]] = torch.arange(len(chosen))
        rows = torch.tensor([row for _, row in chosen])
        return send(rows, self._text.owners.device), position[labels]

    def _draw_per_image(
        self, labels: Tensor, generator: torch.Generator, parts: Sequence[slice]
    ) -> tuple[Tensor, Tensor]:
        """Return a prompt's row for each image, and the first place of its class in its part."""
        rows, positions = torch.zeros_like(labels), torch.zeros_like(labels)
        shuffled = torch.randperm(len(self._owners), generator=generator)
        for place, label in enumerate(labels.tolist()):
            of_class = shuffled[self._owners[shuffled] == label]
            rows[place] = of_class[place % len(of_class)]
        for part in parts:
            same = labels[part, None] == labels[part]
            positions[part] = same.int().argmax(dim=1)
        return rows, positions

    def few(self, count: int) -> tuple[Tensor | None, float]:
        """Return about ``count`` prompts of different classes, and the share of a step's they are.

        A tower that takes all prompts in one go whatever they are gets None: all of them.
        """
        if self._fixed is not None or self._cache:
            return None, 1.0
        classes = len(self._text.classes)
        in_step = classes if self.is_per_image else len(self._owners)
        if not self.is_per_image and self._draws:
            in_step = min(classes, int(self._most))
        rows = torch.arange(0, len(self._owners), max(len(self._owners) // count, 1))[:count]
        return send(rows, self._text.owners.device), len(rows) / max(in_step, len(rows))

    def features(self, prompts: Tensor | None) -> Tensor:
        """Return the class features (R, E) of the prompts that `draw` returned."""
        if self._fixed is not None:
            return self._fixed
        return self._cache.features() if self._cache else self._text.features(prompts)
