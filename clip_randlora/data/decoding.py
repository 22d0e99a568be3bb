"""Decode items to uint8 tensors with threads (PIL releases the GIL), and name those that fail.

`decode_shots` keeps all images in memory. `streaming` decodes them when they are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from PIL import Image

from clip_randlora.data.dataset import Item, Skipped, Split
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.sampling import Shots, count_shots, draw_shots
from clip_randlora.errors import UserError
from clip_randlora.utils.devices import send
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress
from clip_randlora.utils.wording import join_names

Transform = Callable[[Image.Image], torch.Tensor]
"""PIL RGB image -> uint8 (3, S, S), the same S for every image; called from several threads."""


@dataclass
class ImageBatch:
    """Images ready for a model.

    Attributes:
        images: uint8 ``(N, 3, S, S)``.
        labels: int64 ``(N,)``.
        names: of the N images.
        skipped: files that could not be decoded.
        notes: sentences for the user.
        items: the decoded items, if `decode_shots` made the batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.images.shape[-1]

    def to(self, device: torch.device) -> ImageBatch:
        """Return the same batch with its images on a device."""
        return replace(self, images=self.images.to(device))

    def select(self, rows: torch.Tensor) -> torch.Tensor:
        """Return images ``rows``, CPU int64 ``(B,)``, as uint8 ``(B, 3, S, S)``."""
        return self.images[send(rows, self.images.device)]

    def stream(self, batches: Iterable[torch.Tensor]) -> Generator[torch.Tensor]:
        """Yield what `select` returns for each of the batches of rows."""
        for rows in batches:
            yield self.select(rows)


class DecodedImages(Protocol):
    """Keeps decoded images: `ImageCache` in memory, `DiskCache` in a folder."""

    def get(self, item: Item) -> torch.Tensor | Skipped | None:
        """Return the decoded item, or None if it is not kept."""
        ...

    def put(self, item: Item, result: torch.Tensor | Skipped) -> None:
        """Keep a decoded item, if there is room."""
        ...


class ImageCache:
    """The decoded images of one split and transform, up to a number of bytes.

    Items beyond that are decoded at each use. The split must live as long as the cache.
    """

    def __init__(self, most_bytes: int):
        self._free_bytes = most_bytes
        self._results: dict[int, torch.Tensor | Skipped] = {}
        self._lock = threading.Lock()

    def get(self, item: Item) -> torch.Tensor | Skipped | None:
        """Return the decoded item, or None if it is not in the cache."""
        return self._results.get(id(item))

    def put(self, item: Item, result: torch.Tensor | Skipped) -> None:
        """Keep a decoded item, if there is room."""
        size = result.nbytes if isinstance(result, torch.Tensor) else 0
        with self._lock:
            if size <= self._free_bytes and id(item) not in self._results:
                self._free_bytes -= size
                self._results[id(item)] = result


@dataclass(frozen=True)
class ClassDraw:
    """One class's images in the order of a draw: those that are drawn, and those after them."""

    drawn: list[Item]
    spare: list[Item]


def draw_order(
    split: Split, shots: Shots, seed: int, *, is_drawn: bool = False
) -> dict[int, ClassDraw]:
    """Draw some images of every class; see `decode_shots` for the arguments.

    Returns:
        ``{label: draw}``, labels ascending.

    Raises:
        UserError: ``shots`` is no number of images, or the split is empty.
    """
    if not split.items:
        raise UserError("no training images to draw from; give a data set that has some")
    draw = split.by_class() if is_drawn else draw_shots(split, shots, seed)
    wanted = None if is_drawn and isinstance(shots, str) else shots  # a draw is no share of itself
    counts = {label: count_shots(wanted, len(order)) for label, order in draw.items()}
    return {
        label: ClassDraw(order[: counts[label]], order[counts[label] :])
        for label, order in draw.items()
    }


def decode_shots(
    split: Split,
    shots: Shots,
    seed: int,
    transform: Transform,
    cache: DecodedImages | None = None,
    on_progress: OnProgress | None = None,
    *,
    is_drawn: bool = False,
    side: int | None = None,
) -> ImageBatch:
    """Decode some images of every class, as drawn by `draw_shots`.

    An image that cannot be decoded is replaced by the next of its class's draw and named in
    ``skipped``. A class with fewer images gives all it has, which a note says. The result is
    ordered by class, then by draw, so a draw of 4 is the start of each class's draw of 16.

    Args:
        split: what to draw from.
        shots: images per class, a share of them such as ``50%``, or None for all.
        seed: which draw.
        transform: PIL RGB image -> uint8 ``(3, S, S)``; called from several threads.
        cache: of this split and transform; read, and added to.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.
        is_drawn: whether the split's images are already in the order of a draw.
        side: S; large JPEGs are then decoded at a fraction of their size, see `decode_image`.

    Raises:
        UserError: ``shots`` is none of these, the split is empty, or no image of some class can be
            decoded.
    """
    draw = draw_order(split, shots, seed, is_drawn=is_drawn)
    spare = {label: iter(order.spare) for label, order in draw.items()}
    slots = [item for order in draw.values() for item in order.drawn]

    images: torch.Tensor | None = None
    filled: dict[int, Item] = {}
    skipped: list[Skipped] = []
    todo = list(enumerate(slots))
    while todo:  # further rounds only decode the replacements of broken images
        results = report_progress(
            parallel_map(
                partial(decode_item, transform, cache, side=side), [item for _, item in todo]
            ),
            "decoding images",
            len(todo),
            on_progress,
        )
        broken = []
        for (slot, item), result in zip(todo, results, strict=True):
            if isinstance(result, Skipped):
                skipped.append(result)
                broken.append((slot, item))
                continue
            if images is None:  # filled in place: torch.stack would need the memory twice
                images = torch.empty((len(slots), *result.shape), dtype=torch.uint8)
            images[slot] = result
            filled[slot] = item
        todo = [(s, new) for s, old in broken if (new := next(spare[old.label], None)) is not None]

    rank = {
        id(item): place
        for order in draw.values()
        for place, item in enumerate([*order.drawn, *order.spare])
    }
    order = sorted(filled, key=lambda slot: (filled[slot].label, rank[id(filled[slot])]))
    items = [filled[slot] for slot in order]
    decoded = Split(tuple(items), split.classes)
    _require_every_class(split, decoded, skipped)
    assert images is not None  # every class has an image
    if order != list(range(len(slots))):
        images = images[order]
    names = [item.name for item in items]
    notes = note_short_classes(decoded, shots)
    return ImageBatch(images, decoded.labels, names, skipped, notes, items)


def decode_batches(
    split: Split, transform: Transform, batch_size: int, cache: DecodedImages | None = None
) -> Iterator[ImageBatch]:
    """Decode a split in order, ``batch_size`` images at a time, with bounded memory.

    Images that cannot be decoded are left out, and the batch in which they would be names them.
    Every batch but the last has exactly ``batch_size`` images, and none is empty. While the
    consumer works on one, threads decode the next.

    Args:
        split: what to decode.
        transform: PIL RGB image -> uint8 ``(3, S, S)``; called from several threads.
        batch_size: at least 1.
        cache: of this split and transform; read, and added to.

    Raises:
        UserError: the split has images and none of them can be decoded, or ``batch_size`` is
            less than 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} images; give 1 or more")
    images: list[torch.Tensor] = []
    items: list[Item] = []
    skipped: list[Skipped] = []

    def batch() -> ImageBatch:
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        return ImageBatch(torch.stack(images), labels, [item.name for item in items], skipped)

    results = parallel_map(partial(decode_item, transform, cache), split.items, batch_size)
    for item, result in zip(split.items, results, strict=True):
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        if len(items) == batch_size:  # not earlier: broken images at the end need a batch
            yield batch()
            images, items, skipped = [], [], []
        images.append(result)
        items.append(item)
    if items:
        yield batch()
    elif skipped:
        first = skipped[0]
        raise UserError(
            f"none of {len(skipped)} images can be decoded, e.g. {first.name}: {first.reason}"
        )


def decode_item(
    transform: Transform, cache: DecodedImages | None, item: Item, side: int | None = None
) -> torch.Tensor | Skipped:
    """Return a decoded item, uint8 ``(3, S, S)``, or why it cannot be decoded.

    ``side`` is as for `decode_image`.
    """
    result = cache.get(item) if cache else None
    if result is None:
        try:
            result = transform(item.open(side))
        except UnreadableImage as error:
            result = Skipped(error.name, error.reason)
        if cache:
            cache.put(item, result)
    return result


def _require_every_class(split: Split, decoded: Split, skipped: list[Skipped]) -> None:
    missing = split.counts().keys() - decoded.counts().keys()
    if missing:
        name = split.classes[min(missing)]
        raise UserError(
            f'class "{name}": none of its {split.counts()[min(missing)]} images can be decoded; '
            f"replace them (the first broken one is {skipped[0].name}: {skipped[0].reason})"
        )


def note_short_classes(decoded: Split, shots: Shots) -> list[str]:
    """Note the classes with fewer training images than were asked for."""
    wanted = shots if isinstance(shots, int) else 0
    short = {label: n for label, n in decoded.counts().items() if n < wanted}
    if not short:
        return []
    named = join_names((f"{decoded.classes[label]} {n}" for label, n in short.items()), 10)
    classes = "1 class has" if len(short) == 1 else f"{len(short)} classes have"
    return [f"{classes} fewer than {shots} training images, all are used: {named}."]
