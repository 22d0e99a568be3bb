"""Copies to a GPU that do not wait for it, times on a GPU, and the most memory that was used."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on a device, without waiting for a GPU's other work."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Stopwatch:
    """Times laps on a device; on a GPU, which may be far behind Python, with CUDA events."""

    def __init__(self, device: torch.device):
        self._device = device
        self._laps: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Start a lap."""
        self._started = self._now()

    def stop(self) -> None:
        """Stop the lap."""
        self._laps.append((self._started, self._now()))

    def read(self) -> list[float]:
        """Return the seconds of the laps since the last reading; a GPU is waited for."""
        laps, self._laps = self._laps, []
        if self._device.type != "cuda":
            return [stopped - started for started, stopped in laps]
        if laps:
            laps[-1][1].synchronize()
        return [started.elapsed_time(stopped) / 1000 for started, stopped in laps]

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def peak_memory(device: torch.device) -> int:
    """Return the most bytes used so far: on a GPU by torch, otherwise by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
