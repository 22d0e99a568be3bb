"""Files that are written whole or not at all, and folders that one process writes to at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from stat import S_IMODE

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from clip_randlora.errors import UserError

LOCK = ".lock"
_UNFINISHED = ".tmp"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and rename it into place.

    The file gets the mode that the umask says, also from libraries that write files of mode 0600.

    Raises:
        UserError: it could not be written, for want of space say; nothing is left of it.
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


@contextmanager
def figure_errors_to_notes(what: str, notes: list[str]) -> Iterator[None]:
    """Draw and save in this block; a failure is one line in ``notes``, and no error.

    matplotlib raises errors of many kinds, also at its import if its settings are broken.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        notes.append(f"{what} could not be drawn ({reason}).")


@contextmanager
def lock_folder(folder: Path, asked: Path | None = None) -> Iterator[None]:
    """Hold a folder, made if it is not there, until the block or the process ends.

    Messages name ``asked``, the folder that the user gave, where it is another.

    Raises:
        UserError: another process, or another thread of this one, holds it; or it cannot be
            written to.
    """
    asked = asked or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        lock = _lock(folder / LOCK)
    except Timeout:
        raise UserError(
            f"--out {asked}: another process is writing there; wait for it, or choose another "
            f"folder"
        ) from None
    except OSError as error:
        raise UserError(
            f"--out {asked}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # while it is still held, so that it is not another's
                (folder / LOCK).unlink(missing_ok=True)


@contextmanager
def remove_if_left_empty(folder: Path) -> Iterator[None]:
    """Remove the folder at the end if it is empty, and with it the parents that were missing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # something is in it
                path.rmdir()


def is_empty_but_lock(folder: Path, first: str) -> bool:
    """Tell whether a held folder is empty, but for what a process leaves that was killed early.

    ``first`` is the name of the first file that is written there.
    """
    return all(path.name in (LOCK, first + _UNFINISHED) for path in folder.iterdir())


def set_default_modes(folder: Path, like: Path) -> None:
    """Give every file of a folder the mode of ``like``, a file written by Python's own ``open``."""
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
    """Lock a file, against other threads too; nothing is locked where the file system cannot.

    Raises:
        Timeout: it is held.
    """
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        return lock.acquire()
    except (Timeout, PermissionError):
        raise
    except (OSError, NotImplementedError):
        return nullcontext()
