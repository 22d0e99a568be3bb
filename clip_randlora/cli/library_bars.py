"""The progress bars that other libraries draw with tqdm, above all of downloads, shown as our own.

Their bars would mix with ours on a terminal. Where there is none, some libraries draw no bars, and
others write hundreds of lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import std

from clip_randlora.utils.progress import OnProgress

_MEGABYTE = 10**6


@contextmanager
def reported_to(on_progress: OnProgress) -> Iterator[None]:
    """Report the bars that begin inside the block, also those of other threads.

    Of several bars at once, as of files that are downloaded together, the first is reported. Inside
    another such block this does nothing.
    """
    bar_class: Any = std.tqdm
    begin, display = bar_class.__init__, bar_class.display
    if display.__module__ == __name__:  # another such block
        yield
        return
    shown: list[Any] = []  # the bar that is reported

    def begin_unseen(bar: Any, *arguments: Any, file: object = None, **options: Any) -> None:
        begin(bar, *arguments, file=_Nowhere(), **options)

    def report(bar: Any, *_: Any, **__: Any) -> bool:
        if not shown or shown[0].disable:  # closed
            shown[:] = [bar]
        if shown[0] is bar:
            on_progress(*_progress_of(bar))
        return True

    bar_class.__init__, bar_class.display = begin_unseen, report
    try:
        yield
    finally:
        bar_class.__init__, bar_class.display = begin, display


def _progress_of(bar: Any) -> tuple[str, int, int]:
    what, done, total = bar.desc.rstrip(": "), int(bar.n), int(bar.total or 0)
    if not bar.unit.endswith("B"):
        return what or "working", done, total
    return f"downloading {what}, MB".replace(" ,", ","), done // _MEGABYTE, total // _MEGABYTE


class _Nowhere:
    """A file that discards what is written; unlike others, it is not asked whether it is a log."""

    def write(self, text: str) -> None:
        pass
