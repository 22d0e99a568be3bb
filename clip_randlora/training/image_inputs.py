"""Which training images a step takes, and how they become features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from clip_randlora.adapters import Adapter
from clip_randlora.data import AugmentedViews, TrainingImages, draw_crops
from clip_randlora.forward.frozen_prefix import (
    DEFAULT_VIEWS,
    CachedImages,
    CannotCache,
    has_frozen_blocks,
)
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils.progress import OnProgress


def draw_batch(step: int, batch_size: int, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images of a step and the epoch of each, CPU int64 (B,).

    Epochs are permutations of the images, laid end to end; a batch may span several.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    rows = [_epoch_order(p // images, images, seed)[p % images] for p in positions]
    return torch.stack(rows), torch.tensor([position // images for position in positions])


@lru_cache(maxsize=4)  # the steps and what is decoded ahead of them may be in different epochs
def _epoch_order(epoch: int, images: int, seed: int) -> Tensor:
    """Return the permutation of the images in an epoch, which must not be changed."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 - 1 - epoch)
    return torch.randperm(images, generator=generator)


class ImageInputs:
    """The image inputs of the steps: new crops, or cached views, or their cached activations."""

    def __init__(
        self,
        images: TrainingImages,
        crop_size: int,
        config: TrainConfig,
        encode: Callable[[Tensor], Tensor],
        part: slice = slice(None),
    ):
        """Begin with new crops at every step; `fill_cache` may change that.

        Args:
            images: which give their pixels on the training's device.
            crop_size: side of the crops, in pixels.
            config: has the settings of the augmentation.
            encode: float crops (B, 3, crop_size, crop_size) -> features (B, E).
            part: this process's part of a batch.
        """
        self._images, self.crop_size, self._config = images, crop_size, config
        self._encode, self._part = encode, part
        self._views: AugmentedViews | None = None
        self._cache: CachedImages | None = None
        self._pixels: Iterator[Tensor] = iter(())

    @contextmanager
    def reading(self, step: int, steps: int, batch_size: int) -> Iterator[None]:
        """Read the images of the steps from ``step`` to ``steps``, which are drawn in this order.

        Args:
            step: the first step.
            steps: the number of steps of the training.
            batch_size: images of a step, over all processes.
        """
        batches = (
            draw_batch(later, batch_size, len(self._images), self._config.seed)[0][self._part]
            for later in range(step, steps)
        )
        with closing(self._images.stream(batches)) as self._pixels:
            yield

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
        """Return the inputs of the next step of `reading`, for this process's part of it.

        Args:
            rows: the images of the whole step, CPU int64 (B,).
            epochs: the epoch of each, CPU int64 (B,).
            generator: of the augmentation.
        """
        part = self._part
        if self._cache:
            return self._cache.select(rows[part], epochs[part] % self._cache.views)
        pixels = next(self._pixels)
        if self._views:
            return [self._views.crops(rows[part], epochs[part] % self._views.count, pixels)]
        # drawn for the whole batch, so that they do not depend on the number of processes
        crops = draw_crops(
            len(rows), self._images.side, generator, self._config.crop_scale, self._config.flip
        )
        return [crops.cut(pixels, self.crop_size, part)]

    def blank(self, count: int) -> Sequence[Tensor]:
        """Return inputs like those of `draw` for so many images, whatever their values."""
        if self._cache:
            zeros = torch.zeros(count, dtype=torch.int64)
            return self._cache.select(zeros, zeros)
        return [torch.zeros(count, 3, self.crop_size, self.crop_size)]

    def features(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the features (B, E) of the inputs that `draw` returned."""
        return self._cache.features(inputs) if self._cache else self._encode(*inputs)
