"""How far a long piece of work is, told to whoever shows it: the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

OnProgress = Callable[[str, int, int], None]
"""``on_progress(stage, done, total)``: what is being done, and how many of how many are done.

A stage begins with a call in which ``done`` is less than ``total``, and ends with one in which they
are equal. Stages follow each other, and are told apart by their names.
"""


def report_progress(
    results: Iterable[T],
    stage: str,
    total: int,
    on_progress: OnProgress | None,
    weigh: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield each result, and tell how many of ``total`` are done with; a result is ``weigh``."""
    if on_progress is None or not total:
        yield from results
        return
    done = 0
    on_progress(stage, done, total)
    for result in results:
        yield result
        done += weigh(result)
        on_progress(stage, done, total)


def format_seconds(seconds: float) -> str:
    """Return a duration as 8 s, 2 min 5 s or 3 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
