"""Paths of the package's configs and of downloaded data sets."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def configs_folder() -> Path:
    """Return the folder ``configs/``: in the installed package, or else in the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def data_root() -> Path:
    """Return the folder of torchvision's data sets: ``CLIP_RANDLORA_DATA``, or one in ~/.cache."""
    chosen = os.environ.get("CLIP_RANDLORA_DATA")
    return Path(chosen or "~/.cache/clip-randlora/data").expanduser()
