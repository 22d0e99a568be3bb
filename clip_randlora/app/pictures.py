"""Gathered images: what is known of each, and the small JPEGs that the page shows."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import clip_randlora as cr

THUMBNAIL, LARGE = 160, 1024  # sides in pixels
_UNREADABLE = "#b0b7c3"  # an image whose header was in order and whose pixels are not


@dataclass(frozen=True)
class Picture:
    """One gathered image.

    Attributes:
        number: unique in its project; later images have larger ones.
        class_name: its class; None while it is not sorted yet.
        is_test: whether it is for testing only.
        path: its file, called ``NUMBER-NAME``.
    """

    number: int
    class_name: str | None
    is_test: bool
    path: Path

    @property
    def name(self) -> str:
        """The name of the file that it came from, in safe characters."""
        return self.path.name.split("-", 1)[1]


class Thumbnails:
    """Small JPEGs of images, kept in a folder; those of new images are made in the background."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="thumbnails")

    def prepare(self, pictures: Iterable[Picture]) -> None:
        """Begin to make the thumbnails of images, so that the page finds them ready."""
        for picture in pictures:
            self._pool.submit(self._try, picture)

    def clear(self) -> None:
        """Forget all, as the numbers become those of other images."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, picture: Picture, side: int = THUMBNAIL) -> Path:
        """Return the JPEG of an image, no side longer than ``side``; made on first use."""
        small = self.folder / f"{picture.path.stem}-{side}.jpg"
        if not small.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            image = _decode_small(picture.path, side)
            image.thumbnail((side, side))
            temporary = small.with_suffix(f".{secrets.token_hex(4)}.tmp")
            image.save(temporary, "JPEG", quality=82)
            temporary.replace(small)
        return small

    def _try(self, picture: Picture) -> None:
        with suppress(OSError):  # removed since
            self.path(picture)


def _decode_small(path: Path, side: int) -> Image.Image:
    """Decode an image to RGB; one that is broken is named when it is used, and grey here."""
    if not path.exists():
        raise FileNotFoundError(path)
    with suppress(cr.UserError):
        return cr.decode_image(path, side=side)
    return Image.new("RGB", (side, side), _UNREADABLE)
