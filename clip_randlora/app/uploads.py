"""What strangers send: names made harmless, archives opened with care, errors without paths."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from PIL import Image

import clip_randlora as cr
from clip_randlora.data import Content
from clip_randlora.runs.run_folder import ADAPTER

T = TypeVar("T")

_LONGEST_NAME = 80
_RUN_FILES = (
    ADAPTER,
    "config.yaml",
    "metrics.json",
    "history.csv",
    "predictions.csv",
    "images.csv",
    "README.md",
)
_RUN_FIGURES = ("curves.png", "confusion.png", "calibration.png", "examples.png")


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


def write_content(content: Content | Path, path: Path) -> Path:
    """Write an image's bytes as they are; one that was never a file becomes a PNG."""
    source = content if isinstance(content, Path) else content.read()
    if isinstance(source, Image.Image):
        path = path.with_suffix(".png")
        source.save(path)
    elif isinstance(source, bytes):
        path.write_bytes(source)
    else:
        shutil.copyfile(source, path)
    return path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_paths(read: Callable[[], T], folder: Path, called: str = "your images") -> T:
    """Call ``read``; its error then names what the person knows, not folders of the server."""
    try:
        return read()
    except cr.UserError as error:
        line = str(error)
        for path in (folder / "train", folder / "test", folder):
            line = line.replace(str(path) + "/", "").replace(str(path), called)
        raise cr.UserError(line) from error


def check_task(run: Path) -> None:
    """Refuse an uploaded run whose base model is not offered: no path from an upload is trusted."""
    task = cr.read_task(run)
    offered = {(model.name, model.pretrained) for model in cr.SUGGESTIONS}
    if (task.model, task.pretrained) not in offered:
        raise cr.UserError(
            f"{run}: its base model {task.model} ({task.pretrained}) is not offered here; load it "
            f"with clip-randlora predict instead"
        )


def unpack_run(archive: Path, folder: Path, called: str, most_bytes: int) -> None:
    """Copy a run's files, and nothing else, out of a zip."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for name, info in _run_members(zipped):
                if info.file_size > most_bytes:
                    raise cr.UserError(f"{called}: {name} is larger than {most_bytes >> 20} MB")
                (folder / name).write_bytes(zipped.read(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise cr.UserError(f"{called}: not a zip archive that can be read") from error
    if not (folder / ADAPTER).exists():
        raise cr.UserError(f"{called}: not a run (there is no {ADAPTER} in it)")
    for name in _RUN_FIGURES:
        if (folder / name).exists():
            cr.decode_image(folder / name, name)


def _run_members(zipped: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for info in zipped.infolist():
        name = info.filename.rsplit("/", 1)[-1]
        if name in _RUN_FILES + _RUN_FIGURES and info.filename.count("/") <= 1:
            yield name, info
