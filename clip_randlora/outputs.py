"""Files that are written whole or not at all, and folders that one process writes to at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from clip_randlora.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

LOCK = ".lock"
_UNFINISHED = ".tmp"


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and rename it into place.

    Raises:
        UserError: it could not be written, for want of space say; nothing is left of it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + _UNFINISHED)
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: cannot be written ({reason}); make room for it, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, asked: Path | None = None) -> Iterator[None]:
    """Hold a folder, made if it is not there, until the block or the process ends.

    Messages name ``asked``, the folder that the user gave, where it is another.

    Raises:
        UserError: another process, or another thread of this one, holds it; or it cannot be
            written to.
    """
    asked = asked or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"--out {asked}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
    with file:
        if not _lock(file.fileno(), folder / LOCK):
            raise UserError(
                f"--out {asked}: another process is writing there; wait for it, or choose another "
                f"folder"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)


@contextmanager
def made_for(folder: Path) -> Iterator[None]:
    """Remove the folder at the end if it is empty, and with it the parents that were missing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # something is in it
                path.rmdir()


def is_vacant(folder: Path, first: str) -> bool:
    """Tell whether a held folder is empty, but for what a process leaves that was killed early.

    ``first`` is the name of the first file that is written there.
    """
    return all(path.name in (LOCK, first + _UNFINISHED) for path in folder.iterdir())


def _lock(descriptor: int, path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    try:  # whoever held it a moment ago may have removed the file
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except OSError:
        return False
