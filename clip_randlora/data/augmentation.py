"""Random resized crop and flip of a whole batch of decoded images at once, on any device.

torchvision's transforms draw from the process's generator, one image at a time. Here all random
numbers come from one generator in one draw, so a resumed run sees the same crops on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from clip_randlora.utils.devices import send


@dataclass(frozen=True)
class Crops:
    """The crops of N images, as `draw_crops` draws them.

    Attributes:
        boxes: int64 ``(N, 4)``, CPU: top, left, height, width.
        flips: bool ``(N,)``, CPU: mirror left and right.
    """

    boxes: torch.Tensor
    flips: torch.Tensor

    def cut(
        self, pixels: torch.Tensor, size: int, rows: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Return the crops of images ``rows``.

        Args:
            pixels: of these images alone, uint8 ``(B, 3, S, S)``, on any device.
            size: side of the result, in pixels.
            rows: which of the N images they are.

        Returns:
            float32 ``(B, 3, size, size)`` in [0, 1], on the device of ``pixels``.
        """
        return crop_and_resize(pixels, self.boxes[rows], self.flips[rows], size)


def draw_crops(
    count: int,
    side: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crops:
    """Draw a crop of each of ``count`` images of ``side`` pixels; see `augment`."""
    boxes = random_boxes(count, side, generator, scale, ratio)
    return Crops(boxes, _random_flips(count, generator, flip))


def augment(
    images: torch.Tensor,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """Crop every image at random, resize the crops to a square and flip half of them.

    The distribution is the same as torchvision's ``RandomResizedCrop``.

    Args:
        images: uint8 ``(B, 3, S, S)``, on any device.
        size: side of the result, in pixels; S should be at most about 1.5 times that.
        generator: a CPU generator.
        scale: bounds of the crop's share of the area.
        flip: whether to mirror half of the images.
        ratio: bounds of the crop's width / height.

    Returns:
        float32 ``(B, 3, size, size)`` in [0, 1], on the device of ``images``.
    """
    crops = draw_crops(len(images), images.shape[-1], generator, scale, flip, ratio)
    return crops.cut(images, size)


class Selectable(Protocol):
    """Images of which some can be asked for: an `ImageBatch`, or a `StreamedImages`."""

    @property
    def side(self) -> int:
        """S, in pixels."""
        ...

    def __len__(self) -> int: ...

    def select(self, rows: torch.Tensor) -> torch.Tensor:
        """Return images ``rows``, CPU int64 ``(B,)``, as uint8 ``(B, 3, S, S)``."""
        ...


class AugmentedViews:
    """A fixed number of augmented views of each image: crops as `augment` makes them.

    Attributes:
        count: number of views of each image.
        images: number of images.
    """

    def __init__(
        self,
        images: torch.Tensor | Selectable,
        size: int,
        count: int,
        seed: int,
        scale: tuple[float, float] = (0.5, 1.0),
        flip: bool = True,
    ):
        """Draw the crops of all views. A view does not depend on how many there are.

        Args:
            images: uint8 ``(N, 3, S, S)``, on any device, or an object with such images.
            size: side of the crops, in pixels.
            count: views of each image.
            seed: which draw.
            scale: bounds of a crop's share of the area.
            flip: whether to mirror half of the views.
        """
        self.images, self.count, self._size = len(images), count, size
        self._images = images
        side = images.shape[-1] if isinstance(images, torch.Tensor) else images.side
        generator = torch.Generator().manual_seed(seed)
        drawn = [draw_crops(len(images), side, generator, scale, flip) for _ in range(count)]
        self._boxes = torch.stack([crops.boxes for crops in drawn])
        self._flips = torch.stack([crops.flips for crops in drawn])

    def crops(
        self, rows: torch.Tensor, views: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return images ``rows`` in ``views``, both CPU int64 ``(B,)``.

        Args:
            rows: which images.
            views: which view of each.
            pixels: of these images, uint8 ``(B, 3, S, S)``, if they are at hand.

        Returns:
            float32 ``(B, 3, size, size)`` in [0, 1], on the device of the images.
        """
        if pixels is None:
            pixels = self._select(rows)
        return crop_and_resize(
            pixels, self._boxes[views, rows], self._flips[views, rows], self._size
        )

    def _select(self, rows: torch.Tensor) -> torch.Tensor:
        images = self._images
        if isinstance(images, torch.Tensor):
            return images[send(rows, images.device)]
        return images.select(rows)


def _random_flips(count: int, generator: torch.Generator, flip: bool) -> torch.Tensor:
    flips = torch.rand(count, generator=generator) < 0.5
    return flips if flip else torch.zeros_like(flips)


def random_boxes(
    count: int,
    side: int,
    generator: torch.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> torch.Tensor:
    """Draw crop boxes in a square of ``side`` pixels.

    Returns:
        int64 ``(count, 4)``, CPU: top, left, height, width.
    """
    area, shape, down, right = torch.rand(4, count, tries, generator=generator).double()
    area = (scale[0] + area * (scale[1] - scale[0])) * side * side
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + shape * (high - low))
    width = (area * shape).sqrt().round().long().clamp(min=1)
    height = (area / shape).sqrt().round().long().clamp(min=1)
    fits = (width <= side) & (height <= side)
    # If no try fits, the whole square, as torchvision does for ratios around 1.
    width = torch.where(fits, width, side)
    height = torch.where(fits, height, side)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first that fits, else the first of all
    top = (down * (side - height + 1)).long().clamp(max=side - 1)
    left = (right * (side - width + 1)).long().clamp(max=side - 1)
    boxes = torch.stack([top, left, height, width], dim=-1)
    return boxes.gather(1, first[..., None].expand(-1, -1, 4)).squeeze(1)


def crop_and_resize(
    images: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor, size: int
) -> torch.Tensor:
    """Cut one box out of every image and resize it, bilinear with anti-aliasing.

    Every column of the result is a weighted sum of a few neighbouring columns of the image, and so
    is every row. Crop, resize and flip of the whole batch are thus two sums over rows of a table.

    Args:
        images: uint8 ``(B, C, H, W)``.
        boxes: int64 ``(B, 4)``: top, left, height, width.
        flips: bool ``(B,)``: mirror left and right.
        size: side of the result.

    Returns:
        float32 ``(B, C, size, size)`` in [0, 1], on the device of ``images``, channels last.
    """
    count, channels, rows = images.shape[:3]
    top, left, height, width = boxes.unbind(1)
    across, across_weights = _taps(left, width, size)
    across = torch.where(flips[:, None, None], across.flip(1), across)
    across_weights = torch.where(flips[:, None, None], across_weights.flip(1), across_weights)
    table = images.permute(0, 3, 2, 1).to(torch.float32, memory_format=torch.contiguous_format)
    narrow = _sum_of_rows(table.flatten(2), across, across_weights / 255)  # (B, size, H C)
    table = narrow.view(count, size, rows, channels).transpose(1, 2).contiguous()
    result = _sum_of_rows(table.flatten(2), *_taps(top, height, size))
    return result.view(count, size, size, channels).permute(0, 3, 1, 2).clamp_(0, 1)


def _sum_of_rows(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum rows of each image's table.

    Args:
        table: ``(B, R, D)``.
        rows: int64 ``(B, size, T)``: which T rows to sum for each row of the result.
        weights: ``(B, size, T)``.

    Returns:
        ``(B, size, D)``.
    """
    count, height, width = table.shape
    rows = (rows + torch.arange(count)[:, None, None] * height).flatten(0, 1)
    rows, weights = send(rows, table.device), send(weights.flatten(0, 1), table.device)
    summed = torch.nn.functional.embedding_bag(
        rows, table.flatten(0, 1), mode="sum", per_sample_weights=weights
    )
    return summed.view(count, -1, width)


def _taps(
    start: torch.Tensor, length: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the pixels and weights that resize ``length`` pixels from ``start`` on to ``size``.

    Returns:
        Two ``(B, size, T)``: for each pixel of the result the T pixels it is made of, int64, and
        their weights, float32.
    """
    step = (length / size)[:, None, None]
    reach = step.clamp(min=1)  # half the width of the triangle that weighs pixels by distance
    start, length = start[:, None, None], length[:, None, None]
    centre = start + (torch.arange(size)[:, None] + 0.5) * step - 0.5
    taps = torch.arange(math.ceil(2 * float(reach.max())) + 1)
    pixel = (centre - reach).ceil().long() + taps
    weights = (1 - (pixel - centre).abs() / reach).clamp(min=0)
    weights = weights * ((pixel >= start) & (pixel < start + length))
    pixel = torch.minimum(pixel.clamp(min=0).maximum(start), start + length - 1)
    return pixel, weights / weights.sum(dim=2, keepdim=True)
