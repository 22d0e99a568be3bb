"""Images of classes, written to folders and archives."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}


def write_colors(
    root: Path, counts: Mapping[str, int], colors: Mapping[str, tuple[int, int, int]] = COLORS
) -> Path:
    """Write classes that are easy to learn, noisy images of one colour each; ``counts`` by split.

    A split "" is the root itself.
    """
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name, color in colors.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(color) + random.normal(0, 40, (40, 48, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def picture(number: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_classes(root: Path, names, images: int = 4, side: int = 40, start: int = 0) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            (root / name / f"{number}.png").write_bytes(encoded(picture(start, side)))
            start += 1
    return root
