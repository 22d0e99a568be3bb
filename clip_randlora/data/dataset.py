"""What a labelled image set is: items, splits, and what was left out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image

from clip_randlora.data.images import ImageSource, check_image, decode_image


class Content(Protocol):
    """Where the bytes of one image come from: a file, an archive member, memory."""

    size: int  # bytes, to find candidates for duplicates without reading

    def read(self) -> ImageSource:
        """Something ``decode_image`` takes."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    name: str
    reason: str


def summarize_skipped(skipped: Sequence[Skipped], most: int = 5) -> str:
    """One line that counts what was left out and names the first ``most``; "" if nothing was."""
    if not skipped:
        return ""
    named = ", ".join(f"{entry.name} ({entry.reason})" for entry in skipped[:most])
    more = f", and {len(skipped) - most} more" if len(skipped) > most else ""
    return f"Left out {len(skipped)} {'file' if len(skipped) == 1 else 'files'}: {named}{more}."


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image that has not been decoded yet.

    ``name`` is its path inside the source, with ``/``; ``label`` indexes ``Data.classes``.
    """

    name: str
    label: int
    content: Content = field(repr=False, compare=False)

    def open(self) -> Image.Image:
        """Decode to an upright RGB image; raises ``UnreadableImage`` (a ``UserError``)."""
        return decode_image(self.content.read(), self.name)

    def check(self) -> None:
        """Look at the header only; raises ``UnreadableImage`` (a ``UserError``)."""
        check_image(self.content.read(), self.name)


@dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order: by class, then naturally by name.

    ``classes`` are all class names of the data; a class may have no item in this split.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    @property
    def labels(self) -> torch.Tensor:
        """Class index of every item, int64 ``(N,)``."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    def counts(self) -> dict[int, int]:
        """Images per class index, for the classes that have any, in ascending order."""
        return dict(sorted(Counter(item.label for item in self.items).items()))

    def by_class(self) -> dict[int, list[Item]]:
        """Items per class index, in the split's order, classes ascending."""
        groups: dict[int, list[Item]] = {label: [] for label in self.counts()}
        for item in self.items:
            groups[item.label].append(item)
        return groups


@dataclass(frozen=True)
class Data:
    """A labelled image set with a training and a test split.

    ``classes`` are spelled as the folders are and sorted naturally, or named and in the order of
    the data set's description; ``skipped`` are the files left out so far (others show only when
    they are decoded); ``notes`` are one-line things the user should know; ``held_out`` says that
    the source had no test split of its own; ``is_ready_made`` says that the images are those of a
    published data set; ``class_folders`` is what `load_data` was told. ``templates`` and
    ``prompts`` (names by class) are the description's: a training uses them unless it is told
    otherwise.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    held_out: bool = False
    is_ready_made: bool = False
    class_folders: str | None = None
    templates: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
