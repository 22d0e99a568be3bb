"""Random choices that are the same on every machine and with every library version.

They rest on SHA-256, on naturally sorted names (never on the order of the file system), and on
NumPy's raw Philox stream, whose bits are covered by NumPy's compatibility policy. The distributions
of its ``Generator`` are not.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from clip_randlora.data.coop_draws import MOST_VALIDATION_SHOTS, CoopDraw
from clip_randlora.data.dataset import Item, Split
from clip_randlora.errors import UserError


def permutation(count: int, purpose: str, seed: int, name: str) -> list[int]:
    """Return a random order of ``range(count)`` that depends on the arguments alone."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{name}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(bits, kind="stable").tolist()


Shots = int | str | None
"""Training images of a class: a number, a share such as ``50%``, or None for all."""


def parse_shots(value: object) -> Shots:
    """Read a number of images per class, a share such as ``50%``, or ``all`` or None for all.

    Raises:
        ValueError: it is none of these.
    """
    if value is None or value == "all":
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", value, re.ASCII):
        share = float(value[:-1])
        if 0 < share <= 100:
            return f"{share:g}%"
    elif not isinstance(value, bool) and re.fullmatch(r"\d+(\.0)?", str(value), re.ASCII):
        number = int(float(value)) if isinstance(value, float) else int(str(value))
        if number:
            return number
    raise ValueError("give a number of images per class, a share such as 50%, or all")


def count_shots(shots: Shots, images: int) -> int:
    """Return how many of a class's images are drawn; of a share, at least one."""
    if shots is None:
        return images
    if isinstance(shots, str):
        shots = max(1, int(images * float(shots.removesuffix("%")) / 100 + 0.5))
    return min(images, shots)


def draw_shots(split: Split, shots: Shots, seed: int) -> dict[int, list[Item]]:
    """Return every class's items in an order drawn by ``seed``: the first are the draw.

    `count_shots` says how many they are. The items after them replace images that turn out broken.
    Draws are nested: 4 shots are the first 4 of 16, and of 50 %. A class's draw depends on its name
    and its images, not on other classes. Neither holds for a number of shots of a split of CoOp's,
    which is drawn as CoOp draws it (`coop_draws`).

    Raises:
        UserError: ``shots`` is none of `Shots`.
    """
    try:
        shots = parse_shots(shots)
    except ValueError as error:
        raise UserError(f"shots: {shots}; {error}") from None
    if split.draw is not None and isinstance(shots, int):
        return _draw_as_coop(split, split.draw, shots, seed)
    return {
        label: [items[i] for i in permutation(len(items), "shots", seed, split.classes[label])]
        for label, items in split.by_class().items()
    }


def hold_back(keys: Sequence[tuple[int, Hashable]], count: int) -> list[bool]:
    """Choose up to ``count`` images for validation, of all classes together.

    Every class keeps a training image, and images that are there twice stay in training.

    Args:
        keys: the label of each training image, and a key of its content.
        count: how many.

    Returns:
        Whether each image is for validation.
    """
    left = Counter(label for label, _ in keys)
    copies = Counter(key for _, key in keys)
    is_held = [False] * len(keys)
    for place in permutation(len(keys), "validation", 0, ""):
        label, key = keys[place]
        if count > 0 and left[label] > 1 and copies[key] == 1:
            is_held[place], count = True, count - 1
            left[label] -= 1
    return is_held


def _draw_as_coop(split: Split, draw: CoopDraw, shots: int, seed: int) -> dict[int, list[Item]]:
    """Return the drawn items of each class, an item twice if CoOp repeats it, then the others."""
    drawn, orders = draw.names(shots, seed), {}
    for label, items in split.by_class().items():
        by_name = {item.name: item for item in items}
        chosen = [by_name[name] for name in drawn[label] if name in by_name]
        names = {item.name for item in chosen}
        orders[label] = [*chosen, *(item for item in items if item.name not in names)]
    return orders


def draw_validation(split: Split, shots: int, seed: int) -> Split:
    """Return the validation images that a few-shot training may use, as CoOp: at most 4 a class.

    Args:
        split: all validation images.
        shots: training images of a class. There are no more validation images than that.
        seed: of the training's draw.
    """
    count = min(shots, MOST_VALIDATION_SHOTS)
    orders = draw_shots(split, shots, seed).values()
    return Split(tuple(item for order in orders for item in order[:count]), split.classes)


def hold_out(classes: Mapping[str, Sequence[Hashable]], share: float) -> dict[str, list[bool]]:
    """Choose from every class about ``share`` of its images for testing.

    Every class keeps a training image and, if it has two different ones, gets a test image.

    Args:
        classes: ``{class name: a key of the content of each image}``; images with equal keys, of
            whatever class, end up in the same split.
        share: between 0 and 1.

    Returns:
        ``{class name: whether each image is for testing}``.
    """
    is_test: dict[Hashable, bool] = {}
    for name in sorted(classes, key=lambda name: (len(classes[name]), name)):  # smallest first
        keys = classes[name]
        sizes = Counter(keys)
        target = min(max(1, int(len(keys) * share + 0.5)), len(keys) - 1)
        held = sum(is_test.get(key, False) for key in keys)
        order = permutation(len(keys), "held out", 0, name)
        free = list(dict.fromkeys(keys[i] for i in order if keys[i] not in is_test))
        for key in free:
            is_test[key] = held + sizes[key] <= target
            held += sizes[key] * is_test[key]
        if not held and len(free) > 1:  # all groups of copies are large: take the smallest
            is_test[min(free, key=sizes.__getitem__)] = True
    return {name: [is_test[key] for key in keys] for name, keys in classes.items()}
