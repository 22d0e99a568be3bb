"""The one error that is the user's to mend."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one line that names the file or option and says what to do about it.

    The command line prints it as ``error: ...`` and exits with status 2, without a traceback.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what it names may hold line breaks


class OutOfMemory(UserError):
    """Memory did not suffice: smaller settings may, or another machine."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is Python's or torch's for memory that cannot be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    says = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "bad_alloc",
        "can't start new thread",
    )
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        # the second is oneDNN's, of memory for its code; of what it does not know it says more
        and (any(words in text for words in says) or text == "could not create a primitive")
    )


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Say that there is no such setting, and name the one that was probably meant."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    if near:
        return f"no such setting; did you mean {near[0]}?"
    return "no such setting" + (f"; there are {', '.join(known)}" if known else "")
