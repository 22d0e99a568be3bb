"""The image sets that come with the package and its dependencies: no download needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clip_randlora.data.sources import File, Listing, MemoryImage, list_folder

_BUNDLED = Path(__file__).parent.parent / "bundled"


@dataclass(frozen=True)
class BundledDataset:
    """A bundled image set: what ``clip-randlora datasets`` prints, and how its files are listed."""

    description: str
    classes: int
    images: int
    licence: str
    load: Callable[[], Listing]


def _clipart() -> Listing:
    return list_folder(_BUNDLED / "clipart")


def _digits() -> Listing:
    from sklearn.datasets import load_digits  # slow to import, and rarely needed

    scans = load_digits()
    listing = Listing()
    # Classes are "7", not "seven": folders of digits are named so, CLIP's own prompts for digits
    # are worded so ('a photo of the number: "7"'), and it sorts in the natural order.
    for number, (pixels, digit) in enumerate(zip(scans.images, scans.target, strict=True)):
        ink_on_paper = np.rint(255 - pixels * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(ink_on_paper).resize((64, 64), Image.Resampling.BICUBIC)
        listing.files.append(File((str(digit), f"{number:04d}.png"), MemoryImage(image)))
    listing.files.sort(key=lambda file: file.parts)
    return listing


DATASETS: dict[str, BundledDataset] = {
    "clipart": BundledDataset(
        description="drawings of animals, food, houses and things, with a test split",
        classes=11,
        images=452,
        licence="public domain (Open Clip Art Library)",
        load=_clipart,
    ),
    "digits": BundledDataset(
        description="8x8 scans of handwritten digits (scikit-learn's load_digits)",
        classes=10,
        images=1797,
        licence="CC BY 4.0",
        load=_digits,
    ),
}
