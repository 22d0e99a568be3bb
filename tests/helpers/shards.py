"""WebDataset shards, and tables in parquet, of the images of a folder of class folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

FIRST = 1_000_000  # so that all keys are of one length, and sorted as the images of the folder


def write_shard(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar archive of files, given as pairs of path and content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, image: bytes, label: object = None, ending: str = "png") -> list:
    """Return an image and its ``.cls``, or ``.json`` if the label is a mapping, as pairs."""
    files = [(f"{key}.{ending}", image)]
    if isinstance(label, Mapping):
        files.append((f"{key}.json", json.dumps(label).encode()))
    elif label is not None:
        files.append((f"{key}.cls", str(label).encode()))
    return files


def images_of(folder: Path) -> list[tuple[Path, int, str]]:
    """Return the images of class folders with their label and class, ordered by both names."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [
        (image, label, name)
        for label, name in enumerate(classes)
        for image in sorted((folder / name).iterdir())
    ]


def shard_folder(folder: Path, out: Path, split: str, shards: int, shuffled: bool = True) -> Path:
    """Write the images of class folders as shards with numbers in ``.cls``, and ``classes.txt``.

    A sample goes to the next shard in turn, so each shard has images of every class.
    """
    images = images_of(folder)
    numbered = [(f"{FIRST + n}", *entry) for n, entry in enumerate(images)]
    for place in range(shards):
        files = []
        for key, image, label, _ in numbered[place::shards][:: -1 if shuffled else 1]:
            files += sample(key, image.read_bytes(), label, image.suffix[1:])
        write_shard(out / f"colors-{split}-{place:06d}.tar", files)
    names = dict.fromkeys(name for *_, name in images)
    (out / "classes.txt").write_text("\n".join(names) + "\n")
    return out


def tabulate_folder(folder: Path, out: Path, split: str, files: int) -> Path:
    """Write the images of class folders as parquet files, as the library ``datasets`` does."""
    import datasets

    images = images_of(folder)
    names = list(dict.fromkeys(name for *_, name in images))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    rows = {
        "image": [{"bytes": image.read_bytes(), "path": image.name} for image, *_ in images],
        "label": [label for _, label, _ in images],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    out.mkdir(parents=True, exist_ok=True)
    for place in range(files):
        name = f"{split}-{place:05d}-of-{files:05d}.parquet"
        made.shard(files, place, contiguous=True).to_parquet(out / name)
    return out
