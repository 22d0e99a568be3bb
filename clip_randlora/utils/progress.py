"""Progress of long work, reported through a callback: the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_ITEMS_BETWEEN_REPORTS = 1000

OnProgress = Callable[[str, int, int], None]
"""``on_progress(stage, done, total)``: ``done`` of the ``total`` items of a stage are done.

A total of 0 means that it is not known yet. The first call of a stage has ``done == 0``, the last
one ``done == total``. One stage follows another; each has its own name.
"""


def report_progress(
    results: Iterable[T],
    stage: str,
    total: int,
    on_progress: OnProgress | None,
    count: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield each result, and report how many of ``total`` items are done.

    A result stands for ``count(result)`` items.
    """
    if on_progress is None or not total:
        yield from results
        return
    done = 0
    on_progress(stage, done, total)
    for result in results:
        yield result
        done += count(result)
        on_progress(stage, done, total)


def report_streamed(
    results: Iterable[T],
    stage: str,
    total: int,
    on_progress: OnProgress | None,
    count: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Report as `report_progress` does, also if ``total`` is 0: if the end is not known yet."""
    if on_progress is None or total:
        yield from report_progress(results, stage, total, on_progress, count)
        return
    done = 0
    on_progress(stage, done, 0)
    for result in results:
        yield result
        done += count(result)
        on_progress(stage, done, 0)
    on_progress(stage, done, done)


class StageOfUnknownLength:
    """Reports how many items of a stage are done, if their number is only known at the end.

    Attributes:
        done: the items so far.
    """

    def __init__(self, stage: str, on_progress: OnProgress | None):
        self.stage, self.done, self._on_progress = stage, 0, on_progress
        if on_progress is not None:
            on_progress(stage, 0, 0)

    def add(self) -> None:
        """Count an item."""
        self.done += 1
        if self.done % _ITEMS_BETWEEN_REPORTS == 0 and self._on_progress is not None:
            self._on_progress(self.stage, self.done, 0)

    def end(self) -> None:
        """Report that the items are all that there are."""
        if self._on_progress is not None:
            self._on_progress(self.stage, self.done, self.done)


@contextmanager
def one_stage(stage: str, on_progress: OnProgress | None) -> Iterator[None]:
    """Report the beginning and the end of work that cannot say how far it is."""
    if on_progress is not None:
        on_progress(stage, 0, 0)
    yield
    if on_progress is not None:
        on_progress(stage, 1, 1)


def format_seconds(seconds: float) -> str:
    """Return a duration as 8 s, 2 min 5 s or 3 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
