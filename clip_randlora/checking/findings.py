"""What a check of an image set finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clip_randlora.data import Item, Skipped

Where = Literal["class", "classes", "splits"]


@dataclass(frozen=True)
class WrongLabel:
    """An image whose label is likely wrong.

    Attributes:
        index: of the image.
        given: index of the class that the image is labelled with.
        suggested: index of the class that the other images speak for.
        certainty: probability that the label is wrong, 0 to 1, if one label in twenty is; see
            `clip_randlora.checking.wrong_labels`.
    """

    index: int
    given: int
    suggested: int
    certainty: float


@dataclass(frozen=True)
class Duplicates:
    """Images that are nearly the same.

    Attributes:
        indices: of the images, two or more, ascending.
        where: "splits" if they lie in different splits, so that a test counts images that were
            trained on; else "classes" if they are labelled differently; else "class".
        similarity: the smallest cosine of the features of two that were matched, -1 to 1.
    """

    indices: tuple[int, ...]
    where: Where
    similarity: float


@dataclass(frozen=True)
class Outlier:
    """An image that is like no other image of the set.

    Attributes:
        index: of the image.
        distance: mean cosine distance to its nearest images, 0 to 2.
    """

    index: int
    distance: float


@dataclass(frozen=True)
class SmallImage:
    """An image of few pixels.

    Attributes:
        index: of the image.
        size: its width and height in pixels.
    """

    index: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Findings:
    """What `check_images` finds. Images are named by their index into ``items``.

    Attributes:
        items: N images in the order of the splits: training, test, validation. Those that could
            not be decoded are not among them.
        splits: the split of each: "train", "test" or "validation".
        classes: class names; ``items[index].label`` is an index into them.
        wrong_labels: the surest first.
        duplicates: those across splits first, then those across classes, then the others.
        outliers: the farthest first.
        blank: indices of images of a single colour.
        tiny: images with a side of fewer pixels than `looks.TINY`, the smallest first.
        unreadable: files that could not be read, and why.
        notes: sentences for the user.
    """

    items: tuple[Item, ...] = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...]
    wrong_labels: tuple[WrongLabel, ...]
    duplicates: tuple[Duplicates, ...]
    outliers: tuple[Outlier, ...]
    blank: tuple[int, ...]
    tiny: tuple[SmallImage, ...]
    unreadable: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
