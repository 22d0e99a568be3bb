"""Data sets that are a table of labels: a file such as ``labels.csv``, a data frame, or the tables
of a folder that ``--columns`` or the hub's ``metadata.csv`` choose.

Unlike in `folders`, the table decides here, whatever the folders of its images are called.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from clip_randlora.data.folder_names import TEST, TRAIN, split_name
from clip_randlora.data.folders import ClassFiles, Layout
from clip_randlora.data.images import EXTENSIONS, MAX_FILE_BYTES
from clip_randlora.data.label_files import (
    SUFFIXES,
    WORKBOOKS,
    ColumnNames,
    Table,
    read_table,
    table_of_frame,
)
from clip_randlora.data.sources import (
    DiskFile,
    File,
    Listing,
    list_folder,
    natural_key,
    printable,
)
from clip_randlora.data.tables import (
    ImageNames,
    Labels,
    Tables,
    is_label,
    place_labels,
    read_labels,
    stem_of,
    url_spellings,
)
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import OnProgress, one_stage

_MAX_PATH = 4096
_METADATA = ("metadata.csv", "metadata.jsonl")  # of the hub's image folders
_MAX_METADATA = 50


def is_table_file(path: Path) -> bool:
    """Whether a path is a file that may be a table of labels.

    Raises:
        UserError: it is a workbook, such as ``.xlsx``.
    """
    name = path.name.lower()
    if not name.endswith((*SUFFIXES, *WORKBOOKS)) or not path.is_file():
        return False
    if name.endswith(WORKBOOKS):
        raise UserError(f"{path}: a workbook; save the sheet as CSV (UTF-8) and give that")
    return True


def read_table_source(path: Path, columns: ColumnNames, on_progress: OnProgress | None) -> Layout:
    """Read the images that a table on disk names, relative to its folder.

    Raises:
        UserError: it is no table, or does not say which images have which labels.
    """
    where, folder = str(path), path.parent
    file = File(path.name, DiskFile(path, path.stat().st_size))
    table = read_table(file, where, _files_in(str(folder), str(folder)))
    if table is None:
        raise UserError(
            f"{path}: no table of images and labels; give CSV, JSON or JSON lines with a row for "
            f"each image, or an export of Label Studio or CVAT"
        )
    labelled = _read_at_paths(where, table, folder, columns, False, on_progress)
    if labelled is not None:
        return labelled
    listing = list_folder(folder, on_progress)
    images = [file for file in listing.files if _is_image(file.own_name)]
    own = split_name(path.stem)
    wanted = own.split if own else TRAIN
    folders = {file.folder for file in images}
    folders = {name for name in folders if _split_of(f"{name}/") == wanted}
    chosen = [file for file in images if file.folder in folders]
    for group in (chosen, images) if own else (images, chosen):
        if group and (
            labels := read_labels(where, table, group, ImageNames(group), columns, split=TRAIN)
        ):
            return _layout(where, group, [(None, labels)])
    labels = read_labels(where, table, images, ImageNames(images), columns, required=True)
    assert labels is not None  # it was required
    return _layout(where, images, [(None, labels)])


def read_frame(frame: Any, columns: ColumnNames, on_progress: OnProgress | None) -> Layout:
    """Read the images that a data frame of pandas or polars names, relative to the current folder.

    Raises:
        UserError: as for `read_table_source`.
    """
    table = table_of_frame(frame)
    layout = _read_at_paths(table.name, table, Path(), columns, True, on_progress)
    assert layout is not None  # it was required
    return layout


def read_folder_tables(
    source: str, listing: Listing, images: Sequence[File], columns: ColumnNames
) -> Layout:
    """Read the labels of the images of a folder or an archive from the tables with some columns.

    Raises:
        UserError: no table has the columns, or they do not say which images have which labels.
    """
    keys = set(map(id, images))
    tables = Tables(source, [f for f in listing.files if id(f) not in keys], images)
    read = [table for file in tables.files if (table := tables.read(file))]
    names = ImageNames(images)
    found: list[tuple[str | None, Labels]] = []
    for table in read:
        if labels := read_labels(source, table, images, names, columns):
            found.append((_split_of(table.name), labels))
    if not found:
        if len(read) == 1:  # say what is wrong with it
            read_labels(source, read[0], images, names, columns, required=True)
        raise UserError(
            f"{source}: none of its {len(read)} tables has images and the columns "
            f"{columns.as_text()}; correct --columns"
            + "".join(f" ({e})" for e in tables.unreadable[:1])
        )
    layout = _layout(source, images, found)
    used = {labels.table for _, labels in found}
    layout.skipped = [entry for entry in listing.skipped if entry.name not in used]
    return layout


def read_metadata(source: str, listing: Listing, images: Sequence[File]) -> Layout | None:
    """Read the labels of ``metadata.csv`` or ``.jsonl``, as the hub's image folders have them.

    The hub takes labels from it, and not from the folders' names.

    Returns:
        None if there is none, it has no labels, or it has those that the folders have.
    """
    files = [file for file in listing.files if file.own_name.lower() in _METADATA]
    if not 0 < len(files) <= _MAX_METADATA:
        return None
    tables = Tables(source, files, images)
    found: list[tuple[str | None, Labels]] = []
    for file in tables.files:
        table = tables.read(file)
        if table is None or "file_name" not in (table.header or (*table.rows, ())[0]):
            continue
        inside = [image for image in images if f"/{image.name}".startswith(f"/{file.folder}/")]
        inside = inside if file.folder else list(images)
        names = _Paths("", {_inside(image.name, file.folder or "."): image for image in inside})
        try:
            labels = read_labels(source, table, inside, names, ColumnNames("file_name"))
        except UserError:  # several columns may be the label: the folders decide
            continue
        if labels is not None and is_label(labels.columns.label or "", ()):
            found.append((_split_of(file.name), labels))
    if not found or _are_folders(found, images):
        return None
    layout = _layout(source, images, found)
    used = {labels.table for _, labels in found}
    layout.skipped = [entry for entry in listing.skipped if entry.name not in used]
    return layout


def _are_folders(found: Sequence[tuple[str | None, Labels]], images: Sequence[File]) -> bool:
    """Whether each label is that of one folder's images."""
    labels = {key: label for _, table in found for key, label in table.by_file.items()}
    pairs = {(labels[id(f)], f.folder.rpartition("/")[2]) for f in images if id(f) in labels}
    return len(pairs) == len({label for label, _ in pairs}) == len({name for _, name in pairs})


def _read_at_paths(
    where: str,
    table: Table,
    folder: Path,
    columns: ColumnNames,
    required: bool,
    on_progress: OnProgress | None,
) -> Layout | None:
    """Read the images at the paths that a table has; None if they are not there."""
    base = str(folder)
    with one_stage("finding the images of the table", on_progress):
        paths = (c for row in table.rows for c in row if "/" in c or "\\" in c)
        above = {p.replace("\\", "/").rpartition("/")[0] for p in paths if isinstance(p, str)}
        above = {"", *filter(_may_be_path, above)}
        places = sorted({os.path.normpath(os.path.join(base, place)) for place in above})
        files = [file for place in places for file in _files_in(place, base)]
        images = [file for file in files if _is_image(file.own_name)]
        if not images and not required:
            return None
        at = {file.name: file for file in images}
        labels = read_labels(where, table, images, _Paths(base, at), columns, required=required)
    return None if labels is None else _layout(where, images, [(None, labels)])


class _Paths:
    """Images by their paths from a folder, with or without extension.

    Args:
        folder: that the paths start from.
        at: images by their path from that folder, or by another one if they are not in it.
    """

    def __init__(self, folder: str, at: Mapping[str, File]):
        self._folder, self._at = folder, at
        counts = Counter(map(stem_of, at))
        self._stems = {
            stem: file for path, file in at.items() if counts[stem := stem_of(path)] == 1
        }

    def find(self, value: str) -> File | None:
        """Return the image at this path."""
        found = self._at.get(value) or self._stems.get(value)
        is_plain = value.isascii() and "/" not in value and "\\" not in value
        if found is None and not is_plain and _may_be_path(value):
            path = _inside(os.path.join(self._folder, value.replace("\\", "/")), self._folder)
            found = self._at.get(path) or self._stems.get(path)
        return found

    def find_loosely(self, value: str) -> File | None:
        """Return the image at the path in a URL."""
        found = (self.find(spelling.lstrip("/")) for spelling in url_spellings(value))
        return next(filter(None, found), None)


def _inside(path: str, folder: str) -> str:
    """Return how a path goes on from a folder; the path itself if it is not in the folder."""
    path, folder = os.path.normpath(path), os.path.normpath(folder)
    inside = path if folder == "." else path.removeprefix(os.path.join(folder, ""))
    return printable(inside.replace(os.sep, "/"))


def _may_be_path(cell: str) -> bool:
    return 0 < len(cell) < _MAX_PATH and "\0" not in cell


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _files_in(folder: str, base: str) -> list[File]:
    """List the files of one folder, none if it cannot be read; names are relative to the base."""
    try:
        entries = [entry for entry in os.scandir(folder or ".") if entry.is_file()]
    except (OSError, ValueError):
        return []
    prefix = _inside(os.path.join(folder, "x"), base)[:-1]
    found = []
    for entry in entries:
        with suppress(OSError):  # removed meanwhile
            content = DiskFile(entry.path, entry.stat().st_size)
            if content.size <= MAX_FILE_BYTES:
                found.append(File(prefix + printable(entry.name), content))
    return sorted(found, key=lambda file: natural_key(file.name))


def _split_of(name: str) -> str | None:
    """Return the split that a folder above a file, or the file's own name, tells."""
    for part in (*name.split("/")[:-1], Path(name).stem):
        found = split_name(part)
        if found and found.is_bare:
            return found.split
    return None


def _layout(
    source: str, images: Sequence[File], found: Sequence[tuple[str | None, Labels]]
) -> Layout:
    """Sort labelled images into classes, with the split of a column, a table or the folders.

    Args:
        source: what errors name.
        images: all that the tables may name.
        found: the split that each table's name tells, and its labels.
    """
    by_key = {id(file): file for file in images}
    tables: list[tuple[str, Labels]] = []
    for own, labels in found:
        labelled = [by_key[key] for key in labels.by_file]
        folders = {file.folder for file in labelled}
        labels.unnamed = [file for file in labels.unnamed if file.folder in folders]
        if own is None and not labels.split_of:
            labels.split_of = _splits_of_folders(labelled)
        tables.append((own or TRAIN, labels))
    _check_agreement(source, by_key, tables)
    if not any(part == TRAIN or labels.split_of for part, labels in tables):
        tables = [(TRAIN, labels) for _, labels in tables]
    placed = place_labels(source, tables)
    groups: dict[str, ClassFiles] = {TRAIN: {}, TEST: {}}
    for file in images:
        if id(file) in placed.places:
            split, label = placed.places[id(file)]
            groups[split].setdefault(label, []).append(file)
    return Layout(groups[TRAIN], groups[TEST] if placed.has_test else None, placed.notes)


def _splits_of_folders(files: Sequence[File]) -> dict[int, str]:
    """Return the split of each file by the folders that it lies in; empty unless all tell one."""
    folders = {file.folder: tuple(file.folder.split("/")) for file in files}
    shared = zip(min(folders.values()), max(folders.values()), strict=False)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], shared)))
    splits = {name: _split_of("/".join((*parts[common:], ""))) for name, parts in folders.items()}
    kinds = set(splits.values())
    if None in kinds or TRAIN not in kinds:
        return {}
    return {id(file): str(splits[file.folder]) for file in files}


def _check_agreement(
    source: str, by_key: Mapping[int, File], tables: Sequence[tuple[str, Labels]]
) -> None:
    """Refuse tables that give an image different labels."""
    first: dict[int, Labels] = {}
    for _, labels in tables:
        for key, label in labels.by_file.items():
            other = first.setdefault(key, labels)
            if other.by_file[key] != label:
                raise UserError(
                    f"{source}: {by_key[key].name} is {other.by_file[key]} in {other.table} and "
                    f"{label} in {labels.table}; correct one, or give the right one as DATA"
                )
