"""Errors that the user can mend."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one line that names the file or option and says what to do about it.

    The command line prints it as ``error: ...`` and exits with status 2, without a traceback.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a file's name may hold line breaks


class OutOfMemory(UserError):
    """Memory ran out; smaller settings or another machine may help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, the system or torch means that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    phrases = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "bad_alloc",
        "can't start new thread",
    )
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        # the last is oneDNN's message when it cannot allocate memory for its code
        and (any(phrase in text for phrase in phrases) or text == "could not create a primitive")
    )


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown setting; it suggests the nearest known name."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    if near:
        return f"no such setting; did you mean {near[0]}?"
    return "no such setting" + (f"; there are {', '.join(known)}" if known else "")


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Name the extra to install if an import inside the block finds no such library.

    Args:
        what: the part that needs the library, for the message.
        extra: the optional dependencies of this package that bring it.

    Raises:
        UserError: a library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("clip_randlora"):
            raise
        raise UserError(
            f"{what} needs {error.name}: pip install 'clip-randlora[{extra}]'"
        ) from error
