"""Images to classify, one after the other: paths, folders, globs, URLs, arrays and tensors.

No image is decoded before its turn, so a large folder takes no more memory than a small one.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from clip_randlora.clip.models import float_range_problem
from clip_randlora.data.dataset import Content, Item, Skipped
from clip_randlora.data.images import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    UnreadableImage,
    decode_image,
    oversize_reason,
)
from clip_randlora.data.layouts import list_source
from clip_randlora.data.parts import find_parts, is_part
from clip_randlora.data.sources import DiskFile, natural_key
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import OnProgress

_CHANNELS = (1, 3, 4)
_SECONDS_TO_ANSWER, _SECONDS_TO_FETCH = 20, 120
_BLOCK = 2**16
_HEAD = 64  # bytes that tell an image from a list of paths

OnSkipped = Callable[[list[Skipped]], None]


@dataclass(frozen=True)
class Input:
    """One image that is not decoded yet.

    Attributes:
        name: its path or URL, or ``image 3`` if it has no name.
        open: returns it upright and RGB, or raises ``UnreadableImage`` (a ``UserError``).
        content: its file, or where it is read from in an archive; None if it is in neither.
    """

    name: str
    open: Callable[[], Image.Image]
    content: Path | Content | None = None


def each_input(
    images: Any, on_left_out: OnSkipped, on_progress: OnProgress | None = None
) -> Iterator[Input]:
    """Yield the images of one source or of several, in order.

    What cannot be used is yielded too, and raises when it is opened: a missing file, an array of
    another shape, a glob that matches nothing.

    Args:
        images: one source or an iterable of them, see `clip_randlora.Classifier.predict`.
        on_left_out: called with the files of a folder, ``.zip`` or glob that are hidden or are no
            images by their names, if there are any.
        on_progress: told how many files of a folder or ``.zip`` are listed.
    """
    sources = images if _is_several(images) else [images]
    numbers = itertools.count(1)
    for source in sources:
        if isinstance(source, Input):
            yield source
        elif isinstance(source, Item):
            yield Input(source.name, source.open, source.content)
        elif isinstance(source, str | PurePath):
            yield from _of_path(source, on_left_out, on_progress)
        elif isinstance(source, np.ndarray | torch.Tensor):
            yield from _of_array(source, numbers)
        else:
            yield _decoded(source, f"image {next(numbers)}")


def read_standard_input(stream: BinaryIO) -> Iterator[str | bytes]:
    """Yield the bytes of one image, or the lines of a list of paths, whichever the stream holds.

    All image formats have control characters in their first bytes (PNM has ``P`` and a digit).
    """
    head = stream.read(_HEAD)
    if re.search(rb"[\x00-\x08\x0e-\x1f]|^P[1-6]\s+[\d#]", head):
        yield head + stream.read(MAX_FILE_BYTES)
        return
    *lines, last = head.split(b"\n")
    for line in itertools.chain(lines, [last + stream.readline()], stream):
        if path := os.fsdecode(line.strip(b"\r\n")):
            yield path


def listed_inputs(
    images: Any, on_left_out: OnSkipped, on_progress: OnProgress | None = None
) -> tuple[Iterable[Input], int]:
    """Return the images as `each_input` does, and their number if listing them decodes none.

    The number is 0 if it is not known: of iterators, arrays and decoded images.
    """
    one = str | PurePath | Input
    several = isinstance(images, list | tuple) and all(isinstance(image, one) for image in images)
    entries = each_input(images, on_left_out, on_progress)
    if several or isinstance(images, one):
        listed = list(entries)
        return listed, len(listed)
    return entries, 0


def none_readable(errors: Sequence[str]) -> UserError:
    """Return the error if no image of several can be read; ``errors`` say why, a line each."""
    if not errors:
        return UserError("IMAGE: no images given; give files, folders or URLs")
    if len(errors) == 1:
        return UserError(errors[0])
    return UserError(f"none of {len(errors)} images can be read, e.g. {errors[0]}")


def _is_several(images: Any) -> bool:
    one = str | PurePath | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor
    return isinstance(images, Iterable) and not (
        isinstance(images, one | Mapping) or hasattr(images, "read")
    )


def _decoded(source: Any, name: str) -> Input:
    """Decode at once what another thread must not touch: an open file, a PIL image."""
    name = str(getattr(source, "filename", "") or name)
    try:
        content = source if isinstance(source, Image.Image) else _read(source, name)
        image = decode_image(content, name)
    except UnreadableImage as error:
        return _failing(error)
    return Input(name, lambda: image)


def _failing(error: UnreadableImage) -> Input:
    def fail() -> Image.Image:
        raise error

    return Input(error.name, fail)


def _read(source: Any, name: str) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif hasattr(source, "read"):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
        content = source.read(MAX_FILE_BYTES + 1)
    else:
        raise UnreadableImage(name, f"{type(source).__name__} is no image, path, array or tensor")
    if not isinstance(content, bytes):
        raise UnreadableImage(name, "is open as text; open it in binary mode")
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableImage(name, oversize_reason(len(content)))
    return content


# --- paths ----------------------------------------------------------------------------------


def _of_path(
    source: str | PurePath, on_left_out: OnSkipped, on_progress: OnProgress | None
) -> Iterator[Input]:
    text = str(source)
    if isinstance(source, str) and (scheme := re.match(r"([A-Za-z][\w+.-]*)://", source)):
        if scheme[1].lower() in ("http", "https"):
            yield Input(source, partial(_fetch, source))
        else:
            advice = "give a path, or an address that begins with http or https"
            yield _failing(UnreadableImage(source, advice))
        return
    path = Path(os.path.expanduser(text))
    is_zip = path.suffix.lower() == ".zip" and os.path.isfile(path) and zipfile.is_zipfile(path)
    if os.path.isdir(path) or is_zip or is_part(path):
        yield from _listed(path, on_left_out, on_progress)
    elif isinstance(source, str) and glob.has_magic(text) and not os.path.lexists(path):
        yield from _matching(str(path), on_left_out)
    else:
        yield _file(path)


def _file(path: Path) -> Input:
    name = _printable(path)
    return Input(name, partial(decode_image, path, name), path)


def _listed(path: Path, on_left_out: OnSkipped, on_progress: OnProgress | None) -> Iterator[Input]:
    name = _printable(path)
    try:
        parts = find_parts(path)
        listing, files = list_source(path, on_progress)
    except UserError as error:
        yield _failing(UnreadableImage(name, str(error).removeprefix(f"{path}: ")))
        return
    if parts is not None:
        name = parts.base
    if listing.skipped:
        on_left_out([Skipped(f"{name}/{entry.name}", entry.reason) for entry in listing.skipped])
    if not files:
        yield _failing(UnreadableImage(name, "has no images; give a folder or .zip of images"))
    for file in files:
        if isinstance(file.content, DiskFile):
            yield _file(file.content.path)
        else:
            item = Item(f"{name}/{file.name}", 0, file.content)
            yield Input(item.name, item.open, item.content)


def _matching(pattern: str, on_left_out: OnSkipped) -> Iterator[Input]:
    found = sorted(glob.glob(pattern, recursive=True), key=natural_key)
    paths = [path for path in map(Path, found) if not path.is_dir()]
    others = [path for path in paths if path.suffix.lower() not in EXTENSIONS]
    if others:
        on_left_out([Skipped(_printable(path), "not an image") for path in others])
    if len(others) == len(paths):
        yield _failing(UnreadableImage(pattern, "no image matches; check the path"))
    yield from (_file(path) for path in paths if path.suffix.lower() in EXTENSIONS)


def _printable(path: Path) -> str:
    """Return a path with escapes for bytes that are not UTF-8: for terminals, JSON and CSV."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# --- URLs -----------------------------------------------------------------------------------


class _StayOnTheWeb(HTTPRedirectHandler):
    """Follows no redirection to another scheme, such as ``file``."""

    def __init__(self, url: str):
        self.url = url

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            reason = f"leads to {newurl[:80]}, which is neither http nor https"
            raise UnreadableImage(self.url, reason)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str) -> Image.Image:
    """Fetch an image, within bounds of size and time."""
    try:
        content = _download(url)
    except UnreadableImage:
        raise
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
    with build_opener(_StayOnTheWeb(url)).open(request, timeout=_SECONDS_TO_ANSWER) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        while size <= MAX_FILE_BYTES and (block := answer.read(_BLOCK)):
            content += block
            size = max(size, len(content))
            if time.monotonic() > end:
                reason = f"takes longer than {_SECONDS_TO_FETCH} s; download it first"
                raise UnreadableImage(url, reason)
    if size > MAX_FILE_BYTES:
        raise UnreadableImage(url, oversize_reason(size))
    return bytes(content)


# --- arrays ---------------------------------------------------------------------------------


def _of_array(array: np.ndarray | torch.Tensor, numbers: Iterator[int]) -> Iterator[Input]:
    name = f"image {next(numbers)}"
    try:
        pictures = _pictures(array, name)
    except UnreadableImage as error:
        yield _failing(error)
        return
    for place, picture in enumerate(pictures):
        if picture.dtype != np.uint8:
            picture = np.rint(picture.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
        grey = picture.shape[-1] == 1
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if grey else picture))
        yield _decoded(image, f"image {next(numbers)}" if place else name)


def _pictures(array: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Return the images ``(N, H, W, C)`` of an array, channels last, or a tensor, channels first.

    Their values are uint8, or floats from 0 to 1.
    """
    shape, kind = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    is_tensor = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        values = (array.float() if array.is_floating_point() else array).numpy()
        values = np.moveaxis(values, -3, -1) if values.ndim in (3, 4) else values
    else:
        values = array
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in _CHANNELS or 0 in values.shape:
        one = "(3, H, W)" if is_tensor else "(H, W, 3)"
        raise UnreadableImage(
            name,
            f"{'a tensor' if is_tensor else 'an array'} of shape {shape}; give (H, W), {one}, or "
            f"several as (N, {one[1:]}",
        )
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        reason = f"values of type {kind}; give uint8, or floats from 0 to 1"
        raise UnreadableImage(name, reason)
    if problem := float_range_problem(float(values.min()), float(values.max())):
        raise UnreadableImage(name, problem)
    return values
