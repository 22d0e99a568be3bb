"""Folders of many files, and reading them; this imports little, because memory is measured."""

from __future__ import annotations

import csv
import json
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


def write_tables(root: Path, classes: int) -> None:
    """Write ``paths.csv``, ``paths.jsonl`` and ``ids.csv`` of the images below ``data``."""
    files = sorted((root / "data").rglob("*.jpg"))
    with (
        open(root / "paths.csv", "w", newline="") as paths,
        open(root / "paths.jsonl", "w") as lines,
        open(root / "ids.csv", "w", newline="") as ids,
    ):
        header = ("width", "place", "species", "split")
        writers = csv.writer(paths), csv.writer(ids)
        writers[0].writerow(("path", *header))
        writers[1].writerow(("id", *header))
        for number, file in enumerate(files):
            path = file.relative_to(root).as_posix()
            split = "train" if "/train/" in path else "test"
            cells = (number % 300, number * 0.37, f"kind {number % classes}", split)
            writers[0].writerow((path, *cells))
            writers[1].writerow((f"{split}/{file.parent.name}/{file.stem}", *cells))
            lines.write(json.dumps({"path": path, **dict(zip(header, cells, strict=True))}) + "\n")


def list_files(source: str | None) -> dict[str, Any]:
    """Load a source in this process; None times the imports that it takes."""
    begin = time.perf_counter()
    from clip_randlora.data import load_data

    begin = time.perf_counter() if source else begin
    data = load_data(source) if source else None
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "images": len(data.train) + len(data.test) if data else 0}
