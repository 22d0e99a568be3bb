"""Ctrl-C and SIGTERM end a command at any point.

A signal raises KeyboardInterrupt in the code that runs at that moment. Python ignores exceptions in
destructors and in callbacks from C, and some code catches every exception, such as imports of
optional libraries. Without this module the signal would be lost there.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SECONDS_TO_LEAVE = 0.1  # until the destructor that ignored the interrupt has returned
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_interrupted = False


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C inside the block, and repeat an interrupt that Python ignored.

    Does nothing outside the main thread, because Python handles signals only there.
    """
    global _interrupted
    _interrupted = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    sys.unraisablehook = lambda unraisable: _send_again(unraisable, hook)
    signal.signal(signal.SIGTERM, _terminate)
    # a shell's background job ignores Ctrl-C, and should go on doing so
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if an earlier one was caught by other code."""
    if _interrupted:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    """Interrupt as Ctrl-C does, also in a shell's background job, which ignores Ctrl-C."""
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
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        signal.raise_signal(signal.SIGINT)
