"""Images of classes, written to folders and archives."""

from __future__ import annotations

import io
import re
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


def expand(pattern: str) -> list[str]:
    """Spell out ``{cat,dog}/{1..3}.png``; several patterns stand between spaces around a ``+``."""
    if " + " in pattern:
        return [name for part in pattern.split(" + ") for name in expand(part)]
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        choices = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in choices for name in expand(before + choice + after)]


def write_images(root: Path, pattern: str) -> None:
    """Write tiny images of the names that `expand` spells out, which all differ."""
    content = encoded(Image.new("RGB", (1, 1), "red"))
    for number, name in enumerate(expand(pattern)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content + b"%06d" % number)
