"""The state of an unfinished training, from which it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clip_randlora.errors import UserError
from clip_randlora.utils.outputs import atomic_write

FILE_NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished training."""
    with atomic_write(folder / FILE_NAME) as temporary:
        torch.save(dict(state), temporary)


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the state of an unfinished training; None if it has not got to its first checkpoint."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise damaged_checkpoint(folder) from error
    if not isinstance(state, dict):
        raise damaged_checkpoint(folder)
    return state


def damaged_checkpoint(folder: Path) -> UserError:
    """Return the error that says that the state of a training cannot be read."""
    return UserError(f"{folder / FILE_NAME}: damaged; start again with another --out")
