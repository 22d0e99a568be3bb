"""How much memory is free."""

from __future__ import annotations

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Return the bytes that new tensors may take: of a GPU its own, otherwise the machine's.

    What PyTorch has reserved on the GPU and does not use counts as free.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
