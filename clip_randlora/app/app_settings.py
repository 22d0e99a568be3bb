"""What the person who starts the app decides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def default_folder() -> Path:
    """Return where people's images and runs are kept: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "clip-randlora" / "app"


@dataclass(frozen=True)
class Settings:
    """The app's limits.

    Attributes:
        folder: where people's images and runs are kept.
        max_upload_mb: size of one uploaded file, megabytes.
        max_images: images that one person may gather.
        max_train_minutes: a training that takes longer is stopped, and keeps what it learned.
        keep_hours: images and runs that nobody has used for so long are deleted.
        device: cuda, mps or cpu; None for the best there is.
        is_personal: whether all pages, clients and assistants share one project.
        trains_on: whether a training goes on when its page is closed.
    """

    folder: Path = field(default_factory=default_folder)
    max_upload_mb: int = 1000
    max_images: int = 5000
    max_train_minutes: float = 30
    keep_hours: float = 24
    device: str | None = None
    is_personal: bool = False
    trains_on: bool = True
