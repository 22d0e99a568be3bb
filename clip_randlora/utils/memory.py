"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CONTAINER = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Return the bytes that new tensors may take: of a GPU its own, otherwise the machine's.

    In a container, they are not more than its limit leaves. What PyTorch has reserved on a GPU and
    does not use counts as free.
    """
    if device.type != "cuda":
        available = int(psutil.virtual_memory().available)
        left = _left_in_container()
        return available if left is None else min(available, left)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _left_in_container(folder: Path = _CONTAINER) -> int | None:
    """Return the bytes that a container's limit leaves; None without a limit.

    The limit and the use are in files of Linux's cgroup 2. Cached files give way to tensors.
    """
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        cached = int(dict(map(str.split, lines))["inactive_file"])
    except (OSError, ValueError, KeyError):  # no container, "max", or another system
        return None
    return max(0, limit - used + cached)
