"""A folder of decoded images, for trainings that would decode the same large photographs again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_randlora.data.dataset import Item, Skipped
from clip_randlora.data.images import UnreadableImage
from clip_randlora.errors import UserError

_VERSION = b"2"  # of the pixels: torch resizes them, which differs a little from Pillow
_FREE_BYTES = 2 * 1024**3  # left on the disk
_CHECK_EVERY = 100  # images written between two looks at the disk


class DiskCache:
    """Decoded images in a folder, one file each, 3 side² bytes long.

    A file on disk is known by its path, size and time of change; any other image, in an archive
    say, by the SHA-256 of its content. So one folder can serve any number of data sets, trainings
    and processes. Once less than 2 GiB of the disk are free, nothing more is written.
    """

    def __init__(self, folder: str | Path, transform: str, side: int):
        """Use a folder, which is made if need be.

        Args:
            folder: where the images are.
            transform: a description of what is done to the images; part of what they are known by.
            side: of the decoded images, in pixels.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder, self._transform, self._side = Path(folder), transform, side
        self._lock, self._writes, self._is_full = threading.Lock(), 0, False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()
        except OSError as error:
            raise UserError(
                f"image cache {folder}: cannot be written ({error.strerror}); give another folder"
            ) from None

    def get(self, item: Item) -> torch.Tensor | None:
        """Return the decoded item, uint8 ``(3, side, side)``, or None if it is not there."""
        try:
            pixels = np.fromfile(self._path(item), dtype=np.uint8)
        except (OSError, UnreadableImage):  # the second shows again when it is decoded
            return None
        if pixels.size != 3 * self._side**2:  # cut short
            return None
        return torch.from_numpy(pixels).view(3, self._side, self._side)

    def put(self, item: Item, result: torch.Tensor | Skipped) -> None:
        """Keep a decoded item, if there is room on the disk."""
        if not isinstance(result, torch.Tensor) or self._is_full:
            return
        with self._lock:
            if self._writes % _CHECK_EVERY == 0:
                self._is_full = shutil.disk_usage(self._folder).free < _FREE_BYTES
            self._writes += 1
        with suppress(OSError, UnreadableImage):  # the image is decoded again where it is needed
            path = self._path(item)
            path.parent.mkdir(exist_ok=True)
            number, name = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(result.numpy().tobytes())
                os.replace(name, path)
            except OSError:
                self._is_full = True
                os.unlink(name)

    def _path(self, item: Item) -> Path:
        content = item.content.read()
        if isinstance(content, Path):
            status = content.stat()
            key = f"{content.absolute()}\0{status.st_size}\0{status.st_mtime_ns}".encode()
        elif isinstance(content, Image.Image):
            key = content.tobytes()
        else:
            key = content
        name = hashlib.sha256(b"\0".join((_VERSION, self._transform.encode(), key))).hexdigest()
        return self._folder / name[:2] / f"{name[2:40]}.rgb"
