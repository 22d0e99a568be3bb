"""Random choices that come out the same on every machine and with every library version.

They rest on SHA-256 and on NumPy's raw Philox stream, whose bits NumPy's compatibility policy
covers (the distributions of its ``Generator`` are not covered), and on naturally sorted names
(never on the file system's order).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable

import numpy as np

from clip_randlora.data.dataset import Item, Split
from clip_randlora.errors import UserError


def permutation(count: int, purpose: str, seed: int, name: str) -> list[int]:
    """A random order of ``range(count)``, a function of its arguments alone."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{name}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(bits, kind="stable").tolist()


def draw_shots(split: Split, shots: int | None, seed: int) -> dict[int, list[Item]]:
    """Every class's items in an order drawn by ``seed``: the first ``shots`` are the draw.

    The rest of the order follows as replacements for images that turn out broken. Draws are
    nested: 4 shots are the first 4 of 16. A class's draw depends on its name and its images
    alone, not on the other classes. ``shots=None`` means all.

    Raises:
        UserError: ``shots`` is less than 1.
    """
    if shots is not None and shots < 1:
        raise UserError(f"shots: {shots} images per class; give 1 or more, or none for all")
    return {
        label: [items[i] for i in permutation(len(items), "shots", seed, split.classes[label])]
        for label, items in split.by_class().items()
    }


def hold_out(classes: dict[str, list[Hashable]], share: float) -> dict[str, list[bool]]:
    """Choose from every class about ``share`` of its images for testing.

    Every class keeps a training image and, if it has two different ones, gets a test image.

    Args:
        classes: class name -> a content key for each image; images with equal keys, of
            whatever class, end up on the same side.
        share: between 0 and 1.

    Returns:
        class name -> for each image, whether it is for testing.
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
        if not held and len(free) > 1:  # only large groups of copies: give the smallest
            is_test[min(free, key=sizes.__getitem__)] = True
    return {name: [is_test[key] for key in keys] for name, keys in classes.items()}
