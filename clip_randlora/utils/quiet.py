"""Silence for what libraries say in one thread; what other threads say is shown as always."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Held while the process's one list of handlers, and of blocks, is changed.
_changing = threading.Lock()
_silent: Counter[int] = Counter()  # blocks by thread


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence this thread's warnings, and what it logs at the root and at the named loggers.

    Logging and warnings belong to the whole process. A level that is set here and put back would
    silence other threads as well, and two threads that do so would put back each other's. So
    nothing of theirs is changed: what this thread says is filtered out, until the block ends.
    """
    targets = [logging.getLogger(), *map(logging.getLogger, loggers)]
    discard, only_others = _Discard(), _OnlyOthers(threading.get_ident())
    with _changing:
        # `logging.warning` gives a root logger without handlers one that stays for good
        targets[0].addHandler(discard)
        filtered = [*targets, *(handler for target in targets for handler in target.handlers)]
        for place in filtered:
            place.addFilter(only_others)
    try:
        with without_warnings():
            yield
    finally:
        with _changing:
            for place in filtered:
                place.removeFilter(only_others)
            targets[0].removeHandler(discard)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence this thread's warnings alone; cheap enough for every image."""
    thread = threading.get_ident()
    with _changing:
        _silent[thread] += 1
        if not isinstance(warnings.showwarning, _ShowOnlyOthers):
            warnings.showwarning = _ShowOnlyOthers(warnings.showwarning)
    try:
        yield
    finally:
        with _changing:
            _silent[thread] -= 1
            if not _silent[thread]:
                del _silent[thread]
            if not _silent and isinstance(warnings.showwarning, _ShowOnlyOthers):
                warnings.showwarning = warnings.showwarning.show


class _OnlyOthers(logging.Filter):
    """Passes what other threads log."""

    def __init__(self, thread: int):
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


class _Discard(logging.Handler):
    """Stands in for the handler that a root logger lacks; passes on what would be shown without."""

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        handlers = logging.getLogger().handlers
        first = next((handler for handler in handlers if isinstance(handler, _Discard)), None)
        is_alone = first is self and all(isinstance(handler, _Discard) for handler in handlers)
        if is_alone and last is not None and record.levelno >= last.level:
            last.handle(record)


class _ShowOnlyOthers:
    """Stands in for `warnings.showwarning` while a thread is silent."""

    def __init__(self, show: Callable[..., Any]):
        self.show = show

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if not _silent[threading.get_ident()]:
            self.show(*args, **kwargs)
