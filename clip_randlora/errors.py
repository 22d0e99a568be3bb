"""The one error that is the user's to mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one line that names the file or option and says what to do about it.

    The command line prints it as ``error: ...`` and exits with status 2, without a traceback.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what it names may hold line breaks


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Say that there is no such setting, and name the one that was probably meant."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    if near:
        return f"no such setting; did you mean {near[0]}?"
    return "no such setting" + (f"; there are {', '.join(known)}" if known else "")
