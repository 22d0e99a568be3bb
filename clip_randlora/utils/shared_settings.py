"""Settings of the whole process, made for a while by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedSetting:
    """A setting of the process that is made while anybody needs it, and put back after the last.

    Saved and put back by each thread alone, it would stay for good: a second thread would find it
    made, and put that back.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]):
        """Name what makes the setting; it returns what puts it back."""
        self._make = make
        self._changing = threading.Lock()  # held while it is made or put back
        self._users = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Need the setting inside the block."""
        with self._changing:
            if not self._users:
                self._put_back = self._make()
            self._users += 1
        try:
            yield
        finally:
            with self._changing:
                self._users -= 1
                if not self._users:
                    self._put_back()
