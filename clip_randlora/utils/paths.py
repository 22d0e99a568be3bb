"""Where the package's configs lie, and where data sets are downloaded to."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def configs_folder() -> Path:
    """The folder ``configs/``: inside the package where it was installed, else in the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def data_root() -> Path:
    """Where torchvision's data sets lie: ``CLIP_RANDLORA_DATA``, else a folder in the cache."""
    chosen = os.environ.get("CLIP_RANDLORA_DATA")
    return Path(chosen or "~/.cache/clip-randlora/data").expanduser()
