"""Settings of the whole process that several threads change for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedSetting:
    """A setting of the process: the first user changes it, the last one restores it.

    If every thread saved and restored it alone, a second thread would save the changed value and
    restore that for good.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]):
        """Take the function that changes the setting; it returns the function that restores it."""
        self._change = change
        self._lock = threading.Lock()  # held during a change
        self._users = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Keep the setting changed inside the block."""
        with self._lock:
            if not self._users:
                self._restore = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._restore()
