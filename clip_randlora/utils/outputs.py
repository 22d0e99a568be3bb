"""Atomic writes, and folders that one process writes to at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from stat import S_IMODE
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from clip_randlora.errors import UserError

LOCK = ".lock"
_UNFINISHED = ".tmp"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` at the end.

    The file gets the mode that the umask gives, even from libraries that write mode 0600.

    Raises:
        UserError: the file cannot be written, for lack of space for example. The temporary file
            is removed.
    """
    path = Path(path)
    temporary = path.with_name(path.name + _UNFINISHED)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = _mode(temporary)
        yield temporary
        _set_mode(temporary, mode)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: cannot be written ({reason}); make room for it, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file atomically."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def figure_errors_to_notes(what: str, notes: list[str]) -> Iterator[None]:
    """Append one line to ``notes`` if drawing or saving a figure in this block fails.

    matplotlib raises errors of many kinds, even when it is imported with broken settings.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        notes.append(f"{what} could not be drawn ({reason}).")


@contextmanager
def lock_folder(folder: Path, asked: Path | None = None, option: str = "--out") -> Iterator[None]:
    """Create a folder if needed, and lock it until the block or the process ends.

    Args:
        folder: the folder to lock.
        asked: the folder that the user gave, for messages, if it is another one.
        option: with which it was given, for messages.

    Raises:
        UserError: another process or thread holds the lock, or the folder cannot be written to.
    """
    asked = asked or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        lock = _lock(folder / LOCK)
    except Timeout:
        raise UserError(
            f"{option} {asked}: another process is writing there; wait for it, or choose another "
            f"folder"
        ) from None
    except OSError as error:
        raise UserError(
            f"{option} {asked}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # while the lock is held: afterwards the file may be another's
                (folder / LOCK).unlink(missing_ok=True)


@contextmanager
def remove_if_left_empty(folder: Path) -> Iterator[None]:
    """Remove the folder at the end if it is empty, and its parents that did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # not empty
                path.rmdir()


def is_empty_but_lock(folder: Path, first: str) -> bool:
    """Return whether a locked folder is empty.

    The lock, and what a process killed while it wrote its first file ``first`` left, do not count.
    """
    return all(path.name in (LOCK, first + _UNFINISHED) for path in folder.iterdir())


def set_default_modes(folder: Path, like: Path) -> None:
    """Give every file of a folder the mode of ``like``, a file that Python's `open` created."""
    mode = _mode(like)
    for path in folder.rglob("*"):
        if path.is_file():
            _set_mode(path, mode)


def _mode(path: Path) -> int:
    return S_IMODE(path.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    if _mode(path) != mode:
        with suppress(PermissionError):  # a file system without modes
            path.chmod(mode)


def _lock(path: Path) -> AbstractContextManager[object]:
    """Lock a file, also against other threads; do nothing where the file system has no locks.

    Raises:
        Timeout: somebody else holds the lock.
    """
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        return lock.acquire()
    except (Timeout, PermissionError):
        raise
    except (OSError, NotImplementedError):
        return nullcontext()
