"""Safe decoding: any common image file becomes an upright 8-bit RGB PIL image, or one clear error.

Files come from strangers (uploads, archives, scraped folders). So the format is checked against a
list and the size against a bound, both from the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from clip_randlora.errors import OutOfMemory, UserError
from clip_randlora.utils.quiet import without_warnings

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20
_AVIF = "avif" in features.modules and features.check("avif")  # older Pillows do not know it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM") + (("AVIF",) if _AVIF else ())
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif")
    + ((".avif",) if _AVIF else ())
)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1")
_GREY_BITS = (8, 10, 12, 14, 16)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = str | Path | bytes | BinaryIO | Image.Image


class UnreadableImage(UserError):
    """One image cannot be used: ``name`` says which one, ``reason`` why and what to do."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_image(
    source: ImageSource, name: str | None = None, side: int | None = None
) -> Image.Image:
    """Decode an image to 8-bit RGB, turned upright, transparency composited on white.

    Args:
        source: a path, the bytes of a file, an open binary file, or a PIL image (left unchanged).
        name: what errors call the image; by default its path.
        side: of the square, in pixels, that the image will be resized to. A JPEG of four times
            that or more is decoded at half, a quarter or an eighth of its size, whichever is the
            smallest that leaves twice the side: a photograph of 12 million pixels takes a sixth
            of the time (``python -m benchmarks read``). None decodes every pixel.

    Returns:
        A PIL image of mode ``RGB`` that shares no memory with ``source`` and has no metadata.
        Of an animation or a multi-page file, the first frame.

    Raises:
        UnreadableImage: (a ``UserError``) the file is missing or broken; its format is neither in
            ``FORMATS`` nor HEIC; it is HEIC and pillow-heif is not installed; its pixel type is
            not supported; or it has more than ``MAX_PIXELS`` pixels.
    """
    name = name or _name_of(source)
    with _unreadable_if_broken(name):
        if isinstance(source, Image.Image):
            _check_size(source, name)
            return _upright_rgb(source, name)
        with _open(source, name) as image:
            if side is not None:
                image.draft("RGB", (2 * side, 2 * side))  # does nothing to other formats
            return _upright_rgb(image, name)


def check_image(source: ImageSource, name: str | None = None) -> None:
    """Read the header only: a fast way to find files that are no images or too large.

    Raises:
        UnreadableImage: as `decode_image`, except for faults that only show in the pixels.
    """
    name = name or _name_of(source)
    with _unreadable_if_broken(name):
        if isinstance(source, Image.Image):
            _check_size(source, name)
        else:
            _open(source, name).close()


def _name_of(source: ImageSource) -> str:
    if isinstance(source, str | PurePath):
        return str(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "image")


@contextmanager
def _unreadable_if_broken(name: str) -> Iterator[None]:
    """Turn whatever PIL raises into ``UnreadableImage``: a broken file can raise nearly anything.

    ``OutOfMemory`` is no ``UnreadableImage``, so it ends the work: the image itself is in order
    and must not be left out.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"{name}: out of memory when decoding it; end other programs") from error
    except Exception as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableImage(name, f"broken or truncated image ({detail}); replace it") from error


def _open(source: str | Path | bytes | BinaryIO, name: str) -> Image.Image:
    """Open an image, of which only the header is read, and check its format and size."""
    if isinstance(source, str | PurePath) and _is_pipe(source):
        raise UnreadableImage(name, "is not a regular file; give an image file")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with without_warnings():  # of Pillow's own bound on pixels, which is higher than ours
            image: Image.Image = Image.open(file, formats=FORMATS)
    except FileNotFoundError:
        raise UnreadableImage(name, "no such file; check the path") from None
    except IsADirectoryError:
        raise UnreadableImage(name, "is a folder; give an image file") from None
    except PermissionError:
        raise UnreadableImage(name, "may not be read; check its permissions") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(name, _too_many_pixels("far too many")) from None
    except UnidentifiedImageError:
        image = _open_heic(file, name)
    try:
        _check_size(image, name)
    except UnreadableImage:
        image.close()
        raise
    return image


def _open_heic(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """Open a HEIC file by pillow-heif's class; registering it would change PIL for everybody."""
    if not _is_heic(source):
        known = ", ".join(FORMATS)
        raise UnreadableImage(
            name, f"not an image that can be read; save it as PNG or JPEG (read are {known}, HEIC)"
        )
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnreadableImage(
            name,
            "a HEIC image: pip install 'clip-randlora[heic]' to read it, or convert it to JPEG",
        ) from None
    size = os.path.getsize(source) if isinstance(source, str | PurePath) else 0
    if size > MAX_FILE_BYTES:  # HeifImageFile reads the whole file
        raise UnreadableImage(name, oversize_reason(size))
    return HeifImageFile(source)


def _is_heic(source: str | Path | BinaryIO) -> bool:
    if isinstance(source, str | PurePath):
        with open(source, "rb") as file:
            return _is_heic(file)
    source.seek(0)
    head = source.read(12)
    source.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS


def oversize_reason(size: int) -> str:
    """Return the reason that a file of ``size`` bytes is refused for its size."""
    return f"{size / 2**20:.0f} MiB, at most {MAX_FILE_BYTES / 2**20:.0f}"


def _is_pipe(path: str | PurePath) -> bool:
    """Whether a path is neither a file nor a folder, so that reading it may never end."""
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):  # opening it will raise too
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(name, "has no pixels; replace it")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(name, _too_many_pixels(f"{width} x {height}"))


def _too_many_pixels(size: str) -> str:
    return f"{size} pixels, more than {MAX_PIXELS / 1e6:g} million; make it smaller"


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    _check_size(image, name)  # a HEIC image may have another size than its header says
    rgb = _to_rgb(_brighten_deep_colour(image) if is_deep else image, name)
    turn = _UPRIGHT.get(_orientation(image))
    rgb = rgb.transpose(turn) if turn is not None else rgb
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}  # a leftover orientation tag would turn the image a second time
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF says nothing about the pixels: take them as they are stored
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image, name)
    if image.mode in ("F", "LAB"):
        raise UnreadableImage(
            name, f"pixel type {image.mode} is not supported; save it as 8-bit RGB or grey"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale grey of up to 16 bits to 8; PIL's own ``convert`` clips at 255 instead.

    Cameras and scanners store 12 bits in 16 and do not say so. So white is the largest value of 8,
    10, 12, 14 or 16 bits, whichever are the fewest that hold the brightest pixel. A dark image
    gets brighter.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(name, "32-bit grey is not supported; save it as 8-bit or 16-bit grey")
    white = next(2**bits - 1 for bits in _GREY_BITS if values.max() < 2**bits)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _brighten_deep_colour(image: Image.Image) -> Image.Image:
    """Scale colour of 10 to 14 bits in 16 as `_from_16_bit` does; PIL has kept the upper 8 bits."""
    bands = image.getbands()
    if image.mode not in ("RGB", "RGBA", "LA") or "transparency" in image.info:
        return image
    colours = [image.getchannel(band) for band in bands if band != "A"]
    brightest = max(int(np.asarray(colour).max()) for colour in colours)
    white = next(2**bits - 1 for bits in (2, 4, 6, 8) if brightest < 2**bits)
    if brightest == 0 or white == 255:
        return image
    brighter = [min(255, (value * 255 + white // 2) // white) for value in range(256)]
    return image.point([v for band in bands for v in (range(256) if band == "A" else brighter)])
