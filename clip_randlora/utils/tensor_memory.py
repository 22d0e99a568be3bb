"""The memory of the tensors that a computation makes, counted on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.bmm,
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
}


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block, backward passes included.

    What the kernels use while they run is not counted, nor what was there before.

    Attributes:
        live: bytes of the tensors that exist now.
        allocated: bytes of all tensors that were made, whether they still exist or not.
        stretches: the bytes that existed after each operation, in a list for each stretch from one
            matrix product to the next: a computation has as many stretches for every batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.allocated = 0
        self.stretches = [[0]]
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in _PRODUCTS:
            self.stretches.append([])
        known = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            if storage._cdata not in known and storage._cdata not in self._storages:
                self._add(storage)
        self.stretches[-1].append(self.live)
        return output

    @property
    def peak(self) -> int:
        """The most bytes that existed at a time."""
        return max(map(max, self.stretches))

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size
        self.allocated += size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()
