"""Images that benchmarks read: bundled ones, and generated ones in class folders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common.processes import ROOT
from clip_randlora.errors import UserError

CLIPART = ROOT / "clip_randlora" / "bundled" / "clipart"
_COLOURS = (  # noqa: SIM905
    "amber black blue bronze brown copper coral crimson cyan gold gray green indigo ivory lime "
    "magenta maroon olive orange pink purple red silver teal turquoise violet white yellow"
).split()
_THINGS = (  # noqa: SIM905
    "airplane anchor apple basket bicycle boat bottle bridge bucket camera candle carpet chair "
    "clock coat cup desk dog door drum elephant flag flower fork fountain guitar hammer hat "
    "helmet horse house jacket kettle key kite ladder lamp lizard"
).split()


def class_names(count: int) -> tuple[str, ...]:
    """Return different names of two words each."""
    most = len(_COLOURS) * len(_THINGS)
    if count > most:
        raise UserError(f"--classes {count}: at most {most}")
    pairs = itertools.product(_COLOURS, _THINGS)
    every = [f"{colour} {thing}" for colour, thing in pairs]
    # a stride that shares no factor with the number of names visits each of them once
    return tuple(every[place * 37 % most] for place in range(count))


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
