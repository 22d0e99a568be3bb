"""What was removed or moved, kept for a while so that it can be put back."""

from __future__ import annotations

import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from clip_randlora.app.pictures import Picture
from clip_randlora.app.project_file import RunEntry
from clip_randlora.data.projects import PROJECT_FILE, ProjectClass

_SECONDS_KEPT = 600  # longer than the page offers it
_PROJECT = ("images", "unsorted", "runs")  # the folders of a project


@dataclass
class Removal:
    """Something that was removed or moved together.

    Attributes:
        what: says it, such as "3 images of hat".
        done: says what was done, such as "Moved 3 images to hat"; by default that it was removed.
        pictures: images that were removed, as they were.
        moved: images that have another class now, as they were.
        classes: classes and their places in the order.
        runs: runs and their places in the list.
        is_project: whether it is a whole project, in whose place another was opened.
        fine: findings that a person called fine, which `undo` makes findings again.
        token: names it.
        time: when, in seconds since the epoch.
    """

    what: str
    done: str = ""
    pictures: list[Picture] = field(default_factory=list)
    moved: list[Picture] = field(default_factory=list)
    classes: list[tuple[int, ProjectClass]] = field(default_factory=list)
    runs: list[tuple[int, RunEntry]] = field(default_factory=list)
    is_project: bool = False
    fine: list[str] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    time: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.done = self.done or f"Removed {self.what}"


class Removals:
    """A folder with a folder for each removal, in which the files wait."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._removals: dict[str, Removal] = {}
        shutil.rmtree(folder, ignore_errors=True)  # nobody can undo what was before a restart

    def take(self, removal: Removal, project: Path) -> None:
        """Keep a removal, and move the files of what was removed out of the project's folder."""
        self._forget_old()
        for now, before in self._moves(removal, project):
            now.parent.mkdir(parents=True, exist_ok=True)
            if before.exists():
                before.rename(now)
        self._removals[removal.token] = removal

    def take_project(self, removal: Removal, project: Path) -> None:
        """Move a whole project out of its folder."""
        self._forget_old()
        aside = self.folder / removal.token
        aside.mkdir(parents=True)
        _move_project(project, aside)
        self._removals[removal.token] = removal

    def put_back(self, token: str, project: Path) -> Removal | None:
        """Move the files back to where they were; None if the removal is not known any more."""
        removal = self._removals.pop(token, None)
        if removal is None:
            return None
        aside = self.folder / token
        if removal.is_project:
            for name in _PROJECT:
                shutil.rmtree(project / name, ignore_errors=True)
            _move_project(aside, project)
        for now, before in self._moves(removal, project):
            before.parent.mkdir(parents=True, exist_ok=True)
            if now.exists():
                now.rename(before)
        shutil.rmtree(aside, ignore_errors=True)
        return removal

    def _moves(self, removal: Removal, project: Path) -> list[tuple[Path, Path]]:
        aside = self.folder / removal.token
        pictures = [(aside / p.path.name, p.path) for p in removal.pictures]
        runs = [(aside / "runs" / r.id, project / "runs" / r.id) for _, r in removal.runs]
        return pictures + runs

    def _forget_old(self) -> None:
        for removal in list(self._removals.values()):
            if time.time() - removal.time > _SECONDS_KEPT:
                del self._removals[removal.token]
                shutil.rmtree(self.folder / removal.token, ignore_errors=True)


def _move_project(project: Path, to: Path) -> None:
    for name in (*_PROJECT, PROJECT_FILE, "digests.json"):
        if (project / name).exists():
            (project / name).replace(to / name)
