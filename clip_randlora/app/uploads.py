"""What strangers send: harmless names, the files of a run out of a zip, errors without paths."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.data import Content
from clip_randlora.data.sources import list_zip

_LONGEST_NAME = 80
RUN_FIGURES = ("curves.png", "confusion.png", "calibration.png", "examples.png")
RUN_FILES = (
    ADAPTER,
    "config.yaml",
    "confidence.json",
    "confidence.safetensors",
    "metrics.json",
    "history.csv",
    "predictions.csv",
    "images.csv",
    "README.md",
    *RUN_FIGURES,
)


class Upload(NamedTuple):
    """An uploaded file, and what it was called; with ``/`` if it came in a folder."""

    path: Path
    name: str


def tidy_class_name(name: str) -> str:
    """Return a class name without needless space.

    Raises:
        UserError: it is empty, too long, or could not name a folder.
    """
    name = " ".join((name or "").split())
    if not name:
        raise cr.UserError("a class needs a name")
    if len(name) > _LONGEST_NAME:
        raise cr.UserError(f"class name {name[:20]}...: at most {_LONGEST_NAME} characters")
    if name.startswith(".") or not name.isprintable() or re.search(r'[/\\:*?"<>|]', name):
        raise cr.UserError(f'class name {name}: leave out / \\ : * ? " < > | and a leading dot')
    return name


def safe_file_name(name: str) -> str:
    """Return the last part of a name, with an extension, harmless as a file's."""
    name = re.sub(r"[^\w.-]+", "_", name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".")
    return name[-60:] or "image"


def write_content(content: Content, path: Path) -> Path:
    """Write an image's bytes as they are; one that was never a file becomes a PNG."""
    source = content.read()
    if isinstance(source, Image.Image):
        path = path.with_suffix(".png")
        source.save(path)
    elif isinstance(source, str | Path):
        link(Path(source), path)
    else:
        path.write_bytes(source if isinstance(source, bytes) else source.read())
    return path


def for_page(reason: str) -> str:
    """Return why an image was left out, without what only who runs the app can do."""
    return re.sub(r": pip install \S+ to read it, or convert", "; convert", reason)


def link(path: Path, to: Path) -> None:
    """Give a file another name, which takes no space; a copy where that cannot be."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


@contextmanager
def hidden_paths(folder: Path, called: str = "your images") -> Iterator[None]:
    """Name in errors what the person knows, and not folders of the server."""
    try:
        yield
    except cr.UserError as error:
        line = str(error)
        for path in (folder / "train", folder / "test", folder):
            line = line.replace(f"{path}/", "").replace(str(path), called)
        raise cr.UserError(line) from error


def check_task(run: Path) -> cr.Task:
    """Return the task of an uploaded run, whose base model must be one that is offered.

    A path in an upload would otherwise be loaded.

    Raises:
        UserError: another base model, or no run.
    """
    task = cr.read_task(run)
    offered = {(model.name, model.pretrained) for model in cr.SUGGESTIONS}
    if (task.model, task.pretrained) not in offered:
        raise cr.UserError(
            f"{run}: its base model {task.model} ({task.pretrained}) is not offered here; load it "
            f"with clip-randlora predict instead"
        )
    return task


def unpack_run(archive: Path, folder: Path, max_bytes: int) -> None:
    """Copy a run's files, and nothing else, out of a zip.

    Raises:
        UserError: no zip, no run, or a file of more than ``max_bytes``.
    """
    for file in list_zip(archive).files:
        name = file.parts[-1]
        if name not in RUN_FILES or len(file.parts) > 2:
            continue
        if file.content.size > max_bytes:
            raise cr.UserError(f"{archive}: {name} is larger than {max_bytes >> 20} MB")
        path = write_content(file.content, folder / name)
        if name in RUN_FIGURES:
            cr.decode_image(path, name)
    if not (folder / ADAPTER).exists():
        raise cr.UserError(f"{archive}: not a run (there is no {ADAPTER} in it)")
