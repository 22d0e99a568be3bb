"""Which browser, or which client of the library, may have which files of the app's folder."""

from __future__ import annotations

import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

COOKIE = "clip-randlora-visitor"


def new_visitor() -> str:
    """Return a visitor's secret, 256 random bits: the value of the cookie."""
    return secrets.token_urlsafe(32)


def visitor_in(cookies: Mapping[str, str]) -> str | None:
    """Return the visitor's secret among a request's cookies; None if there is none."""
    found = cookies.get(COOKIE, "")
    return found if re.fullmatch(r"[\w-]{43}", found) else None


class Visitors:
    """Remembers whom each folder directly below the app's folder belongs to.

    An upload's folder is named by what is in it: whoever uploaded the same is an owner too.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._owners: dict[str, set[str]] = defaultdict(set)

    def give(self, visitor: str | None, paths: Iterable[str | Path]) -> None:
        """Let a visitor have the folders that these paths are in."""
        with self._lock:
            for name in filter(None, map(self._below, paths)):
                if visitor is not None:
                    self._owners[name].add(visitor)

    def owns(self, visitor: str, path: str | Path) -> bool:
        """Tell whether a path is in a folder of the visitor's."""
        with self._lock:
            return visitor in self._owners.get(self._below(path) or "", ())

    def is_below(self, path: str | Path) -> bool:
        """Tell whether a path is in somebody's folder."""
        return self._below(path) is not None

    def forget_missing(self) -> None:
        """Forget the owners of folders that were deleted."""
        with self._lock:
            for name in [name for name in self._owners if not (self.folder / name).exists()]:
                del self._owners[name]

    def _below(self, path: str | Path) -> str | None:
        """Return the name of the folder directly below the app's that a path is in."""
        try:
            parts = Path(path).resolve().relative_to(self.folder).parts
        except (ValueError, OSError):  # elsewhere, or no path at all
            return None
        return parts[0] if parts else None
