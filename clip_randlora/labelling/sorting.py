"""Sort labelled images into class folders, without overwriting a file or sorting one twice."""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from clip_randlora.data.inputs import Input
from clip_randlora.data.sources import safe_parts
from clip_randlora.errors import UserError
from clip_randlora.labelling.label_each import LabelledImage, Labelling
from clip_randlora.utils.outputs import lock_folder
from clip_randlora.utils.progress import OnProgress, report_progress

How = Literal["copy", "link", "move"]
LIST = ".labelled.jsonl"  # in the folder: which image became which file
_UNFINISHED = ".labelled.tmp"


@dataclass
class Sorted:
    """What `sort_into_folders` did.

    Attributes:
        counts: images that were put into each class folder now.
        before: images that had been put there before.
        copied: images that were to be linked or moved, but were copied.
        errors: why images were not put there, a line each.
    """

    counts: dict[str, int]
    before: int = 0
    copied: int = 0
    errors: list[str] = field(default_factory=list)


def sort_into_folders(
    labelling: Labelling,
    images: Sequence[Input],
    folder: str | Path,
    how: How = "copy",
    on_progress: OnProgress | None = None,
) -> Sorted:
    """Put each image that has a label into the folder of its class.

    A file that is there is never overwritten: a second ``a.jpg`` becomes ``a-2.jpg``. The hidden
    file ``.labelled.jsonl`` lists which image became which file. An image that is listed is left as
    it is, so the work can be interrupted and begun again, and a file that was sorted by hand since
    stays where it is.

    Args:
        labelling: what `label_images` returned for the images.
        images: from `clip_randlora.data.inputs.each_input`.
        folder: is created if needed.
        how: "copy"; "link" makes hard links, or copies where the file system has none; "move".
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: a class's name cannot be a folder's, or the folder cannot be written to.
    """
    if how not in get_args(How):
        raise UserError(f"how: {how}; choose {', '.join(get_args(How))}")
    folder = Path(folder).expanduser()
    folders = {name: folder.joinpath(*_parts(name)) for name in labelling.classes}
    done = Sorted(dict.fromkeys(labelling.classes, 0))
    labelled = sum(labelling.counts().values())
    with lock_folder(folder, option="--into"), _List(folder) as listed:
        each = report_progress(
            (image for image in labelling if image.label), "sorting images", labelled, on_progress
        )
        for image in each:
            _sort(image, images[image.place], folders[image.label], how, listed, done)
    return done


def _parts(class_name: str) -> tuple[str, ...]:
    """Return a class's folder below the folder, and refuse one that leads out of it."""
    parts = safe_parts(class_name)
    if not parts or any(part.startswith(".") or "\0" in part for part in parts):
        raise UserError(f"class {class_name!r}: cannot be a folder's name; rename the class")
    return parts


class _List:
    """Which image became which file, read from the folder and continued."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LIST
        self.images: set[str] = set()
        self.files: set[str] = set()

    def __enter__(self) -> _List:
        with suppress(FileNotFoundError), open(self.path, encoding="utf-8") as file:
            for line in file:
                with suppress(ValueError, TypeError):  # cut short, or empty
                    image, became = json.loads(line)
                    self.images.add(image)
                    self.files.add(became)
        self._file = open(self.path, "a", encoding="utf-8")
        self._file.write("\n")  # the last line was cut short if the process was killed
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, image: str, file: Path) -> None:
        """List an image."""
        became = file.relative_to(self.folder).as_posix()
        self._file.write(json.dumps([image, became]) + "\n")
        self._file.flush()
        self.images.add(image)
        self.files.add(became)

    def has_file(self, file: Path) -> bool:
        """Return whether an image was listed as this file."""
        return file.relative_to(self.folder).as_posix() in self.files


def _sort(
    image: LabelledImage, entry: Input, folder: Path, how: How, listed: _List, done: Sorted
) -> None:
    """Put one image into its folder, unless it is listed."""
    content = entry.content
    original = content if isinstance(content, Path) else content and content.read()
    if not isinstance(original, Path | bytes):
        done.errors.append(f"{image.name}: not a file, so it cannot be sorted; save it as one")
        return
    if isinstance(original, bytes) and how == "move":
        done.errors.append(f"{image.name}: cannot be moved out of an archive; leave out --move")
        return
    known_as = os.path.abspath(original if isinstance(original, Path) else image.name)
    if known_as in listed.images:
        done.before += 1
        return
    try:
        name = original.name if isinstance(original, Path) else PurePosixPath(image.name).name
        file, is_new = _place(original, folder / name, how, listed, done)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(original, Path) and not os.access(original, os.R_OK):
            done.errors.append(f"{image.name}: cannot be read ({reason})")
            return
        raise UserError(
            f"{folder}: cannot be written to ({reason}); make room or choose another folder, and "
            f"start again: what is sorted stays"
        ) from error
    listed.add(known_as, file)
    if is_new:
        done.counts[image.label] += 1
    else:
        done.before += 1


def _place(
    original: Path | bytes, wanted: Path, how: How, listed: _List, done: Sorted
) -> tuple[Path, bool]:
    """Return the file that the image has become, and whether it is a new one."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for file in _numbered(wanted):
        if os.path.lexists(file):
            if listed.has_file(file) or not _is_same(original, file):
                continue
            # it was there, or the process was killed before it listed the file
            if how == "move" and isinstance(original, Path) and not file.samefile(original):
                original.unlink()
            return file, False
        if how != "copy" and isinstance(original, Path) and _rename_or_link(original, file, how):
            return file, True
        done.copied += how != "copy"
        _copy(original, file, listed.folder / _UNFINISHED)
        if how == "move" and isinstance(original, Path):
            original.unlink()
        return file, True
    raise AssertionError("there is always a free number")


def _numbered(file: Path) -> Iterator[Path]:
    """Yield a.jpg, a-2.jpg, a-3.jpg and so on."""
    yield file
    for number in itertools.count(2):
        yield file.with_name(f"{file.stem}-{number}{file.suffix}")


def _is_same(original: Path | bytes, file: Path) -> bool:
    if not file.is_file():
        return False
    if isinstance(original, Path):
        return filecmp.cmp(original, file, shallow=False)
    return file.stat().st_size == len(original) and file.read_bytes() == original


def _rename_or_link(original: Path, file: Path, how: How) -> bool:
    """Move or link a file within its file system; return whether that can be done."""
    if original.is_symlink() and how == "move":  # a relative link would lead elsewhere
        return False
    try:
        if how == "move":
            os.rename(original, file)
        else:
            os.link(os.path.realpath(original), file)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _copy(original: Path | bytes, file: Path, unfinished: Path) -> None:
    """Copy a file with its times; it appears when it is complete."""
    try:
        if isinstance(original, Path):
            shutil.copyfile(original, unfinished)
            with suppress(OSError):
                shutil.copystat(original, unfinished)
        else:
            unfinished.write_bytes(original)
        os.rename(unfinished, file)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
