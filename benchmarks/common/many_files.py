"""Folders of many files, and reading them; this imports little, because memory is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from PIL import Image

_LINKS_OF_A_FILE = 50_000  # ext4 allows 65,000
_TEST_SHARE = 0.05


def make_links(root: Path, files: int, classes: int) -> None:
    """Write ``data/train`` and ``data/test`` of hard links to a few JPEGs beside them."""
    made = 0
    source = root / "source.jpg"
    for label in range(classes):
        count = files // classes + (label < files % classes)
        tests = max(1, round(count * _TEST_SHARE))
        for split, images in (("train", count - tests), ("test", tests)):
            folder = root / "data" / split / f"class {label}"
            folder.mkdir(parents=True)
            for number in range(images):
                if made % _LINKS_OF_A_FILE == 0:
                    source = root / f"source {made}.jpg"
                    Image.new("RGB", (64, 64), (made // _LINKS_OF_A_FILE, 0, 0)).save(source)
                os.link(source, folder / f"image {number:07d}.jpg")
                made += 1


def list_files(source: str | None) -> dict[str, Any]:
    """Load a source in this process; None times the imports that it takes."""
    begin = time.perf_counter()
    from clip_randlora.data import load_data

    begin = time.perf_counter() if source else begin
    data = load_data(source) if source else None
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "images": len(data.train) + len(data.test) if data else 0}
