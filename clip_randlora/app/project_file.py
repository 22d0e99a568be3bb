"""The app's ``project.json``: what the library reads of it, and what the app adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

import clip_randlora as cr
from clip_randlora.app.checks import CheckRecord
from clip_randlora.app.searches import SearchRecord
from clip_randlora.data.projects import PROJECT_FILE, Project
from clip_randlora.utils.outputs import atomic_write


class RunEntry(BaseModel):
    """A run of a project.

    Attributes:
        id: the name of its folder below ``runs/``.
        number: counts the project's runs from 1; shown as "Run 2".
        title: what the person called it; "" for "Run 2".
        preset: that it was trained with; "" if it was trained elsewhere.
    """

    id: str = Field(pattern=r"^[\w-]{1,80}$")
    number: int
    title: str = Field(default="", max_length=80)
    preset: str = ""

    @property
    def name(self) -> str:
        """What it is called in the page."""
        return self.title or f"Run {self.number}"


class AppProject(Project):
    """A project with what the app knows besides.

    Attributes:
        runs: the oldest first.
        in_use: id of the run that answers; "" for the newest.
        training: id of the run that is being trained; "" for none.
        choices: what the page trains with next, by name.
        search: the last search for settings.
        check: the last check of the images.
        fine: keys of findings that a person called fine.
        drawn: numbers of the images that the app set apart for testing.
        drawn_up_to: images up to this number have been trained on or set apart, but for
            ``not_drawn``, which were not sorted yet then.
    """

    runs: list[RunEntry] = Field(default_factory=list)
    in_use: str = ""
    training: str = ""
    choices: dict[str, Any] = Field(default_factory=dict)
    search: SearchRecord | None = None
    check: CheckRecord | None = None
    fine: list[str] = Field(default_factory=list)
    drawn: list[int] = Field(default_factory=list)
    drawn_up_to: int = 0
    not_drawn: list[int] = Field(default_factory=list)


def read_project_file(folder: Path) -> AppProject:
    """Read a folder's ``project.json``; a new project if it has none.

    Raises:
        UserError: it is damaged, or of a later version.
    """
    path = folder / PROJECT_FILE
    if not path.exists():
        return AppProject()
    try:
        return AppProject.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, ValueError):
        raise cr.UserError("this is no project of this version of clip-randlora") from None


def write_project_file(folder: Path, project: AppProject) -> None:
    """Write a folder's ``project.json``."""
    with atomic_write(folder / PROJECT_FILE) as temporary:
        temporary.write_text(project.model_dump_json(indent=1), encoding="utf-8")
