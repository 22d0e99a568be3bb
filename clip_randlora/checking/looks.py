"""Look at every image once: its features, a thumbnail, and its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_randlora.clip.models import Model
from clip_randlora.data import Item, Skipped, UnreadableImage
from clip_randlora.forward.inference import inference_model
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress

THUMBNAIL = 16  # side in pixels
TINY = 32  # a side of fewer pixels
_BLANK = 2.5  # standard deviation of the grey values of an image of a single colour, of 255
_BATCH = 64


@dataclass(frozen=True)
class Looks:
    """What was seen of N images.

    Attributes:
        rows: of the images that could be decoded, among those given; int64 (N,).
        features: unit features of the image and of its mirror image, float32 (N, 2, E).
        thumbnails: uint8 (N, 3, 16, 16), of the whole image, without regard to its proportions.
        sizes: width and height in pixels, int64 (N, 2); of a large photograph that was decoded at
            a fraction of its size, that one.
        is_blank: whether an image has a single colour, bool (N,).
        skipped: those that could not be decoded.
    """

    rows: Tensor
    features: Tensor
    thumbnails: Tensor
    sizes: Tensor
    is_blank: Tensor
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Look:
    square: Tensor
    thumbnail: Tensor
    size: tuple[int, int]
    is_blank: bool


@torch.inference_mode()
def look_at(items: Sequence[Item], model: Model, on_progress: OnProgress | None = None) -> Looks:
    """Decode every image once and encode it; at most some hundred are in memory at a time.

    Args:
        items: the images.
        model: encodes them.
        on_progress: told how many were looked at.
    """
    ready, to_square = inference_model(model), model.square()
    rows: list[int] = []
    found: list[_Look] = []
    features: list[Tensor] = []
    skipped: list[Skipped] = []
    waiting: list[Tensor] = []

    def encode() -> None:
        batch = torch.stack(waiting)
        both = [ready.encode_image(images) for images in (batch, batch.flip(-1))]
        features.append(torch.stack(both, dim=1).float().cpu())
        waiting.clear()

    looks = parallel_map(partial(_look, to_square, model.image_size), items, _BATCH)
    looks = report_progress(looks, "looking at images", len(items), on_progress)
    for row, look in enumerate(looks):
        if isinstance(look, Skipped):
            skipped.append(look)
            continue
        rows.append(row)
        waiting.append(look.square)
        found.append(_Look(torch.empty(0), look.thumbnail, look.size, look.is_blank))
        if len(waiting) == _BATCH:
            encode()
    if waiting:
        encode()
    width = features[0].shape[-1] if features else 0
    return Looks(
        torch.tensor(rows, dtype=torch.int64),
        torch.cat(features) if features else torch.empty(0, 2, width),
        torch.stack([look.thumbnail for look in found])
        if found
        else torch.empty(0, 3, THUMBNAIL, THUMBNAIL, dtype=torch.uint8),
        torch.tensor([look.size for look in found], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([look.is_blank for look in found], dtype=torch.bool),
        tuple(skipped),
    )


def _look(to_square: Callable[[Image.Image], Tensor], side: int, item: Item) -> _Look | Skipped:
    try:
        image = item.open(side)
    except UnreadableImage as error:
        return Skipped(error.name, error.reason)
    small = image.resize((THUMBNAIL * 4,) * 2, Image.Resampling.BOX)
    is_blank = float(np.asarray(small.convert("L"), dtype=np.float32).std()) < _BLANK
    tiny = small.resize((THUMBNAIL,) * 2, Image.Resampling.BOX)
    pixels = torch.from_numpy(np.asarray(tiny).copy()).permute(2, 0, 1)
    return _Look(to_square(image), pixels, image.size, is_blank)
