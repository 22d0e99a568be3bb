"""The processes of one training, as torchrun and `accelerate launch` start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor

from clip_randlora.errors import UserError

T = TypeVar("T")

_TIMEOUT = timedelta(days=7)  # the others wait while the main process classifies the test images


def is_main_process() -> bool:
    """Return whether this process is the one that evaluates, writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """Return how many processes were started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes(device: torch.device) -> int:
    """Return how many processes of this machine share the memory of a device."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1


def launch_notes() -> list[str]:
    """Note it if `accelerate launch --cpu` was asked for several processes: it starts only one."""
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ
    if process_count() > 1 or not asked:
        return []
    return [
        "One process only: with --cpu, accelerate launch starts no more than that; "
        "`torchrun --nproc_per_node N -m clip_randlora train ...` starts several."
    ]


def connect_processes(device: torch.device) -> PartialState:
    """Connect the processes, unless they are; each has to call this. Return accelerate's state."""
    return PartialState(cpu=device.type == "cpu", timeout=_TIMEOUT)


class DistributedStep:
    """What the processes of a training do together at each step; nothing if there is only one."""

    def __init__(self, batch_size: int, device: torch.device):
        """Join a training whose batches have ``batch_size`` images over all processes.

        Raises:
            UserError: there are more processes than images in a batch.
        """
        self.count, index = process_count(), 0
        self._device = device
        if self.count > 1:
            index = connect_processes(device).process_index
        if batch_size < self.count:
            raise UserError(
                f"{self.count} processes cannot share batches of {batch_size} images: launch "
                f"fewer, or set a larger batch_size"
            )
        self.part = slice(batch_size * index // self.count, batch_size * (index + 1) // self.count)
        """This process's part of a batch."""
        self.share = (self.part.stop - self.part.start) * self.count / batch_size
        """Weight of the mean over this part in the mean over the processes."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count == 1:
            return
        averaged = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, averaged.split(sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any(self, here: bool) -> bool:
        """Return whether ``here`` is true in any process; all get the same answer."""
        if self.count == 1:
            return here
        flag = torch.tensor(float(here), device=self._device)
        return bool(reduce(flag, "sum") > 0)


def from_main_process(compute: Callable[[], T], device: torch.device) -> T:
    """Compute a value in the main process and return it in every process; the others wait."""
    value = compute() if is_main_process() else None
    if process_count() == 1:
        return value  # type: ignore[return-value]  # this is the main process
    connect_processes(device)  # if nothing was trained, they are not connected yet
    return broadcast_object_list([value])[0]
