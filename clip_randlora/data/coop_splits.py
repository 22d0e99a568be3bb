"""CoOp's splits: the files ``split_zhou_NAME.json`` that few-shot papers share.

Such a file is ``{"train": [[image, label, class name], ...], "val": [...], "test": [...]}``, with
images as paths below a folder (https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_randlora.data.coop_draws import MOST_VALIDATION_SHOTS, CoopDraw, DrawnClass
from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.data.folders import ClassFiles, Layout
from clip_randlora.data.sources import DiskFile, File, printable, safe_parts
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

PATTERN = "split_zhou_*.json"
_SPLITS = ("train", "val", "test")
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class CoopSplit:
    """A split's file, and the folder that its images' paths start from."""

    file: Path
    images: Path


@dataclass(frozen=True)
class _Row:
    parts: tuple[str, ...]
    label: int
    name: str


def find_coop_split(spec: DatasetSpec) -> CoopSplit | None:
    """Return the split of a described data set if its file is on this machine.

    Raises:
        UserError: the file is there, and none of the folders of images is.
    """
    if spec.coop_split is None:
        return None
    file = spec.path_of(spec.coop_split.file)
    if not file.is_file():
        return None
    folders = [spec.path_of(folder) for folder in spec.coop_split.images]
    for folder in folders:
        if folder.is_dir():
            return CoopSplit(file, folder)
    raise UserError(
        f"{file}: its images are not there; put them into {' or '.join(map(str, folders))}, or "
        f"remove the file"
    )


def find_split_in_folder(folder: Path) -> CoopSplit | None:
    """Return the split whose file lies in a folder, beside its images or the folder of them.

    Raises:
        UserError: there are several such files, or none of their images is in the folder.
    """
    files = sorted(folder.glob(PATTERN))
    if not files:
        return None
    if len(files) > 1:
        names = join_names(file.name for file in files)
        raise UserError(f"{folder}: {names} are splits; keep one of them in the folder")
    heads = {row.parts[0] for rows in _read(files[0]).values() for row in rows}
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    for images in (folder, *inner):
        if any((images / head).exists() for head in heads):
            return CoopSplit(files[0], images)
    raise UserError(
        f"{files[0]}: its images are neither in {folder} nor in a folder there; put them beside "
        f"the file, or move it away"
    )


def read_coop_split(split: CoopSplit) -> Layout:
    """Read the images of a split by class, with the class names of its file.

    Images that are not there are left out, and a note counts and names them.

    Raises:
        UserError: the file cannot be read or is in another form, a path leaves the folder of
            images, or none of the images is there.
    """
    rows = _read(split.file)
    names = _class_names(split.file, rows)
    missing: list[str] = []
    files = {name: _files(split.images, rows[name], names, missing) for name in _SPLITS}
    count = sum(map(len, rows.values()))
    if len(missing) == count:
        raise UserError(f"{split.file}: none of its {count} images is in {split.images}")
    notes = [f"The split and the draw of few-shot images are those of {split.file.name} (CoOp)."]
    if missing:
        notes.append(f"{len(missing)} of its {count} images are missing: {join_names(missing, 5)}.")
    places = {label: place for place, label in enumerate(names)}
    draw = CoopDraw(_drawn_classes(rows["train"], places))
    validation = CoopDraw(_drawn_classes(rows["val"], places), draw, MOST_VALIDATION_SHOTS)
    return Layout(
        train=files["train"],
        test=files["test"],
        validation=files["val"],
        notes=notes,
        is_described=True,
        is_ready_made=True,
        # CoOp's trainers only replace underscores; a full stop would make a whole prompt
        prompts={name: (name.replace("_", " ").rstrip(". ") or name,) for name in names.values()},
        draw=draw,
        validation_draw=validation,
    )


def _read(file: Path) -> dict[str, list[_Row]]:
    """Read the rows of the three splits."""
    try:
        size = file.stat().st_size
        if size > _MOST_BYTES:
            raise UserError(f"{file}: {size >> 20} MiB, at most {_MOST_BYTES >> 20}")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check it") from None
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise UserError(f"{file}: no JSON, or cut short; download it again") from None
    parsed = {}
    for name in _SPLITS:
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{file}: no list {name!r}, as a split has; download it again")
        if not rows and name != "val":
            raise UserError(f"{file}: {name} has no images; download it again")
        where = f"{file}: {name}, row"
        parsed[name] = [_parse(f"{where} {number}", row) for number, row in enumerate(rows, 1)]
    return parsed


def _parse(where: str, row: Any) -> _Row:
    if not (isinstance(row, list) and len(row) == 3):
        raise UserError(f"{where}: {str(row)[:80]}, not [image, label, class name]")
    image, label, name = row
    is_label = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    if not (isinstance(image, str) and is_label and isinstance(name, str) and name.strip()):
        raise UserError(f"{where}: {str(row)[:80]}, not [image, label, class name]")
    parts = safe_parts(image)
    if not parts:
        raise UserError(f"{where}: {printable(image)[:80]} leaves the folder of the images")
    return _Row(parts, label, printable(name))


def _class_names(file: Path, rows: dict[str, list[_Row]]) -> dict[int, str]:
    """Return ``{label: class name}`` of the training images, labels ascending."""
    names: dict[int, str] = {}
    for row in rows["train"]:
        names.setdefault(row.label, row.name)
    for row in (row for split in _SPLITS for row in rows[split]):
        if names.get(row.label) != row.name:
            known = names.get(row.label, "no class of a training image")
            raise UserError(
                f"{file}: label {row.label} is {known}, and {row.name} at {'/'.join(row.parts)}; "
                f"download it again"
            )
    by_name: dict[str, int] = {}
    for label, name in names.items():
        if by_name.setdefault(name, label) != label:
            raise UserError(
                f"{file}: the labels {by_name[name]} and {label} are both {name}; give each class "
                f"a name of its own"
            )
    return dict(sorted(names.items()))


def _files(
    folder: Path, rows: Sequence[_Row], names: dict[int, str], missing: list[str]
) -> ClassFiles:
    """Return the files of one split by class, and add those that do not exist to ``missing``."""
    files: ClassFiles = {name: [] for name in names.values()}
    for row in rows:
        path = folder.joinpath(*row.parts)
        try:
            size = path.stat().st_size
        except (OSError, ValueError):  # a NUL in the path is a ValueError
            missing.append("/".join(row.parts))
            continue
        files[row.name].append(File(row.parts, DiskFile(path, size)))
    return files


def _drawn_classes(rows: Sequence[_Row], places: dict[int, int]) -> tuple[DrawnClass, ...]:
    images: dict[int, list[str]] = {}
    for row in rows:
        images.setdefault(row.label, []).append("/".join(row.parts))
    return tuple(DrawnClass(places[label], tuple(names)) for label, names in images.items())
