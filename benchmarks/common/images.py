"""Images that a benchmark makes itself, as files in class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    folder: Path, classes: Sequence[str], per_class: int, tests: int, side: int = 256
) -> None:
    """Write ``train/`` and ``test/`` folders of JPEGs: a colour of the class's own, with noise.

    Args:
        folder: to write to.
        classes: the class folders' names.
        per_class: training images of each class.
        tests: test images of each class.
        side: of the square images, pixels.
    """
    random = np.random.default_rng(0)
    for name in classes:
        colour = random.uniform(40, 215, 3)
        for split, count in (("train", per_class), ("test", tests)):
            inside = folder / split / name
            inside.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                coarse = random.normal(0, 40, (16, 16, 3)) + colour
                pixels = np.clip(coarse, 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
                image.save(inside / f"{number}.jpg", quality=90)
