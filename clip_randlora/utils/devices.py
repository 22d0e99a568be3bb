"""Work on a GPU without waiting for it: copies, times, and steps recorded as CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_USUAL_CALLS = 3  # libraries choose their kernels in the first ones, which cannot be recorded


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; a GPU's other work is not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Stopwatch:
    """Times laps on a device, which may be far behind Python: a GPU's own events take its time."""

    def __init__(self, device: torch.device):
        self._device = device
        self._laps: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin a lap."""
        self._began = self._now()

    def stop(self) -> None:
        """End it."""
        self._laps.append((self._began, self._now()))

    def read(self) -> list[float]:
        """Return the seconds of the laps since the last reading, waiting for them to be done."""
        laps, self._laps = self._laps, []
        if self._device.type != "cuda":
            return [stopped - began for began, stopped in laps]
        if laps:
            laps[-1][1].synchronize()
        return [began.elapsed_time(stopped) / 1000 for began, stopped in laps]

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class RecordedStep:
    """Calls a function of tensors, and from the fourth call on replays what it did on the GPU.

    A training step of a small CLIP launches thousands of kernels that take a GPU microseconds
    each, and Python longer than that. As a CUDA graph they are launched together.

    The function must do the same with every input: read no number back from the GPU, copy none to
    it, and put what it keeps, an optimiser's state say, where it was.

    Attributes:
        failure: why the function could not be recorded and is called as usual; None if it could,
            or was not tried yet.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device):
        self._function, self._device, self._calls = function, device, 0
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self.failure: str | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function does of ``inputs``, tensors of always the same shapes there."""
        with torch.cuda.device(self._device):
            if self.failure is None and self._graph is None and self._calls >= _USUAL_CALLS:
                self._record(inputs)
            if self.failure is not None:
                return self._function(*inputs)
            if self._graph is None:
                self._calls += 1
                return self._call_aside(inputs)
            for kept, new in zip(self._inputs, inputs, strict=True):
                kept.copy_(new)
            self._graph.replay()
            return tuple(output.clone() for output in self._outputs)

    def _call_aside(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the function on the stream on which it will be recorded."""
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        usual.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record one call, which changes nothing yet."""
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, an app's say, go on using the GPU meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:
            self.failure = str(error).splitlines()[0]
        else:
            self._graph = graph

    def forget(self) -> None:
        """Free the memory that a recorded step holds; the next calls are as the first."""
        self._calls, self._graph, self._inputs, self._outputs = 0, None, (), ()
