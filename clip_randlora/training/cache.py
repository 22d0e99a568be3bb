"""A cache for several trainings of one model on one data set."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from clip_randlora.clip.models import Model
from clip_randlora.data import Data, ImageCache

DECODED_BYTES = 1024**3
"""Upper bound on the decoded images of each split at each size."""


class Cache:
    """Decoded images and the zero-shot features of the test images, for `clip_randlora.fit`.

    Both depend on the model and the data set alone, so a training with a cache gives the same
    numbers as one without.

    Attributes:
        model: the model whose features are cached.
        data: the data set whose images are cached.
        digests: ``id`` of an image of ``data`` -> the digest of its content.
    """

    def __init__(self, model: Model, data: Data, decoded_bytes: int = DECODED_BYTES):
        self.model, self.data = model, data
        self._decoded_bytes = decoded_bytes
        self._images: dict[tuple[str, int], ImageCache] = {}
        self.digests: dict[int, str] = {}
        self._features: dict[Hashable, Tensor] = {}
        self._beside: dict[int, Cache] = {}

    def beside(self, data: Data) -> Cache:
        """Return the cache of a further data set with this model; it keeps no decoded images."""
        if data is self.data:
            return self
        return self._beside.setdefault(id(data), Cache(self.model, data, decoded_bytes=0))

    def train_images(self, size: int) -> ImageCache:
        """Return the training images decoded to ``size`` pixels a side."""
        return self._images.setdefault(("train", size), ImageCache(self._decoded_bytes))

    def test_images(self, size: int) -> ImageCache:
        """Return the test images decoded to ``size`` pixels a side."""
        return self._images.setdefault(("test", size), ImageCache(self._decoded_bytes))

    def zero_shot(self, batch: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the zero-shot features (N, E) of the test batch of a key, computed once."""
        if batch not in self._features:
            self._features[batch] = compute()
        return self._features[batch]
