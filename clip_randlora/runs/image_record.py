"""A run's ``images.csv``: the images that it was trained and tested on, known by their content."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from clip_randlora.data import Data, Item, Split, TrainingImages, UnreadableImage
from clip_randlora.data.loading import HELD_OUT_NOTE
from clip_randlora.errors import UserError
from clip_randlora.runs.run_config import read_config
from clip_randlora.utils.outputs import write_csv
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress

FILE_NAME = "images.csv"
Use = Literal["trained", "unreadable", "held out", "tested"]
COLUMNS = ["use", "class", "image", "digest"]
_DIGEST_LENGTH = 32  # hexadecimal digits: 128 of SHA-256's 256 bits


@dataclass(frozen=True, slots=True)
class RecordedImage:
    """An image of a run.

    Attributes:
        use: "trained": drawn for training. "unreadable": drawn, but it could not be decoded.
            "held out": a test image that was set apart from the training images. "tested": an
            image of a test split that the user gave.
        class_name: its class.
        name: its name in the data set.
        digest: the first 128 bits of its content's SHA-256, "" if it could not be read.
    """

    use: Use
    class_name: str
    name: str
    digest: str


@dataclass(frozen=True)
class ImageRecord:
    """The images of a run: first the drawn ones in the order of the draw, then the test images."""

    images: tuple[RecordedImage, ...]

    def of(self, *uses: Use) -> list[RecordedImage]:
        """Return the images of some uses, in order."""
        return [image for image in self.images if image.use in uses]

    def restore(self, data: Data) -> Data:
        """Return the data with the split that the run began with, even if images were added since.

        The training split of the result holds only the drawn images, in the order of the draw and
        under their names of that time. Its test split holds the held-out images that still exist.

        Raises:
            UserError: a training image is missing, or all held-out images are.
        """
        pool = [*data.train, *data.test] if data.held_out else [*data.train]
        drawn = self.of("trained", "unreadable")
        train = []
        for image, item in zip(drawn, _find(drawn, pool, data.classes), strict=True):
            if item is not None:
                train.append(replace(item, name=image.name))
            elif image.use == "trained":
                raise UserError(
                    f"cannot resume, the training images are not those that the run began with: "
                    f"{image.name} is missing or changed; restore it or start again with another "
                    f"--out"
                )
        data = replace(data, train=Split(tuple(train), data.classes))
        return self._restore_held_out(data, pool) if data.held_out else data

    def _restore_held_out(self, data: Data, pool: Sequence[Item]) -> Data:
        recorded = self.of("held out", "tested")
        found = [item for item in _find(recorded, pool, data.classes) if item is not None]
        if not found:
            raise UserError(
                "cannot resume, the held-out images that the run began with are missing; restore "
                "them or start again with another --out"
            )
        if found == list(data.test):
            return data
        note = (
            f"The held-out images are those that the run began with ({len(found)} of "
            f"{len(recorded)} are there)."
        )
        notes = (note, *(line for line in data.notes if not line.startswith(HELD_OUT_NOTE)))
        return replace(data, test=Split(tuple(found), data.classes), notes=notes)


def record_images(
    data: Data,
    train_images: TrainingImages,
    known: dict[int, str] | None = None,
    on_progress: OnProgress | None = None,
) -> ImageRecord:
    """Record the drawn images and the test images by their content.

    The test images of a published data set are left out: its training split has none of them.

    Args:
        data: what the training images were drawn from.
        train_images: the drawn images.
        known: ``id(item)`` -> digest of images that were read before; new ones are added.
        on_progress: is told how many are read, see `clip_randlora.utils.progress.OnProgress`.
    """
    broken = {entry.name for entry in train_images.skipped}
    groups: list[tuple[Use, Iterable[Item]]] = [
        ("unreadable", [item for item in data.train if item.name in broken] if broken else []),
        ("trained", train_images.items),
    ]
    if data.held_out or not data.is_ready_made:
        groups.append(("held out" if data.held_out else "tested", data.test))
    known = {} if known is None else known
    images = []
    for use, group in groups:
        items = list(group)
        for item, digest in zip(items, digest_items(items, known, on_progress), strict=True):
            if use == "trained" and not digest:
                raise UserError(f"{item.name}: could be read only once; check the disk")
            images.append(RecordedImage(use, data.classes[item.label], item.name, digest))
    return ImageRecord(tuple(images))


def digest_items(
    items: Sequence[Item],
    known: dict[int, str] | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Return the recorded digest of every image, "" for images that cannot be read."""
    known = {} if known is None else known
    new = [item for item in items if id(item) not in known]
    digests = report_progress(
        parallel_map(_digest, new), "comparing contents", len(new), on_progress
    )
    known.update(zip(map(id, new), digests, strict=True))
    return [known[id(item)] for item in items]


def shorten_digest(digest: str) -> str:
    """Return the part of a hexadecimal SHA-256 that is recorded."""
    return digest[:_DIGEST_LENGTH]


def write_images(folder: Path, record: ImageRecord) -> None:
    """Write ``images.csv``."""
    write_csv(folder / FILE_NAME, COLUMNS, map(astuple, record.images))


def read_images(folder: str | Path) -> ImageRecord | None:
    """Read a run's ``images.csv``; None if it has none, as runs of earlier versions.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / FILE_NAME
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        return None
    except (ValueError, csv.Error) as error:  # no header, or not UTF-8
        raise _damaged(path) from error
    if header != COLUMNS:
        raise _damaged(path)
    images = []
    for row in rows:
        use, class_name, name, digest = row if len(row) == len(COLUMNS) else [""] * 4
        if use not in get_args(Use) or len(digest) not in (0, _DIGEST_LENGTH):
            raise _damaged(path)
        images.append(RecordedImage(cast(Use, use), class_name, name, digest))
    return ImageRecord(tuple(images))


def training_files(folder: Path) -> list[Path]:
    """Return the files that a run was trained on, where they still are.

    There are none if the run does not record its images, or they were in an archive.
    """
    record, source = read_images(folder), read_config(folder)["data"].get("data")
    if record is None or not isinstance(source, str):
        return []
    files = (Path(source) / image.name for image in record.of("trained"))
    return [file for file in files if file.is_file()]


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged, not the images of a run; copy the run again")


def _digest(item: Item) -> str:
    try:
        return shorten_digest(item.digest())
    except (OSError, UnreadableImage):  # reported when the image is decoded
        return ""


def _find(
    recorded: Sequence[RecordedImage], pool: Sequence[Item], classes: Sequence[str]
) -> list[Item | None]:
    """Find each recorded image in its class: under its name, or else by its content.

    No item is found twice. The whole pool is read only if an image is not under its name.
    """
    by_name = {(classes[item.label], item.name): item for item in pool}
    found = [by_name.get((image.class_name, image.name)) for image in recorded]
    known: dict[int, str] = {}
    digest_items([item for item in found if item is not None], known)
    for place, (image, item) in enumerate(zip(recorded, found, strict=True)):
        if item is not None and known[id(item)] != image.digest:
            found[place] = None
    if None not in found:
        return found
    taken = {id(item) for item in found if item is not None}
    free = [item for item in pool if id(item) not in taken]
    others: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item, digest in zip(free, digest_items(free, known), strict=True):
        others[classes[item.label], digest].append(item)
    for place, image in enumerate(recorded):
        same = others[image.class_name, image.digest] if image.digest else []
        if found[place] is None and same:
            found[place] = same.pop(0)
    return found
