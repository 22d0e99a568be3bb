"""Ctrl-C during a training."""

from __future__ import annotations

import signal
import threading


class DeferredCtrlC:
    """Defers Ctrl-C until `check`, so that no step is left half done; a second one is not deferred.

    Signals reach the main thread only. In other threads, as the app's, this does nothing.
    """

    def __enter__(self) -> DeferredCtrlC:
        self.pressed = False
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()  # pressed after the last step

    def _press(self, *_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt
