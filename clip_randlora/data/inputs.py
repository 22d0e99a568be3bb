"""What can be classified, one image after the other: paths, folders, globs, URLs, arrays, tensors.

Nothing is decoded before its turn, so that a large folder takes no more memory than a small one.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
import torch
from PIL import Image

from clip_randlora.clip.models import ROUNDING
from clip_randlora.data import Item, Skipped, UnreadableImage, decode_image
from clip_randlora.data.images import EXTENSIONS, MAX_FILE_BYTES, oversize_reason
from clip_randlora.data.layouts import list_source
from clip_randlora.data.sources import DiskFile, natural_key
from clip_randlora.errors import UserError

_CHANNELS = (1, 3, 4)
_SECONDS_TO_ANSWER, _SECONDS_TO_FETCH = 20, 120
_BLOCK = 2**16
_HEAD = 64  # bytes that tell an image from a list of paths

LeftOut = Callable[[list[Skipped]], None]


@dataclass(frozen=True)
class Input:
    """One image that is not decoded yet.

    ``name`` is its path or URL, or ``image 3`` of what has no name; ``open`` returns it upright
    and RGB, or raises ``UnreadableImage`` (a ``UserError``).
    """

    name: str
    open: Callable[[], Image.Image]


def each_input(images: Any, on_left_out: LeftOut) -> Iterator[Input]:
    """Yield the images of one source or of several, in order.

    What cannot be used is yielded too, and raises when it is opened: a missing file, an array of
    another shape, a glob that nothing matches.

    Args:
        images: one source or an iterable of them, see `clip_randlora.Classifier.predict`.
        on_left_out: called with the files of a folder, ``.zip`` or glob that are no images by
            their name, or hidden, if there are any.
    """
    sources = images if _is_several(images) else [images]
    numbers = itertools.count(1)
    for source in sources:
        if isinstance(source, Input):
            yield source
        elif isinstance(source, Item):
            yield Input(source.name, source.open)
        elif isinstance(source, str | PurePath):
            yield from _of_path(source, on_left_out)
        elif isinstance(source, np.ndarray | torch.Tensor):
            yield from _of_array(source, numbers)
        else:
            yield _decoded(source, f"image {next(numbers)}")


def read_standard_input(stream: BinaryIO) -> Iterator[str | bytes]:
    """Yield the bytes of one image, or the lines of a list of paths, as the first bytes say.

    All image formats have control characters in their first bytes (of PNM, ``P`` and a digit).
    """
    head = stream.read(_HEAD)
    if re.search(rb"[\x00-\x08\x0e-\x1f]|^P[1-6]\s+[\d#]", head):
        yield head + stream.read(MAX_FILE_BYTES)
        return
    *lines, last = head.split(b"\n")
    for line in itertools.chain(lines, [last + stream.readline()], stream):
        if path := os.fsdecode(line.strip(b"\r\n")):
            yield path


def _is_several(images: Any) -> bool:
    one = str | PurePath | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor
    return isinstance(images, Iterable) and not (
        isinstance(images, one | Mapping) or hasattr(images, "read")
    )


def _decoded(source: Any, name: str) -> Input:
    """Decode at once what another thread must not touch: an open file, a PIL image."""
    try:
        name = str(getattr(source, "filename", "") or name)
        image = decode_image(source if isinstance(source, Image.Image) else _read(source), name)
    except UnreadableImage as error:
        return _failing(name, error.reason)
    except _NotAnImage as error:
        return _failing(name, str(error))
    return Input(name, lambda: image)


class _NotAnImage(Exception):
    """Why something is no image, without its name."""


def _failing(name: str, reason: str) -> Input:
    def fail() -> Image.Image:
        raise UnreadableImage(name, reason)

    return Input(name, fail)


def _read(source: Any) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif hasattr(source, "read"):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
        content = source.read(MAX_FILE_BYTES + 1)
    else:
        raise _NotAnImage(f"{type(source).__name__} is no image, path, array or tensor")
    if not isinstance(content, bytes):
        raise _NotAnImage("is open as text; open it in binary mode")
    if len(content) > MAX_FILE_BYTES:
        raise _NotAnImage(oversize_reason(len(content)))
    return content


# --- paths ----------------------------------------------------------------------------------


def _of_path(source: str | PurePath, on_left_out: LeftOut) -> Iterator[Input]:
    text = str(source)
    if isinstance(source, str) and (scheme := re.match(r"([A-Za-z][\w+.-]*)://", source)):
        if scheme[1].lower() in ("http", "https"):
            yield Input(source, partial(_fetch, source))
        else:
            yield _failing(source, "give a path, or an address that begins with http or https")
        return
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path) or _is_zip(path):
        yield from _listed(path, on_left_out)
    elif isinstance(source, str) and glob.has_magic(text) and not os.path.lexists(path):
        yield from _matching(str(path), on_left_out)
    else:
        yield _file(path)


def _file(path: Path) -> Input:
    name = _printable(path)
    return Input(name, partial(decode_image, path, name))


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and os.path.isfile(path) and zipfile.is_zipfile(path)


def _listed(path: Path, on_left_out: LeftOut) -> Iterator[Input]:
    name = _printable(path)
    try:
        listing, files = list_source(path)
    except UserError as error:
        yield _failing(name, str(error).removeprefix(f"{path}: "))
        return
    if listing.skipped:
        on_left_out([Skipped(f"{name}/{entry.name}", entry.reason) for entry in listing.skipped])
    if not files:
        yield _failing(name, "has no images; give a folder or .zip of images")
    for file in files:
        if isinstance(file.content, DiskFile):
            yield _file(file.content.path)
        else:
            item = Item(f"{name}/{file.name}", 0, file.content)
            yield Input(item.name, item.open)


def _matching(pattern: str, on_left_out: LeftOut) -> Iterator[Input]:
    found = sorted(map(Path, glob.glob(pattern, recursive=True)), key=lambda p: natural_key(str(p)))
    images = [path for path in found if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    others = [path for path in found if path not in set(images) and not path.is_dir()]
    if others:
        on_left_out([Skipped(_printable(path), "not an image") for path in others])
    if not images:
        yield _failing(pattern, "no image matches; check the path")
    yield from map(_file, images)


def _printable(path: Path) -> str:
    """A path as it is, with escapes for bytes that are no UTF-8: for terminals, JSON and CSV."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# --- URLs -----------------------------------------------------------------------------------


class _StaysOnTheWeb(HTTPRedirectHandler):
    """Follows no redirection to another scheme, such as that of local files."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise _NotAnImage(f"leads to {newurl[:80]}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str) -> Image.Image:
    """Fetch an image, within bounds of size and time."""
    try:
        content = _download(url)
    except _NotAnImage as error:
        raise UnreadableImage(url, str(error)) from None
    except HTTPError as error:
        raise UnreadableImage(url, f"the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise UnreadableImage(
            url, f"cannot be fetched ({reason or type(error).__name__})"
        ) from None
    return decode_image(content, url)


def _download(url: str) -> bytes:
    parts = urlsplit(url)
    path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    address = urlunsplit((parts.scheme, parts.netloc, path, query, ""))
    request = Request(address, headers={"User-Agent": "clip-randlora"})
    end = time.monotonic() + _SECONDS_TO_FETCH
    content = bytearray()
    opener = build_opener(_StaysOnTheWeb)
    with opener.open(request, timeout=_SECONDS_TO_ANSWER) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        while size <= MAX_FILE_BYTES and (block := answer.read(_BLOCK)):
            content += block
            size = max(size, len(content))
            if time.monotonic() > end:
                raise _NotAnImage(f"takes longer than {_SECONDS_TO_FETCH} s; download it first")
    if size > MAX_FILE_BYTES:
        raise _NotAnImage(oversize_reason(size))
    return bytes(content)


# --- arrays ---------------------------------------------------------------------------------


def _of_array(array: np.ndarray | torch.Tensor, numbers: Iterator[int]) -> Iterator[Input]:
    try:
        pictures = _pictures(array)
    except _NotAnImage as error:
        yield _failing(f"image {next(numbers)}", str(error))
        return
    for picture in pictures:
        yield _decoded(_as_image(picture), f"image {next(numbers)}")


def _pictures(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the images (N, H, W, C) of an array, channels last, or of a tensor, channels first."""
    shape, kind = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    is_tensor = isinstance(array, torch.Tensor)
    values = _as_numpy(array)
    if is_tensor and values.ndim in (3, 4):
        values = np.moveaxis(values, -3, -1)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in _CHANNELS or 0 in values.shape:
        one = "(3, H, W)" if is_tensor else "(H, W, 3)"
        raise _NotAnImage(
            f"{'a tensor' if is_tensor else 'an array'} of shape {shape}; give (H, W), {one}, or "
            f"several as (N, {one[1:]}"
        )
    _check_values(values, kind)
    return values


def _as_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    return array


def _check_values(values: np.ndarray, kind: str) -> None:
    if values.dtype == np.uint8:
        return
    if not np.issubdtype(values.dtype, np.floating):
        raise _NotAnImage(f"values of type {kind}; give uint8, or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nor NaN
        raise _NotAnImage(
            f"floats from {low:.3g} to {high:.3g}; give floats from 0 to 1, or uint8, and do not "
            f"normalise them: that is done here"
        )


def _as_image(picture: np.ndarray) -> Image.Image:
    if picture.dtype != np.uint8:
        picture = np.rint(picture.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    grey = picture.shape[-1] == 1
    return Image.fromarray(np.ascontiguousarray(picture[..., 0] if grey else picture))
