"""A parallel map over threads that keeps the order and never runs far ahead of its consumer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def thread_count() -> int:
    """Return how many CPU cores this process may use, at most 16."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(16, len(usable))


def parallel_map(function: Callable[[T], R], inputs: Iterable[T], ahead: int = 0) -> Iterator[R]:
    """Yield ``function(x)`` for each ``x`` of ``inputs``, in order, computed by threads.

    At most ``ahead`` results are computed ahead, or four per thread if that is more, so memory is
    bounded even if the consumer is slow. An exception of ``function`` is raised in place of its
    result.
    """
    threads = thread_count()
    ahead = max(ahead, 4 * threads)
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for value in inputs:
            waiting.append(pool.submit(function, value))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
