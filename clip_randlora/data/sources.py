"""List the files of a folder or a zip archive, in the same form."""

from __future__ import annotations

import heapq
import os
import re
import stat
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from clip_randlora.data.dataset import Content, Skipped
from clip_randlora.data.images import MAX_FILE_BYTES, UnreadableImage, oversize_reason
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import (
    OnProgress,
    StageOfUnknownLength,
    one_stage,
    report_progress,
)

MAX_FILES = 1_000_000  # of an archive; it may come from a stranger
MAX_FOLDER_FILES = 10_000_000  # and as many folders
MAX_DEPTH = 64  # folders in folders
MAX_ARCHIVE_BYTES = 32 * 2**30  # unpacked
MAX_EXPANSION = 100  # times an archive's size; archives below MAX_UNJUDGED_BYTES may expand more
MAX_UNJUDGED_BYTES = 2**30

_ZIP_ENTRY = b"PK\x01\x02"  # begins each entry of the directory at a zip's end
_ZIP_DIRECTORY_BYTES = 128 * 2**20
_NUMBER = re.compile("[0-9]+")
# left by operating systems, and by `label --into`
_JUNK = {".ds_store", "thumbs.db", "desktop.ini", "__macosx", ".labelled.jsonl"}


class File:
    """One file of a source: its path below the root, and its content.

    There may be a million, so a file is as small as it can be: the parts of its path are not kept.

    Args:
        name: the path below the root, with ``/``, or the parts of that path.
        content: where it is read from.
    """

    __slots__ = ("content", "name")

    def __init__(self, name: str | tuple[str, ...], content: Content):
        self.name = name if isinstance(name, str) else "/".join(name)
        self.content = content

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its path below the root."""
        return tuple(self.name.split("/"))

    @property
    def folder(self) -> str:
        """The path of the folder that it lies in, "" for the root."""
        return self.name.rpartition("/")[0]

    @property
    def own_name(self) -> str:
        """The last part of its path."""
        return self.name.rpartition("/")[2]


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


@dataclass(frozen=True, slots=True)
class DiskFile:
    """An image file on disk, and its size in bytes.

    Attributes:
        location: its path, from ``root`` on.
        size: bytes.
        root: a folder, which many files share to take less memory.
    """

    location: str | Path
    size: int
    root: str = ""

    @property
    def path(self) -> Path:
        """The path."""
        return Path(self.root, self.location)

    def read(self) -> Path:
        """Return the path: PIL reads only as much as it needs."""
        return self.path


class _Archive(zipfile.ZipFile):
    """An archive, of which a forked process opens its own.

    The open file of the process before has one place to read at, which both would move.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._process = os.getpid()

    def of_this_process(self) -> _Archive:
        """Return this archive, or one that the present process has opened."""
        process = os.getpid()
        return self if self._process == process else _reopen(str(self.filename), process)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """An image inside an archive, only ever read into memory; errors call it ``name``."""

    archive: _Archive
    info: zipfile.ZipInfo
    name: str

    @property
    def size(self) -> int:
        """Uncompressed bytes."""
        return self.info.file_size

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the archive, once for all members."""
        return _reopen_member, (self.archive.filename, self.info, self.name)

    def read(self) -> bytes:
        """Return the uncompressed bytes; raises ``UnreadableImage``."""
        try:
            with self.archive.of_this_process().open(self.info) as member:
                return member.read(MAX_FILE_BYTES)
        except Exception as error:  # broken data can raise nearly anything inside zipfile
            raise UnreadableImage(
                self.name, f"cannot be unpacked ({error or type(error).__name__}); zip it again"
            ) from error


def _reopen_member(path: str, info: zipfile.ZipInfo, name: str) -> ZipMember:
    return ZipMember(_reopen(path, os.getpid()), info, name)


@lru_cache(maxsize=8)
def _reopen(path: str, process: int) -> _Archive:
    """Open an archive, once in a process."""
    return _Archive(path)


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


def natural_key(text: str) -> str:
    """Return a sort key that puts ``img2`` before ``img10`` and ignores case, ties by spelling.

    Numbers compare by their length without leading zeros, and then by their digits. That is the
    order of ``int()``, for numbers of any length. A NUL, which no name has, begins each number and
    the spelling at the end: what ends there comes before what goes on.
    """
    return f"{_NUMBER.sub(_number_key, text.casefold())}\0\0{text}"


def _number_key(number: re.Match[str]) -> str:
    digits = number[0].lstrip("0")
    return f"\0{chr(min(1 + len(digits), sys.maxunicode))}{digits}"


def list_folder(root: Path, on_progress: OnProgress | None = None) -> Listing:
    """List the files below ``root``. Links are followed, hidden files are left out.

    A file takes about 250 bytes of memory until it is sorted into its class.

    Args:
        root: an existing folder.
        on_progress: told how many files are found, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the folder may not be read, or holds more than ``MAX_FOLDER_FILES`` files or
            folders.
    """
    return _FolderLister(root, on_progress).list()


class _FolderLister:
    """Lists one folder, and those in it."""

    def __init__(self, root: Path, on_progress: OnProgress | None):
        self.root, self.path, self.on_progress = root, str(root), on_progress
        self.listing = Listing()
        self.groups: list[list[File]] = []  # the files of each folder, naturally sorted
        self.found = StageOfUnknownLength("listing files", on_progress)

    def list(self) -> Listing:
        self._enter(self.path, (), (os.path.realpath(self.root),))
        self.found.end()
        # whole names decide, of files in c1 and in c01 for example; one folder is sorted at a time,
        # because the keys of all files would take more memory than the files
        files = heapq.merge(*self.groups, key=lambda file: natural_key(file.name))
        self.listing.files = list(
            report_progress(files, "sorting files", self.found.done, self.on_progress)
        )
        return self.listing

    def _enter(self, folder: str, parts: tuple[str, ...], above: tuple[str, ...]) -> None:
        """List a folder and those in it; ``above`` are the real paths of the folders around it."""
        listing = self.listing
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            if not parts:
                raise UserError(
                    f"{self.root}: cannot be read ({error.strerror}); check it"
                ) from None
            listing.skip("/".join(parts), str(error.strerror))
            return
        if len(parts) >= MAX_DEPTH:
            listing.skip("/".join(parts), f"more than {MAX_DEPTH} folders deep")
            return
        files: list[File] = []
        self.groups.append(files)  # before those of the folders in it, as in the walk
        prefix = "".join(f"{part}/" for part in parts)
        is_printable = folder == os.path.join(self.path, *parts)
        is_sorted = True
        for entry in entries:
            own_name = printable(entry.name)
            is_sorted = is_sorted and own_name == entry.name
            name = prefix + own_name
            if entry.name.casefold() in _JUNK:
                continue
            if entry.name.startswith("."):
                listing.skip(name, "hidden")
            elif _is(entry.is_dir):
                real = os.path.realpath(entry.path)
                if real in above:
                    listing.skip(name, "a link to a folder it lies in")
                    continue
                listing.folders.add((*parts, own_name))
                self._refuse_more_than(MAX_FOLDER_FILES, "folders", len(listing.folders))
                self._enter(entry.path, (*parts, own_name), (*above, real))
            elif _is(entry.is_file):
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:
                    listing.skip(name, "removed while the folder was read")
                    continue
                if size > MAX_FILE_BYTES:
                    listing.skip(name, oversize_reason(size))
                    continue
                if is_printable and own_name == entry.name:
                    content = DiskFile(name, size, self.path)
                else:
                    content = DiskFile(entry.path, size)
                files.append(File(name, content))
                self.found.add()
                self._refuse_more_than(MAX_FOLDER_FILES, "files", self.found.done)
            else:
                is_link = entry.is_symlink()
                listing.skip(name, "a link to nothing" if is_link else "not a regular file")
        if not is_sorted:  # a name that was escaped may belong elsewhere
            files.sort(key=lambda file: natural_key(file.name))

    def _refuse_more_than(self, most: int, kind: str, count: int) -> None:
        if count > most:
            raise UserError(f"{self.root}: more than {most} {kind}; give a smaller folder")


def _is(kind: Callable[[], bool]) -> bool:
    """Ask a directory entry for its kind; a link to itself has none and raises."""
    try:
        return kind()
    except OSError:
        return False


def list_zip(path: Path, on_progress: OnProgress | None = None) -> Listing:
    """List the members of a zip archive. Nothing is unpacked to disk.

    Args:
        path: of the archive.
        on_progress: told how many files are found, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: not a zip archive, broken, encrypted, or larger than the bounds.
    """
    try:
        _check_count(path)
        with one_stage("opening the archive", on_progress):
            archive = _Archive(path)
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
    files: dict[str, File] = {}
    for info in report_progress(members, "listing files", len(members), on_progress):
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
            if name in files:
                listing.skip(name, "twice in the archive, last one used")
            files[name] = File(name, ZipMember(archive, info, name))
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
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
