"""Silence warnings and log records of one thread; other threads are not affected.

Logging and warnings belong to the whole process. Changing a level and putting it back would silence
other threads as well, and two threads that do so would restore each other's values. So levels stay
as they are, and the records of the silent thread are filtered out.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()  # guards the filters, the handlers and `_silent`
_silent: Counter[int] = Counter()  # number of open blocks by thread


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence this thread's warnings, and its records at the root logger and the named loggers."""
    root, *others = logging.getLogger(), *map(logging.getLogger, loggers)
    thread = threading.get_ident()
    discard = _Discard()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    with _lock:
        # `logging.warning` adds a permanent handler to a root logger that has none
        root.addHandler(discard)
        filtered: list[logging.Filterer] = [root, *others]
        filtered += [handler for logger in (root, *others) for handler in logger.handlers]
        for place in filtered:
            place.addFilter(is_of_another_thread)
    try:
        with without_warnings():
            yield
    finally:
        with _lock:
            for place in filtered:
                place.removeFilter(is_of_another_thread)
            root.removeHandler(discard)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence this thread's warnings only; cheap enough for every image."""
    thread = threading.get_ident()
    with _lock:
        _silent[thread] += 1
        if not isinstance(warnings.showwarning, _ShowUnlessSilent):
            warnings.showwarning = _ShowUnlessSilent(warnings.showwarning)
    try:
        yield
    finally:
        with _lock:
            _silent[thread] -= 1
            if not _silent[thread]:
                del _silent[thread]
            if not _silent and isinstance(warnings.showwarning, _ShowUnlessSilent):
                warnings.showwarning = warnings.showwarning.show


class _Discard(logging.Handler):
    """Handler of a root logger that has no other; passes on what would be shown without it."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers, last = logging.getLogger().handlers, logging.lastResort
        is_alone = handlers[:1] == [self] and all(isinstance(h, _Discard) for h in handlers)
        if is_alone and last is not None and record.levelno >= last.level:
            last.handle(record)


class _ShowUnlessSilent:
    """Stands in for `warnings.showwarning` while any thread is silent."""

    def __init__(self, show: Callable[..., Any]):
        self.show = show

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if not _silent[threading.get_ident()]:
            self.show(*args, **kwargs)
