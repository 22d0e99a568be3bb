"""Training images that are decoded when a step needs them, by threads that run ahead of it.

PIL releases the GIL, so threads decode while the device computes. They share the open archives and
tables of the data set, which processes could not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice

import torch

from clip_randlora.data.dataset import Item, Skipped, Split
from clip_randlora.data.decoding import (
    DecodedImages,
    ImageBatch,
    Transform,
    decode_item,
    draw_order,
    note_short_classes,
)
from clip_randlora.data.sampling import Shots
from clip_randlora.errors import UserError
from clip_randlora.utils.devices import send
from clip_randlora.utils.parallel import parallel_map

MEMORY_SHARE = 1 / 8
"""Training images that take more of the free memory are streamed."""

_SMALL = 256 * 2**20  # bytes; fewer stay in memory however rarely they are used
_BATCHES_AHEAD = 2  # decoded while a GPU works on one


class StreamedImages:
    """Drawn training images, none of which is in memory; otherwise like an `ImageBatch`.

    The images, their order and their pixels are those of `decode_shots`, as long as all can be
    decoded. One that cannot be decoded is named in ``skipped`` when that shows, and the next image
    of its class takes its place.

    Attributes:
        items: the N drawn images, by class, then by draw.
        labels: int64 ``(N,)``.
        side: of the decoded images, in pixels.
        notes: sentences for the user.
    """

    def __init__(
        self,
        split: Split,
        shots: Shots,
        seed: int,
        transform: Transform,
        side: int,
        cache: DecodedImages | None = None,
        *,
        is_drawn: bool = False,
    ):
        """Draw the images; see `decode_shots` for the arguments.

        ``side`` is the side of what ``transform`` returns, in pixels.
        """
        draw = draw_order(split, shots, seed, is_drawn=is_drawn)
        self.classes, self.side = split.classes, side
        self.items = [item for order in draw.values() for item in order.drawn]
        drawn = Split(tuple(self.items), split.classes)
        self.labels, self.notes = drawn.labels, note_short_classes(drawn, shots)
        self._spare = {label: order.spare for label, order in draw.items()}
        self._transform, self._cache = transform, cache
        self._device = torch.device("cpu")
        self._broken: dict[str, Skipped] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """Names of the N images."""
        return [item.name for item in self.items]

    @property
    def skipped(self) -> list[Skipped]:
        """The images that turned out broken so far."""
        with self._lock:
            return list(self._broken.values())

    def leave_out(self, skipped: Iterable[Skipped]) -> None:
        """Treat images as broken that turned out so before a training was interrupted."""
        with self._lock:
            self._broken.update({entry.name: entry for entry in skipped})

    def to(self, device: torch.device) -> StreamedImages:
        """Let `select` and `stream` return tensors on a device from now on; return this object."""
        self._device = device
        return self

    def select(self, rows: torch.Tensor) -> torch.Tensor:
        """Return images ``rows``, CPU int64 ``(B,)``, as uint8 ``(B, 3, side, side)``.

        Raises:
            UserError: no image of a class can be decoded.
        """
        return next(self.stream([rows]))

    def stream(self, batches: Iterable[torch.Tensor]) -> Generator[torch.Tensor]:
        """Yield what `select` returns for each of the batches of rows.

        While the consumer works on one, threads decode the next images.
        """
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        sizes: deque[int] = deque()

        def flatten() -> Iterator[int]:
            for rows in chain([first], batches):
                sizes.append(len(rows))
                yield from rows.tolist()

        # threads that run far ahead take a CPU's cores from the step: lite0 took a fifth longer
        ahead = 0 if self._device.type == "cpu" else _BATCHES_AHEAD * len(first)
        images = parallel_map(self._decode, flatten(), ahead)
        for image in images:
            batch = [image, *islice(images, sizes.popleft() - 1)]
            yield send(torch.stack(batch), self._device)

    def _decode(self, row: int) -> torch.Tensor:
        """Return a row's image, or the first image after it in its class that can be decoded."""
        for item in self._candidates(row):
            if item.name in self._broken:
                continue
            result = decode_item(self._transform, self._cache, item, self.side)
            if isinstance(result, torch.Tensor):
                return result
            self.leave_out([result])
        item = self.items[row]
        reason = self._broken[item.name].reason
        raise UserError(
            f'class "{self.classes[item.label]}": none of its images can be decoded; replace them '
            f"(one is {item.name}: {reason})"
        )

    def _candidates(self, row: int) -> Iterator[Item]:
        """Yield a row's image, then the others of its class: those that are drawn, the spare."""
        label = self.items[row].label
        yield self.items[row]
        start = int(torch.searchsorted(self.labels, label))
        end = int(torch.searchsorted(self.labels, label, right=True))
        for other in chain(range(row + 1, end), range(start, row)):
            yield self.items[other]
        yield from self._spare[label]


def reason_to_stream(images: int, side: int, uses: int, free: int) -> str | None:
    """Return why training images are to be streamed; None if they are to stay in memory.

    Args:
        images: number of drawn images.
        side: of the decoded images, in pixels.
        uses: images that all steps take together.
        free: bytes of free memory, of a GPU if the training runs on one.
    """
    size = 3 * side**2 * images
    if size <= _SMALL:
        return None
    if size > MEMORY_SHARE * free:
        return (
            f"{images:,} of them would take {size / 1e9:.1f} GB, and {MEMORY_SHARE:.1%} of the "
            f"free memory is {MEMORY_SHARE * free / 1e9:.1f} GB"
        )
    if uses < 2 * images:
        return f"{images:,} of them are used less than twice"
    return None


TrainingImages = ImageBatch | StreamedImages
"""The drawn training images, in memory or not."""
