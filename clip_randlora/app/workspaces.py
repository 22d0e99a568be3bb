"""Whose images, runs and uploads are whose, and when they are deleted."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from clip_randlora.app.app_settings import Settings
from clip_randlora.app.workspace import Workspace

COOKIE = "clip-randlora-visitor"
_PERSONAL = "personal"  # the one visitor of a personal app


def new_visitor() -> str:
    """Return a visitor's secret, 256 random bits: the value of the cookie."""
    return secrets.token_urlsafe(32)


def visitor_in(cookies: Mapping[str, str]) -> str | None:
    """Return the visitor's secret among a request's cookies; None if there is none."""
    found = cookies.get(COOKIE, "")
    return found if re.fullmatch(r"[\w-]{43}", found) else None


class Workspaces:
    """The folders directly below the app's folder: everybody's workspaces, and Gradio's uploads.

    A visitor's secret gives the name of their workspace's folder, and so outlives a restart. An
    upload's folder is named by what is in it: whoever uploaded the same is an owner too.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folder = settings.folder.resolve()
        self._lock = threading.Lock()
        self._workspaces: dict[str, Workspace] = {}  # by the name of the folder
        self._owners: dict[str, set[str]] = defaultdict(set)  # of uploads, by the folder's name
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def visitor(self, cookies: Mapping[str, str]) -> str | None:
        """Return whose a request is by its cookies; None if it brings no secret.

        In a personal app everybody is the same visitor.
        """
        return _PERSONAL if self.settings.is_personal else visitor_in(cookies)

    def of(self, visitor: str) -> Workspace:
        """Return a visitor's workspace; the first call makes it."""
        name = _folder_name(visitor)
        with self._lock:
            if name not in self._workspaces:
                self._workspaces[name] = Workspace(self.folder / name, self.settings)
            workspace = self._workspaces[name]
        workspace.last_used = time.time()
        return workspace

    def add_uploads(self, visitor: str, files: Iterable[str | Path]) -> None:
        """Note who uploaded these files."""
        with self._lock:
            for folder in filter(None, map(self._folder_of, files)):
                self._owners[folder].add(_folder_name(visitor))

    def owns(self, visitor: str, path: str | Path) -> bool:
        """Return whether a file is an upload of the visitor's or in their workspace."""
        name, folder = _folder_name(visitor), self._folder_of(path)
        with self._lock:
            return folder is not None and (folder == name or name in self._owners.get(folder, ()))

    def has(self, path: str | Path) -> bool:
        """Return whether a path is in somebody's folder."""
        return self._folder_of(path) is not None

    def delete(self, workspace: Workspace) -> None:
        """Delete a workspace, and the uploads that only its owner has."""
        name = workspace.folder.name
        uploads = []
        with self._lock:
            self._workspaces.pop(name, None)
            for folder, owners in self._owners.items():
                if name in owners:
                    owners.remove(name)
                    uploads += [] if owners else [folder]
        with workspace.lock:
            workspace.is_deleted = True
            for folder in (name, *uploads):
                shutil.rmtree(self.folder / folder, ignore_errors=True)

    def sweep(self, now: float | None = None) -> int:
        """Delete the folders that nobody has used for ``keep_hours``; return how many."""
        oldest = (now or time.time()) - self.settings.keep_hours * 3600
        swept = 0
        for path in self.folder.iterdir():
            with self._lock:
                workspace = self._workspaces.get(path.name)
                used = workspace.last_used if workspace else path.stat().st_mtime
                if used >= oldest or (workspace and workspace.running):
                    continue
                self._owners.pop(path.name, None)
            swept += 1
            if workspace:
                self.delete(workspace)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        return swept

    def _folder_of(self, path: str | Path) -> str | None:
        """Return the name of the folder directly below the app's that a path is in."""
        try:
            parts = Path(path).resolve().relative_to(self.folder).parts
        except (ValueError, OSError):  # elsewhere, or no path at all
            return None
        return parts[0] if parts else None


def _folder_name(visitor: str) -> str:
    return hashlib.sha256(visitor.encode()).hexdigest()[:32]
