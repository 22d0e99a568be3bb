"""A project of the app: images by split and class, and ``project.json``, which describes them.

    project.json
    images/train/CLASS/*    images/test/CLASS/*
    runs/RUN/*              what was trained on them

As a folder it is where the app works; as a zip it is what the app saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clip_randlora.adapters.config import one_line
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.data.folders import ClassFiles, Layout
from clip_randlora.data.sources import File, Listing
from clip_randlora.data.texts import read_text
from clip_randlora.errors import UserError

PROJECT_FILE = "project.json"
TRAIN, TEST = ("images", "train"), ("images", "test")


class ProjectClass(BaseModel):
    """A class of a project.

    Attributes:
        name: of the class and of its folders.
        prompts: what prompts call it; by default its name.
        is_on: whether it is trained.
    """

    name: str = Field(min_length=1)
    prompts: tuple[str, ...] = ()
    is_on: bool = True


class Project(BaseModel):
    """What ``project.json`` says of the images; what it says of runs is the app's.

    Attributes:
        format, version: of the file.
        classes: in the order in which they are shown.
        templates: prompt templates with one ``{}`` each.
        held_out: share of each class that is for testing.
    """

    model_config = ConfigDict(extra="ignore")

    format: Literal["clip-randlora project"] = "clip-randlora project"
    version: Literal[1] = 1
    classes: list[ProjectClass] = Field(default_factory=list)
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    held_out: float = Field(default=0.3, gt=0, lt=1)


def find_project(listing: Listing) -> File | None:
    """Return the ``project.json`` of a project at the root, or in the one folder there."""
    roots = [file for file in listing.files if len(file.parts) <= 2]
    found = [file for file in roots if file.parts[-1] == PROJECT_FILE]
    return found[0] if len(found) == 1 else None


def read_project(
    source: str, project_file: File, listing: Listing, images: Sequence[File]
) -> Layout:
    """Read the images of a project by split and class.

    Classes that are switched off, and those without training images, are left out with a note.

    Args:
        source: the source's name in errors.
        project_file: its ``project.json``.
        listing: of the source.
        images: of the listing.

    Raises:
        UserError: ``project.json`` is damaged or of a later version.
    """
    where = f"{source}: {project_file.name}"
    try:
        project = Project.model_validate_json(read_text(project_file, where))
    except ValidationError as error:
        raise UserError(
            f"{where}: not a project of this version of clip-randlora ({one_line(error)})"
        ) from None
    root = project_file.parts[:-1]
    train, test = (_by_class(images, (*root, *split)) for split in (TRAIN, TEST))
    chosen = [entry for entry in project.classes if entry.is_on and train.get(entry.name)]
    names = [entry.name for entry in chosen]
    inside = "/".join((*root, TRAIN[0])) + "/"
    layout = Layout(
        {name: train[name] for name in names},
        {name: test[name] for name in names if name in test} or None,
        skipped=[entry for entry in listing.skipped if entry.name.startswith(inside)],
        is_described=True,
        templates=project.templates if project.templates != DEFAULT_TEMPLATES else (),
        prompts={entry.name: entry.prompts for entry in chosen if entry.prompts},
    )
    for entry in project.classes:
        if not entry.is_on:
            layout.notes.append(f"{entry.name} is switched off and left out.")
        elif entry.name not in names:
            layout.notes.append(f"{entry.name} has no training images and is left out.")
    if not names:
        raise UserError(f"{source}: the project has no class with training images; add some")
    return layout


def _by_class(images: Sequence[File], folder: tuple[str, ...]) -> ClassFiles:
    """Return the images of one split by the name of their class."""
    found: ClassFiles = {}
    for file in images:
        if file.parts[:-2] == folder:
            found.setdefault(file.parts[-2], []).append(file)
    return found
