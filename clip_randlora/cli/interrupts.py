"""Ctrl-C and SIGTERM end a command, wherever Python is when they come.

A signal raises KeyboardInterrupt in whatever runs just then. Python ignores what is raised in a
destructor or in a callback from C, and some code catches everything, an import of something
optional say: the signal would be lost there.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SECONDS_TO_LEAVE = 0.1  # the destructor in which an interrupt was ignored
_HEEDED = (signal.SIGINT, signal.SIGTERM)
_asked = False


@contextmanager
def heeded() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does inside, and send an interrupt again that Python ignored.

    Only in the main thread, which alone gets signals.
    """
    global _asked
    _asked = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in _HEEDED}
    sys.unraisablehook = lambda unraisable: _send_again(unraisable, hook)
    signal.signal(signal.SIGTERM, _terminate)
    if before[signal.SIGINT] is signal.default_int_handler:  # ignored in a script's background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if one was raised before and got lost."""
    if _asked:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does, also in the background of a shell's script, which ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    signal.raise_signal(signal.SIGINT)


def _send_again(unraisable: Any, hook: Callable[[Any], object]) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
        return
    timer = threading.Timer(_SECONDS_TO_LEAVE, _wake_main_thread)
    timer.daemon = True
    timer.start()


def _wake_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:  # Windows
        signal.raise_signal(signal.SIGINT)
