"""Where files come from: a folder, a zip archive, or memory, all listed in the same form."""

from __future__ import annotations

import hashlib
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
MAX_ARCHIVE_BYTES = 32 * 2**30
MAX_EXPANSION = 100  # times an archive's size, if that is more than MAX_UNJUDGED_BYTES
MAX_UNJUDGED_BYTES = 2**30
MAX_DEPTH = 64  # folders in folders
_ENTRY, _DIRECTORY_BYTES = b"PK\x01\x02", 128 * 2**20  # zip's table of contents, at its end

_JUNK = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}  # left by operating systems


@dataclass(frozen=True)
class File:
    """One file of a source: its path as parts below the root, and its content."""

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


ClassFiles = dict[str, list[File]]


@dataclass
class Layout:
    """The files of a source by split and class; ``test`` is None where it has no test split.

    ``is_described`` says that the classes are in the order that a description gives them, and
    ``is_ready_made`` that the images are those of a published data set, whose split is taken as it
    is: they are not looked through for broken and double ones before they are used.
    """

    train: ClassFiles
    test: ClassFiles | None = None
    roots: list[tuple[str, ...]] = field(default_factory=list)  # what class folders lie in
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    is_described: bool = False
    is_ready_made: bool = False
    templates: tuple[str, ...] = ()
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class LabelledFiles:
    """One split of a data set: files with their labels, and the labels' names if it has any."""

    files: list[File]
    labels: list[int]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DiskFile:
    """An image file on disk."""

    path: Path
    size: int

    def read(self) -> Path:
        """The path itself: PIL reads only as much as it needs."""
        return self.path

    def digest(self) -> str:
        """SHA-256 of the file."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class ZipMember:
    """An image inside an archive, only ever read into memory."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str  # for errors

    @property
    def size(self) -> int:
        """Uncompressed bytes."""
        return self.info.file_size

    def read(self) -> bytes:
        """The uncompressed bytes; raises ``UnreadableImage``."""
        try:
            with self.archive.open(self.info) as member:
                return member.read(MAX_FILE_BYTES)
        except Exception as error:  # broken data can raise nearly anything inside zipfile
            raise UnreadableImage(
                self.name, f"cannot be unpacked ({error or type(error).__name__}); zip it again"
            ) from error

    def digest(self) -> str:
        """SHA-256 of the uncompressed bytes."""
        return hashlib.sha256(self.read()).hexdigest()


@dataclass(frozen=True)
class MemoryImage:
    """An image that is already decoded."""

    image: Image.Image

    @property
    def size(self) -> int:
        """Pixels."""
        return self.image.width * self.image.height

    def read(self) -> Image.Image:
        """The image."""
        return self.image

    def digest(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()


def natural_key(text: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sort key that puts ``img2`` before ``img10`` and ignores case, ties by spelling."""
    pieces = re.split(r"([0-9]+)", text.casefold())
    # numbers by their length, then their digits: as int() would, and however long they are
    pieces[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in pieces[1::2]]
    return pieces, text


def list_folder(root: Path) -> Listing:
    """List the files below ``root``; links are followed, hidden files are not listed.

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
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        if not parts:
            raise UserError(f"{root}: cannot be read ({error.strerror}); check it") from None
        listing.skipped.append(Skipped(_printable("/".join(parts)), str(error.strerror)))
        return
    if len(parts) >= MAX_DEPTH:
        listing.skipped.append(Skipped("/".join(parts), f"more than {MAX_DEPTH} folders deep"))
        return
    for entry in entries:
        here = (*parts, _printable(entry.name))
        name = "/".join(here)
        if entry.name.casefold() in _JUNK:
            continue
        if entry.name.startswith("."):
            listing.skipped.append(Skipped(name, "hidden"))
        elif _is(entry.is_dir):
            real = os.path.realpath(entry.path)
            if real in above:
                listing.skipped.append(Skipped(name, "a link to a folder it lies in"))
                continue
            listing.folders.add(here)
            if len(listing.folders) > MAX_FILES:
                raise UserError(f"{root}: more than {MAX_FILES} folders; give a smaller folder")
            _walk(root, Path(entry.path), here, (*above, real), listing)
        elif _is(entry.is_file):
            size = entry.stat().st_size
            if size > MAX_FILE_BYTES:
                listing.skipped.append(Skipped(name, oversize_reason(size)))
                continue
            listing.files.append(File(here, DiskFile(Path(entry.path), size)))
            if len(listing.files) > MAX_FILES:
                raise UserError(f"{root}: more than {MAX_FILES} files; give a smaller folder")
        else:
            reason = "a link to nothing" if entry.is_symlink() else "not a regular file"
            listing.skipped.append(Skipped(name, reason))


def _is(kind: Callable[[], bool]) -> bool:
    """Ask an entry for its kind; a link to itself has none."""
    try:
        return kind()
    except OSError:
        return False


def list_zip(path: Path) -> Listing:
    """List the members of a zip archive; nothing is unpacked to disk.

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
        parts = _safe_parts(info)
        if parts is None:
            listing.skipped.append(Skipped(_printable(info.filename), "unsafe path"))
            continue
        if len(parts) > MAX_DEPTH:
            reason = f"more than {MAX_DEPTH} folders deep"
            listing.skipped.append(Skipped("/".join(parts[:3]) + "/...", reason))
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            listing.skipped.append(Skipped("/".join(parts), "a link, not followed in archives"))
            continue
        hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
        if any(part.casefold() in _JUNK for part in parts):
            continue
        if hidden is not None:
            entry = Skipped("/".join(parts[: hidden + 1]), "hidden")
            if entry not in listing.skipped[-1:]:  # one entry for a whole hidden folder
                listing.skipped.append(entry)
            continue
        folder = parts if info.is_dir() else parts[:-1]
        listing.folders.update(folder[:depth] for depth in range(1, len(folder) + 1))
        if info.is_dir():
            continue
        if info.file_size > MAX_FILE_BYTES:
            listing.skipped.append(Skipped("/".join(parts), oversize_reason(info.file_size)))
            continue
        if parts in files:
            listing.skipped.append(Skipped("/".join(parts), "twice in the archive, last one used"))
        files[parts] = File(parts, ZipMember(archive, info, "/".join(parts)))
    listing.files = sorted(files.values(), key=lambda file: natural_key(file.name))
    return listing


def _check_count(path: Path) -> None:
    """Count the members before zipfile makes an object for each; never too few."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _DIRECTORY_BYTES))
        count = file.read().count(_ENTRY)
    if count > MAX_FILES:
        raise UserError(f"{path}: {count} members, at most {MAX_FILES}; split the archive")


def _check_bounds(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in members)
    if total > MAX_ARCHIVE_BYTES:
        raise UserError(
            f"{path}: {total / 2**30:.1f} GiB when unpacked, at most "
            f"{MAX_ARCHIVE_BYTES / 2**30:.3g}; split the archive or give the unpacked folder"
        )
    if total > max(MAX_UNJUDGED_BYTES, MAX_EXPANSION * os.path.getsize(path)):
        raise UserError(
            f"{path}: {total / 2**30:.1f} GiB when unpacked, more than {MAX_EXPANSION} times its "
            f"size, as no images are; give the unpacked folder"
        )
    if any(info.flag_bits & 0x1 for info in members):
        raise UserError(f"{path}: the archive is encrypted; make one without a password")


def _safe_parts(info: zipfile.ZipInfo) -> tuple[str, ...] | None:
    """The member's path as parts, or None where it would leave the archive's root."""
    name = info.filename
    if not info.flag_bits & 0x800:  # macOS writes UTF-8 without saying so
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    name = name.replace("\\", "/")  # some Windows tools write backslashes
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return None
    return tuple(_printable(part) for part in name.split("/") if part not in ("", "."))


def _printable(text: str) -> str:
    """Names go to terminals and UTF-8 files: escape what is not printable, compose accents."""
    text = unicodedata.normalize("NFC", text)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
