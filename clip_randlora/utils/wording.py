"""Words that several messages share."""

from __future__ import annotations

from collections.abc import Iterable


def join_names(names: Iterable[str], most: int = 3) -> str:
    """Join names for a message: "a, b and c", or "a, b, c and 2 more" beyond the first ``most``."""
    names = list(names)
    *first, last = names[:most] or [""]
    if len(names) > most:
        last = f"{len(names) - most} more"
        first = names[:most]
    return f"{', '.join(first)} and {last}" if first else last


def shots_in_words(shots: int | str | None) -> str:
    """Say how many training images a class has: "4 shots", "50% of the images", "all images"."""
    if isinstance(shots, int):
        return f"{shots} shot{'s' * (shots != 1)}"
    return f"{shots} of the images" if shots and shots != "all" else "all images"
