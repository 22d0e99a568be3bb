"""Which training images a step takes, and how they become features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clip_randlora.adapters import Adapter
from clip_randlora.data import AugmentedViews, augment
from clip_randlora.forward.frozen_prefix import (
    DEFAULT_VIEWS,
    CachedImages,
    CannotCache,
    has_frozen_blocks,
)
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils.devices import send
from clip_randlora.utils.progress import OnProgress


def draw_batch(step: int, batch_size: int, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images of a step and the epoch of each, CPU int64 (B,).

    Epochs are permutations of the images, laid end to end; a batch may span several.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    order: dict[int, Tensor] = {}
    for epoch in {position // images for position in positions}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 - 1 - epoch)
        order[epoch] = torch.randperm(images, generator=generator)
    rows = torch.stack([order[position // images][position % images] for position in positions])
    return rows, torch.tensor([position // images for position in positions])


class ImageInputs:
    """The image inputs of the steps: new crops, or cached views, or their cached activations."""

    def __init__(
        self,
        images: Tensor,
        crop_size: int,
        config: TrainConfig,
        encode: Callable[[Tensor], Tensor],
        part: slice = slice(None),
    ):
        """Begin with new crops at every step; `fill_cache` may change that.

        Args:
            images: uint8 (N, 3, S, S), on the training's device.
            crop_size: side of the crops, in pixels.
            config: has the settings of the augmentation.
            encode: float crops (B, 3, crop_size, crop_size) -> features (B, E).
            part: this process's part of a batch.
        """
        self._images, self.crop_size, self._config = images, crop_size, config
        self._encode, self._part = encode, part
        self._views: AugmentedViews | None = None
        self._cache: CachedImages | None = None

    def fill_cache(
        self, adapter: Adapter, epochs: int, on_progress: OnProgress | None
    ) -> list[str]:
        """Cache views if the settings ask for them, and activations if blocks are frozen.

        Args:
            adapter: leaves blocks of the vision tower frozen, or not.
            epochs: of the training; more views than these are never used.
            on_progress: told how many images are encoded.

        Returns:
            Notes on what could not be cached.
        """
        is_frozen = has_frozen_blocks(adapter, "vision")
        count = self._config.views or (DEFAULT_VIEWS if is_frozen else None)
        if count is None:
            return []
        views = AugmentedViews(
            self._images,
            self.crop_size,
            min(count, epochs),
            self._config.seed,
            self._config.crop_scale,
            self._config.flip,
        )
        if self._config.views:
            self._views = views
        if not is_frozen:
            return []
        try:
            self._cache = CachedImages(adapter, self._encode, views, on_progress)
        except CannotCache as reason:
            return [f"Vision tower: its frozen blocks run at every step, as {reason}."]
        if self._cache.views == views.count:
            return []
        return [
            f"Training cycles through {self._cache.views} augmented views of each image, not "
            f"{views.count}: the activations of more would take too much memory."
        ]

    def draw(self, rows: Tensor, epochs: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the inputs of a step, for this process's part of it.

        Args:
            rows: the images of the whole step, CPU int64 (B,).
            epochs: the epoch of each, CPU int64 (B,).
            generator: of the augmentation.
        """
        part = self._part
        if self._cache:
            return self._cache.select(rows[part], epochs[part] % self._cache.views)
        if self._views:
            return [self._views.crops(rows[part], epochs[part] % self._views.count)]
        crops = augment(
            self._images[send(rows, self._images.device)],
            self.crop_size,
            generator,
            scale=self._config.crop_scale,
            flip=self._config.flip,
            part=part,
        )
        return [crops]

    def features(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the features (B, E) of the inputs that `draw` returned."""
        return self._cache.features(inputs) if self._cache else self._encode(*inputs)
