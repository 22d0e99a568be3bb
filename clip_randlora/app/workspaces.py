"""Whose workspace is whose, and when one is deleted."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
import time
from pathlib import Path

from clip_randlora.app.app_settings import Settings
from clip_randlora.app.workspace import Workspace


class Workspaces:
    """Everybody's workspaces, found by the browser's secret token or by the page's session."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._lock = threading.Lock()
        self._by_token: dict[str, Workspace] = {}
        self._by_session: dict[str, Workspace] = {}
        self._left: set[str] = set()  # sessions whose page was closed
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def enter(self, session: str, token: str | None) -> tuple[Workspace, str]:
        """Bind a page's session to the workspace of a token, or to a new one; return both."""
        with self._lock:
            if not isinstance(token, str) or not re.fullmatch(r"[\w-]{20,80}", token):
                token = secrets.token_urlsafe(32)
            if token not in self._by_token:
                self._by_token[token] = Workspace(self._folder(token), self.settings)
            workspace = self._by_session[session] = self._by_token[token]
            self._left.discard(session)
            return workspace, token

    def of(self, session: str) -> Workspace:
        """Return the workspace of a page's or a client's session; the first call makes it."""
        with self._lock:
            workspace = self._by_session.get(session)
            self._left.discard(session)
        if workspace is None:
            workspace, _ = self.enter(session, None)
        workspace.last_used = time.time()
        return workspace

    def leave(self, session: str) -> None:
        """Note that a session's page was closed; it is open again when it next asks."""
        with self._lock:
            if session in self._by_session:
                self._left.add(session)

    def left(self, session: str) -> Workspace | None:
        """Return the workspace of a session if none of the pages that show it is open."""
        with self._lock:
            workspace = self._by_session.get(session)
            pages = {name for name, value in self._by_session.items() if value is workspace}
            return workspace if pages <= self._left else None

    def delete(self, session: str) -> None:
        """Delete everything that a session's person has here."""
        self._forget(self.of(session))

    def sweep(self, now: float | None = None) -> int:
        """Delete what nobody has used for ``keep_hours``; return how many workspaces that were."""
        oldest = (now or time.time()) - self.settings.keep_hours * 3600
        with self._lock:
            known = {workspace.folder: workspace for workspace in self._by_token.values()}
        swept = 0
        for folder in self.settings.folder.iterdir():
            workspace = known.get(folder)
            used = workspace.last_used if workspace else folder.stat().st_mtime
            if used >= oldest or (workspace and workspace.job and workspace.job.is_running):
                continue
            swept += 1
            if workspace:
                self._forget(workspace)
            elif folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.unlink()
        return swept

    def _folder(self, token: str) -> Path:
        return self.settings.folder / hashlib.sha256(token.encode()).hexdigest()[:32]

    def _forget(self, workspace: Workspace) -> None:
        with self._lock:
            for table in (self._by_token, self._by_session):
                for key in [key for key, value in table.items() if value is workspace]:
                    del table[key]
            self._left &= self._by_session.keys()
        workspace.delete()
