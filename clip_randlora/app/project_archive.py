"""A project as one zip: images, names, prompts, the split and all runs; saved, and opened again."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from pydantic import ValidationError

import clip_randlora as cr
from clip_randlora.app.project_file import AppProject, RunEntry, write_project_file
from clip_randlora.app.uploads import (
    RUN_FIGURES,
    RUN_FILES,
    Upload,
    check_task,
    hidden_paths,
    safe_file_name,
    tidy_class_name,
    write_content,
)
from clip_randlora.app.workspace import Workspace
from clip_randlora.data import Item, UnreadableImage
from clip_randlora.data.projects import PROJECT_FILE, find_project
from clip_randlora.data.sources import File, list_zip
from clip_randlora.data.texts import read_text
from clip_randlora.runs.image_record import read_images
from clip_randlora.utils.outputs import atomic_write

_MOST_NAMED = 4  # classes in the name of the file
_STORED = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".safetensors"}  # do not compress


def project_name(workspace: Workspace, extension: str = ".zip") -> str:
    """Return a file name after the classes, such as ``hat-shoes-trousers.zip``."""
    names = [re.sub(r"[^\w]+", "-", name).strip("-") for name in workspace.classes]
    chosen = "-".join(name for name in names[:_MOST_NAMED] if name)[:60].strip("-")
    return (chosen or "project") + extension


def is_project(archive: Upload) -> bool:
    """Return whether a zip is a saved project.

    Raises:
        UserError: it is no zip that can be read.
    """
    with hidden_paths(archive.path, archive.name):
        return find_project(list_zip(archive.path)) is not None


def save_project(workspace: Workspace) -> Path:
    """Write the project as a zip into the workspace's downloads, and return it."""
    path = workspace.downloads / project_name(workspace)
    with workspace.lock:
        files = [workspace.folder / PROJECT_FILE]
        files += [picture.path for picture in (*workspace.pictures(), *workspace.unsorted())]
        for run in workspace.project.runs:
            folder = workspace.folder / "runs" / run.id
            files += [folder / name for name in RUN_FILES if (folder / name).exists()]
        workspace.save()
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
            for file in files:
                stored = file.suffix.lower() in _STORED
                zipped.write(
                    file,
                    file.relative_to(workspace.folder).as_posix(),
                    zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED,
                )
    return path


def open_project(workspace: Workspace, archive: Path, called: str) -> tuple[str, list[str]]:
    """Replace the workspace's project by a saved one.

    Args:
        workspace: whose project.
        archive: the zip.
        called: its name in errors.

    Returns:
        The token with which `Workspace.undo` brings the project of before back, "" if there was
        none; and what was left out, a line each.

    Raises:
        UserError: the zip is no project, or damaged. Nothing is changed then.
    """
    folder = Path(tempfile.mkdtemp(dir=workspace.work))
    try:
        with hidden_paths(folder, called), hidden_paths(archive, called):
            notes = _unpack(archive, folder, workspace)
        return workspace.replace_project(folder), notes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path, workspace: Workspace) -> list[str]:
    listing = list_zip(archive)
    project_file = find_project(listing)
    if project_file is None:
        raise cr.UserError(f"{archive}: no project (it has no {PROJECT_FILE})")
    project = _parse(project_file)
    root = project_file.parts[:-1]
    inside = [file for file in listing.files if file.parts[: len(root)] == root]
    by_folder: dict[str, list[tuple[tuple[str, ...], File]]] = {}
    for file in inside:
        parts = file.parts[len(root) :]
        by_folder.setdefault(parts[0], []).append((parts[1:], file))
    images = [
        (f"images/{parts[0]}/{parts[1]}", file)
        for parts, file in by_folder.get("images", [])
        if len(parts) == 3 and parts[0] in ("train", "test") and parts[1] == _tidy_or_none(parts[1])
    ]
    images += [("unsorted", f) for parts, f in by_folder.get("unsorted", []) if len(parts) == 1]
    if len(images) > workspace.settings.max_images:
        raise cr.UserError(
            f"{archive}: {len(images):,} images, at most {workspace.settings.max_images:,} here"
        )
    notes = _write_images(images, folder)
    kept: list[RunEntry] = []
    for entry in project.runs:
        files = [
            (parts[1], file)
            for parts, file in by_folder.get("runs", [])
            if len(parts) == 2 and parts[0] == entry.id and parts[1] in RUN_FILES
        ]
        try:
            _write_run(files, folder / "runs" / entry.id, workspace)
            kept.append(entry)
        except cr.UserError as error:
            shutil.rmtree(folder / "runs" / entry.id, ignore_errors=True)
            with hidden_paths(folder, entry.name):
                notes.append(f"{entry.name} was left out: {error}.".replace(f"{folder}/", ""))
    project.runs = kept
    write_project_file(folder, project)
    return notes


def _tidy_or_none(name: str) -> str | None:
    """Return a class name as it may be, None if it may not."""
    try:
        return tidy_class_name(name)
    except cr.UserError:
        return None


def _parse(file: File) -> AppProject:
    text = read_text(file, file.name)
    try:
        project = AppProject.model_validate_json(text)
    except ValidationError:
        raise cr.UserError(f"{file.name}: not a project of this version of clip-randlora") from None
    project.classes = [e for e in project.classes if _tidy_or_none(e.name) == e.name]
    project.training = ""
    if project.search is not None and project.search.state == "interrupted":
        project.search = None  # it was saved during the search
    return project


def _write_images(images: list[tuple[str, File]], folder: Path) -> list[str]:
    """Write the images that can be read below ``folder``; name the others."""
    notes = []
    taken: set[int] = set()
    number = 0
    for _, file in images:
        found = re.match(r"(\d{1,9})-", file.parts[-1])
        number = max(number, int(found[1]) if found else 0)
    for place, file in images:
        item = Item(file.name, 0, file.content)
        try:
            item.check()
        except UnreadableImage as error:
            notes.append(f"{file.name} was left out: {error.reason}.")
            continue
        found = re.fullmatch(r"(\d{1,9})-(.+)", file.parts[-1])
        own, name = (int(found[1]), found[2]) if found else (0, file.parts[-1])
        if not own or own in taken:
            number += 1
            own = number
        taken.add(own)
        path = folder / place / f"{own:06d}-{safe_file_name(name)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_content(file.content, path)
    return notes


def _write_run(files: list[tuple[str, File]], folder: Path, workspace: Workspace) -> None:
    """Write a run's files, and check that it can be used here.

    Raises:
        UserError: it cannot.
    """
    folder.mkdir(parents=True)
    for name, file in files:
        if file.content.size > workspace.settings.max_upload_mb * 2**20:
            raise cr.UserError(f"{name} is larger than {workspace.settings.max_upload_mb} MB")
        path = write_content(file.content, folder / name)
        if name in RUN_FIGURES:
            cr.decode_image(path, name)
    is_whole = (folder / "config.yaml").exists()
    check_task(folder if is_whole else folder / "adapter.safetensors")
    read_images(folder)
