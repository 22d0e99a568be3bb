"""Training steps recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_WARMUP_CALLS = 3  # libraries choose their kernels in the first calls, which cannot be recorded


class CUDAGraphStep:
    """Calls a function of tensors, and from the fourth call on replays it as a CUDA graph.

    A training step of a small CLIP launches thousands of kernels. Each runs for microseconds, and
    Python takes longer than that to launch it. A graph launches all of them at once.

    The function must do the same at every call: read nothing back from the GPU, copy nothing to
    it, and keep persistent tensors, such as an optimiser's state, where they are.

    Attributes:
        failure: why the function cannot be recorded and is called as usual; None if it could be,
            or was not tried yet.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device):
        self._function, self._device, self._calls = function, device, 0
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Any, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self.failure: str | None = None

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Call the function.

        Args:
            inputs: tensors on the device, sequences of them, or None; of the same shapes at every
                call.
        """
        with torch.cuda.device(self._device):
            if self.failure is None and self._graph is None and self._calls >= _WARMUP_CALLS:
                self._record(inputs)
            if self.failure is not None:
                return self._function(*inputs)
            if self._graph is None:
                self._calls += 1
                return self._call_on_stream(inputs)
            pairs = zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True)
            for static, new in pairs:
                if isinstance(new, Tensor):
                    static.copy_(new)
            self._graph.replay()
            return tuple(output.clone() for output in self._outputs)

    def _call_on_stream(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Call the function on the stream on which it will be recorded."""
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        usual.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Any, ...]) -> None:
        """Record one call; nothing is computed yet."""
        self._inputs = tree_map_only(Tensor, torch.clone, inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, an app's for example, may use the GPU meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:
            self.failure = str(error).splitlines()[0]
        else:
            self._graph = graph

    def reset(self) -> None:
        """Free the graph's memory; the next calls warm up again."""
        self._calls, self._graph, self._inputs, self._outputs = 0, None, (), ()
