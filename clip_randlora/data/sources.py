"""List the files of a folder or a zip archive, in the same form."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from clip_randlora.data.dataset import Content, Skipped
from clip_randlora.data.images import MAX_FILE_BYTES, UnreadableImage, oversize_reason
from clip_randlora.errors import UserError

MAX_FILES = 1_000_000
MAX_DEPTH = 64  # folders in folders
MAX_ARCHIVE_BYTES = 32 * 2**30  # unpacked
MAX_EXPANSION = 100  # times an archive's size; archives below MAX_UNJUDGED_BYTES may expand more
MAX_UNJUDGED_BYTES = 2**30

_ZIP_ENTRY = b"PK\x01\x02"  # begins each entry of the directory at a zip's end
_ZIP_DIRECTORY_BYTES = 128 * 2**20
_JUNK = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}  # left by operating systems


@dataclass(frozen=True)
class File:
    """One file of a source: the parts of its path below the root, and its content."""

    parts: tuple[str, ...]
    content: Content

    @property
    def name(self) -> str:
        """The path below the root, with ``/``."""
        return "/".join(self.parts)


@dataclass
class Listing:
    """Everything in a source, naturally sorted by path; ``folders`` include the empty ones."""

    files: list[File] = field(default_factory=list)
    folders: set[tuple[str, ...]] = field(default_factory=set)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        """Record that a file or folder is left out."""
        self.skipped.append(Skipped(name, reason))


@dataclass
class LabelledFiles:
    """One split of a published data set: files, their labels, and the labels' names if known."""

    files: list[File]
    labels: list[int]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DiskFile:
    """An image file on disk, and its size in bytes."""

    path: Path
    size: int

    def read(self) -> Path:
        """Return the path: PIL reads only as much as it needs."""
        return self.path


@dataclass(frozen=True)
class ZipMember:
    """An image inside an archive, only ever read into memory; errors call it ``name``."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str

    @property
    def size(self) -> int:
        """Uncompressed bytes."""
        return self.info.file_size

    def read(self) -> bytes:
        """Return the uncompressed bytes; raises ``UnreadableImage``."""
        try:
            with self.archive.open(self.info) as member:
                return member.read(MAX_FILE_BYTES)
        except Exception as error:  # broken data can raise nearly anything inside zipfile
            raise UnreadableImage(
                self.name, f"cannot be unpacked ({error or type(error).__name__}); zip it again"
            ) from error


@dataclass(frozen=True)
class MemoryImage:
    """An image that is already decoded."""

    image: Image.Image

    @property
    def size(self) -> int:
        """Pixels."""
        return self.image.width * self.image.height

    def read(self) -> Image.Image:
        """Return the image."""
        return self.image


def natural_key(text: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return a sort key that puts ``img2`` before ``img10`` and ignores case, ties by spelling."""
    pieces: list[str | tuple[int, str]] = list(re.split(r"([0-9]+)", text.casefold()))
    # numbers by length, then digits: the order of int(), for numbers of any length
    digits = [str(piece).lstrip("0") for piece in pieces[1::2]]
    pieces[1::2] = [(len(number), number) for number in digits]
    return pieces, text


def list_folder(root: Path) -> Listing:
    """List the files below ``root``. Links are followed, hidden files are left out.

    Raises:
        UserError: the folder may not be read, or holds more than ``MAX_FILES`` files.
    """
    listing = Listing()
    _walk(root, root, (), (os.path.realpath(root),), listing)
    listing.files.sort(key=lambda file: natural_key(file.name))
    return listing


def _walk(
    root: Path, folder: Path, parts: tuple[str, ...], above: tuple[str, ...], listing: Listing
) -> None:
    """List one folder and those in it; ``above`` are the real paths of the folders around it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        if not parts:
            raise UserError(f"{root}: cannot be read ({error.strerror}); check it") from None
        listing.skip("/".join(parts), str(error.strerror))
        return
    if len(parts) >= MAX_DEPTH:
        listing.skip("/".join(parts), f"more than {MAX_DEPTH} folders deep")
        return
    for entry in entries:
        here = (*parts, printable(entry.name))
        name = "/".join(here)
        if entry.name.casefold() in _JUNK:
            continue
        if entry.name.startswith("."):
            listing.skip(name, "hidden")
        elif _is(entry.is_dir):
            real = os.path.realpath(entry.path)
            if real in above:
                listing.skip(name, "a link to a folder it lies in")
                continue
            listing.folders.add(here)
            _walk(root, Path(entry.path), here, (*above, real), listing)
        elif _is(entry.is_file):
            try:
                size = entry.stat().st_size
            except FileNotFoundError:
                listing.skip(name, "removed while the folder was read")
                continue
            if size > MAX_FILE_BYTES:
                listing.skip(name, oversize_reason(size))
            else:
                listing.files.append(File(here, DiskFile(Path(entry.path), size)))
        else:
            is_link = entry.is_symlink()
            listing.skip(name, "a link to nothing" if is_link else "not a regular file")
        for kind, count in ("files", len(listing.files)), ("folders", len(listing.folders)):
            if count > MAX_FILES:
                raise UserError(f"{root}: more than {MAX_FILES} {kind}; give a smaller folder")


def _is(kind: Callable[[], bool]) -> bool:
    """Ask a directory entry for its kind; a link to itself has none and raises."""
    try:
        return kind()
    except OSError:
        return False


def list_zip(path: Path) -> Listing:
    """List the members of a zip archive. Nothing is unpacked to disk.

    Raises:
        UserError: not a zip archive, broken, encrypted, or larger than the bounds.
    """
    try:
        _check_count(path)
        archive = zipfile.ZipFile(path)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    except Exception:  # a broken directory can raise nearly anything inside zipfile
        raise UserError(
            f"{path}: not a zip archive that can be read; give a .zip file or the unpacked folder"
        ) from None
    members = archive.infolist()
    _check_bounds(path, members)
    listing = Listing()
    files: dict[tuple[str, ...], File] = {}
    for info in members:
        parts = _member_parts(info)
        if parts is None:
            listing.skip(printable(info.filename), "unsafe path")
            continue
        name = "/".join(parts)
        hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
        if len(parts) > MAX_DEPTH:
            listing.skip("/".join(parts[:3]) + "/...", f"more than {MAX_DEPTH} folders deep")
        elif stat.S_ISLNK(info.external_attr >> 16):
            listing.skip(name, "a link, not followed in archives")
        elif any(part.casefold() in _JUNK for part in parts):
            pass
        elif hidden is not None:
            entry = Skipped("/".join(parts[: hidden + 1]), "hidden")
            if entry not in listing.skipped[-1:]:  # one entry for a whole hidden folder
                listing.skipped.append(entry)
        else:
            folder = parts if info.is_dir() else parts[:-1]
            listing.folders.update(folder[:depth] for depth in range(1, len(folder) + 1))
            if info.is_dir():
                continue
            if info.file_size > MAX_FILE_BYTES:
                listing.skip(name, oversize_reason(info.file_size))
                continue
            if parts in files:
                listing.skip(name, "twice in the archive, last one used")
            files[parts] = File(parts, ZipMember(archive, info, name))
    listing.files = sorted(files.values(), key=lambda file: natural_key(file.name))
    return listing


def _check_count(path: Path) -> None:
    """Count the members before zipfile makes an object for each; may count too many, not too few.

    Raises:
        UserError: there are more than ``MAX_FILES``.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _ZIP_DIRECTORY_BYTES))
        count = file.read().count(_ZIP_ENTRY)
    if count > MAX_FILES:
        raise UserError(f"{path}: {count} members, at most {MAX_FILES}; split the archive")


def _check_bounds(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in members)
    unpacked = f"{path}: {total / 2**30:.1f} GiB when unpacked"
    if total > MAX_ARCHIVE_BYTES:
        raise UserError(
            f"{unpacked}, at most {MAX_ARCHIVE_BYTES / 2**30:.3g}; split the archive or give the "
            f"unpacked folder"
        )
    if total > max(MAX_UNJUDGED_BYTES, MAX_EXPANSION * os.path.getsize(path)):
        raise UserError(
            f"{unpacked}, more than {MAX_EXPANSION} times its size; images do not compress that "
            f"well, so give the unpacked folder"
        )
    if any(info.flag_bits & 0x1 for info in members):
        raise UserError(f"{path}: the archive is encrypted; make one without a password")


def _member_parts(info: zipfile.ZipInfo) -> tuple[str, ...] | None:
    """Return the member's path as parts, or None if it would leave the archive's root."""
    name = info.filename
    if not info.flag_bits & 0x800:  # macOS writes UTF-8 without saying so
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return safe_parts(name)


def safe_parts(name: str) -> tuple[str, ...] | None:
    """Return a relative path as parts, or None if it would leave the folder that it starts from."""
    name = name.replace("\\", "/")  # some Windows tools write backslashes
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return None
    return tuple(printable(part) for part in name.split("/") if part not in ("", "."))


def printable(text: str) -> str:
    """Compose accents and escape what is not printable: names go to terminals and UTF-8 files."""
    text = unicodedata.normalize("NFC", text)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
