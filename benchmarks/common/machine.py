"""Where a benchmark ran: processor, cores, memory, GPU, and the versions of what it measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "peft")


def usable_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Name the processor, its cores, the memory, the GPU (None without one) and the system."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "cpu_has_bf16": _cpu_has_bf16(),
        "memory_bytes": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Return the version of Python, of every library that is measured, and of this project."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions | {"clip-randlora": _own_version()}


def one_line(machine: dict[str, Any], versions: dict[str, str], threads: int) -> str:
    """Say in one line where the figures under a table come from."""
    bf16 = "with" if machine["cpu_has_bf16"] else "without"
    parts = [
        f"{machine['cpu']} ({machine['cores']} cores, {bf16} bf16 instructions)",
        f"GPU {machine['gpu']}" if machine["gpu"] else "no GPU",
        f"{machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else "",
        f"{threads} threads",
        *(f"{package} {number}" for package, number in versions.items()),
    ]
    return ", ".join(part for part in parts if part)


def _own_version() -> str:
    from clip_randlora import __version__

    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # not a checkout
        return __version__
    return f"{__version__} ({revision})"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    import torch

    from clip_randlora.training.config import choose_precision

    return choose_precision("auto", torch.device("cpu")) == "bf16"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
