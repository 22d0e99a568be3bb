"""The files of a source by split and class, whether a folder, an archive or a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from clip_randlora.data import published
from clip_randlora.data.coop_splits import find_coop_split, find_split_in_folder, read_coop_split
from clip_randlora.data.dataset_spec import (
    SPEC_SUFFIXES,
    DatasetSpec,
    find_dataset_spec,
    name_classes,
    packaged_specs,
)
from clip_randlora.data.folders import (
    EXPECTED_LAYOUT,
    ClassFiles,
    Layout,
    check_class_folders,
    read_folders,
)
from clip_randlora.data.images import EXTENSIONS
from clip_randlora.data.label_files import ColumnNames, is_frame
from clip_randlora.data.parts import (
    ClassNames,
    Parts,
    find_parts,
    name_numbers,
    parts_of,
    split_parts,
)
from clip_randlora.data.projects import find_project, read_project
from clip_randlora.data.registry import DATASETS
from clip_randlora.data.shards import list_shards, read_shards
from clip_randlora.data.sources import (
    File,
    LabelledFiles,
    Listing,
    list_folder,
    list_zip,
    natural_key,
)
from clip_randlora.data.table_sources import (
    is_table_file,
    read_folder_tables,
    read_frame,
    read_metadata,
    read_table_source,
)
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import OnProgress, one_stage

Source = Any
"""A path or a name; a data frame of pandas or polars; a ``datasets.Dataset`` or ``DatasetDict``."""

HUB = "hub:"  # before the id of a data set of the Hugging Face hub


def is_hub_name(source: str | Path) -> bool:
    """Whether a source is ``hub:ORG/NAME``, not a path that exists."""
    return str(source).startswith(HUB) and not os.path.lexists(source)


def absolute_hub(source: str) -> str | None:
    """Return ``hub:./folder`` with an absolute path, ``hub:ORG/NAME`` as it is, or else None."""
    if not is_hub_name(source):
        return None
    name, at, split = source.removeprefix(HUB).partition("@")
    is_folder = name.startswith((".", "/", "~"))
    return f"{HUB}{Path(name).expanduser().resolve() if is_folder else name}{at}{split}"


def read_layout(
    source: Source,
    class_folders: str | None = None,
    on_progress: OnProgress | None = None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008  # frozen
) -> Layout:
    """Find the files of a source by split and class; no image is opened.

    Args:
        source: a folder, a ``.zip``, a project of the app, shards or tables (`parts`), a data set's
            YAML file or name, a table of labels (`table_sources`), ``hub:ORG/NAME``; or a data
            frame, a ``datasets.Dataset`` or a ``DatasetDict``. If one of CoOp's splits is there
            (`coop_splits`), it is used.
        class_folders: which folders are the classes, ``top`` or ``leaves``; by default as the
            data set's spec says, else the topmost below the splits.
        on_progress: told how many files are found, see `clip_randlora.utils.progress.OnProgress`.
        columns: which columns of a table, or of a data set of the hub, to use.

    Raises:
        UserError: the source is missing, not downloaded, or not in one of these forms.
    """
    check_class_folders(class_folders)
    if not isinstance(source, str | Path):
        return _read_object(source, columns, on_progress)
    if is_hub_name(source):
        return _read_hub(str(source), columns, on_progress)
    path = source_path(source)
    if is_table_file(path):
        return read_table_source(path, columns, on_progress)
    is_spec = path.suffix in SPEC_SUFFIXES and not path.is_dir()
    if not is_spec and (path.exists() or str(source) not in packaged_specs()):
        is_free = class_folders is None and not columns
        split = find_split_in_folder(path) if is_free and path.is_dir() else None
        if split:
            with one_stage("reading the split", on_progress):
                return read_coop_split(split)
        return _read_listed(source, class_folders, on_progress, columns)
    if columns:
        raise UserError(f"--columns: not with {source}; its YAML file has `columns`")
    spec = find_dataset_spec(source)
    split = find_coop_split(spec)
    if split is None:
        published.require_on_disk(spec)
    if split is not None:
        with one_stage("reading the split", on_progress):
            layout = read_coop_split(split)
    elif spec.folder:
        chosen = class_folders or spec.class_folders
        layout = _read_spec_folder(spec, spec.folder, chosen, on_progress)
    elif spec.shards:
        layout = _read_spec_shards(spec, spec.shards, class_folders, on_progress)
    else:
        with one_stage("reading the splits", on_progress):
            layout = _read_published(spec)
    layout.is_described = True
    layout.templates = spec.templates
    layout.held_back = spec.validation
    layout.notes += spec.notes
    return layout


def _read_spec_folder(
    spec: DatasetSpec, folder: str, class_folders: str | None, on_progress: OnProgress | None
) -> Layout:
    """Read a spec's folder of class folders, and give the classes the spec's names."""
    root = spec.path_of(folder)
    train = root / str(spec.train) if spec.train else root
    layout = _read_listed(train, class_folders, on_progress)
    if spec.test:
        layout.add_test(_read_listed(root / str(spec.test), class_folders, on_progress))
    elif spec.test_files:
        layout.train, layout.test = _split_by_pattern(layout.train, spec.test_files)
        if not layout.test:
            raise UserError(
                f"{spec.file}: test_files: no file in {root} is named like {spec.test_files}"
            )
    folders = sorted(layout.train, key=natural_key)
    classes, layout.prompts = name_classes(spec, folders, len(folders))
    renamed = dict(zip(folders, classes, strict=True))
    layout.train = {renamed[name]: layout.train[name] for name in folders}
    if layout.test is not None:
        layout.test = {renamed.get(name, name): files for name, files in layout.test.items()}
    if spec.test_only:
        layout.train, layout.test = {}, layout.train
        layout.is_test_only = layout.is_ready_made = True
    return layout


def _read_spec_shards(
    spec: DatasetSpec, shards: str, class_folders: str | None, on_progress: OnProgress | None
) -> Layout:
    """Read a spec's shards: all, or ``train`` and ``test`` in their folder."""
    root = spec.path_of(shards)
    found = [_find_shards(spec, root / str(split)) for split in (spec.train, spec.test) if split]
    train = found[0] if spec.train else _find_shards(spec, root)
    test = found[-1] if spec.test else None
    return read_shards(train, class_folders, test=test, spec=spec, on_progress=on_progress)


def _find_shards(spec: DatasetSpec, path: Path) -> Parts:
    parts = parts_of(path, list_folder(path).files) if path.is_dir() else find_parts(path)
    if parts is None or not parts.are_shards:
        raise UserError(f"{spec.file}: shards: no .tar in {path}; correct the path")
    return parts


def _split_by_pattern(files: ClassFiles, pattern: str) -> tuple[ClassFiles, ClassFiles]:
    """Split files into those for training and those whose names match a pattern."""
    train: ClassFiles = {}
    test: ClassFiles = {}
    for name, group in files.items():
        for file in group:
            chosen = test if fnmatchcase(file.own_name, pattern) else train
            chosen.setdefault(name, []).append(file)
    return train, test


def _read_published(spec: DatasetSpec) -> Layout:
    """Read the splits of a data set of the Hugging Face hub or of torchvision."""
    train = published.read_split(spec, spec.train)
    test = published.read_split(spec, spec.test) if spec.test is not None else None
    classes, prompts = name_classes(spec, train.names, max(train.labels, default=-1) + 1)
    layout = _sort_labelled(str(spec.file), classes, train, test)
    layout.prompts, layout.is_ready_made = prompts, True
    return layout


def _sort_labelled(
    where: str, classes: Sequence[str], train: LabelledFiles, test: LabelledFiles | None
) -> Layout:
    """Sort files into classes, whose names are in the order of the training images' labels."""
    layout = Layout(_by_class(where, train, classes))
    if test is not None:
        renamed = dict(zip(train.names or (), classes, strict=False))
        ordered = [renamed.get(name, name) for name in test.names] if test.names else classes
        layout.test = _by_class(where, test, ordered)
    return layout


def _by_class(where: str, split: LabelledFiles, classes: Sequence[str]) -> ClassFiles:
    """Group a split's files by the names of their labels, in the order of the labels."""
    groups: ClassFiles = {name: [] for name in classes}
    for file, label in zip(split.files, split.labels, strict=True):
        if not 0 <= label < len(classes):
            raise UserError(
                f"{where}: {file.name} has the label {label}, there are {len(classes)} classes"
            )
        groups[classes[label]].append(file)
    return groups


def _read_object(source: object, columns: ColumnNames, on_progress: OnProgress | None) -> Layout:
    """Read a data frame, or a data set of the ``datasets`` library."""
    if is_frame(source):
        return read_frame(source, columns, on_progress)
    if type(source).__module__.partition(".")[0] != "datasets":
        raise UserError(
            f"DATA: a {type(source).__name__}; give a path or a name, a data frame of pandas or "
            f"polars, or a Dataset or DatasetDict of the library datasets"
        )
    from clip_randlora.data import hub_datasets  # slow to import

    return _read_hub_splits("the data set", hub_datasets.read_object(source, columns))


def _read_hub(source: str, columns: ColumnNames, on_progress: OnProgress | None) -> Layout:
    """Read ``hub:ORG/NAME`` or ``hub:ORG/NAME@SPLIT``; it is downloaded if it is not there."""
    from clip_randlora.data import hub_datasets  # slow to import

    return _read_hub_splits(source, hub_datasets.read_hub(source, columns, on_progress))


def _read_hub_splits(
    where: str, found: tuple[LabelledFiles, LabelledFiles | None, list[str]]
) -> Layout:
    train, test, notes = found
    names = train.names
    if names is None:
        numbers = sorted({*train.labels, *(test.labels if test else ())})
        places = {number: place for place, number in enumerate(numbers)}
        for split in filter(None, (train, test)):
            split.labels = [places[number] for number in split.labels]
        names = tuple(map(str, numbers))
        notes.append(
            "The labels are only numbers, which are the names of the classes; a YAML file with "
            "`hub` and `classes` names them."
        )
    layout = _sort_labelled(where, names, train, test)
    layout.notes, layout.is_described = notes, True
    layout.leave_out_empty()
    return layout


def _read_listed(
    source: str | Path,
    class_folders: str | None,
    on_progress: OnProgress | None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008  # frozen
) -> Layout:
    listing, images, parts = list_files(source, on_progress)
    if columns and (parts is None or parts.are_shards) and not images:
        raise UserError(f"--columns: {source} has no table of images; leave it out")
    if parts is not None and parts.are_shards:
        return read_shards(parts, class_folders, on_progress=on_progress)
    if parts is not None:
        return _read_tables(parts, columns, on_progress)
    project = find_project(listing)
    if project is not None:
        return read_project(str(source), project, listing, images)
    if not images:
        raise UserError(f"{source}: no images found; {EXPECTED_LAYOUT}")
    with one_stage("sorting into classes", on_progress):
        if columns:
            return read_folder_tables(str(source), listing, images, columns)
        if class_folders is None and (layout := read_metadata(str(source), listing, images)):
            return layout
        return read_folders(str(source), listing, images, class_folders)


def _read_tables(parts: Parts, columns: ColumnNames, on_progress: OnProgress | None) -> Layout:
    """Read tables in parquet or Arrow that no spec describes."""
    from clip_randlora.data import hub_datasets  # slow to import

    train_parts, test_parts, notes = split_parts(parts.base, parts)
    train = hub_datasets.read_tables(train_parts, "train", columns, on_progress)
    test = None
    if test_parts:
        test = hub_datasets.read_tables(test_parts, "test", columns, on_progress)
    names = ClassNames(parts.base, train.names or ())
    if train.names is None:
        highest = max(range(len(train.labels)), key=train.labels.__getitem__, default=0)
        names = name_numbers(parts, train.labels[highest], train.files[highest].name)
    layout = _sort_labelled(names.where, names.classes, train, test)
    layout.prompts, layout.notes, layout.is_described = names.prompts, notes, True
    layout.leave_out_empty()
    return layout


def list_source(
    source: str | Path, on_progress: OnProgress | None = None
) -> tuple[Listing, list[File]]:
    """List a folder, an archive, shards, tables or a bundled set.

    Args:
        source: what to list.
        on_progress: told how many files are found, see `clip_randlora.utils.progress.OnProgress`.

    Returns:
        All files, and those that are images by their names; the others are in ``skipped``.

    Raises:
        UserError: the source is missing or cannot be read.
    """
    listing, images, parts = list_files(source, on_progress)
    if parts is None:
        return listing, images
    if parts.are_shards:
        listing = list_shards(parts, on_progress)
    else:
        from clip_randlora.data import hub_datasets  # slow to import

        listing = hub_datasets.list_tables(parts, on_progress)
    return listing, listing.files


def list_files(
    source: str | Path, on_progress: OnProgress | None = None
) -> tuple[Listing, list[File], Parts | None]:
    """List a source, but not the images in shards and tables.

    Args and errors are those of `list_source`.

    Returns:
        All files; the images; and the shards or tables, if it holds them and no images.
    """
    path = source_path(source)
    if (parts := find_parts(source)) is not None:
        return Listing(), [], parts
    if path.is_dir():
        listing = list_folder(path, on_progress)
    elif path.is_file():
        listing = list_zip(path, on_progress)
    elif path.exists():
        raise UserError(f"{source}: neither a folder nor a file; give a folder or a .zip")
    elif str(source) in DATASETS:
        listing = DATASETS[str(source)].load()
    else:
        raise UserError(
            f"{source}: no such folder, .zip, data set file or name "
            f"({', '.join([*DATASETS, *packaged_specs()])}); give a folder with one folder of "
            f"images per class"
        )
    images: list[File] = []
    others: list[File] = []
    for file in listing.files:
        is_image = os.path.splitext(file.own_name)[1].lower() in EXTENSIONS
        (images if is_image else others).append(file)
    if not images and path.is_dir() and (parts := parts_of(path, others)) is not None:
        return listing, images, parts
    for file in others:
        extension = os.path.splitext(file.own_name)[1].lower()
        listing.skip(file.name, f"not an image ({extension or 'no extension'})")
    return listing, images, None


def source_path(source: str | Path) -> Path:
    """Return a source as a path, which need not exist.

    Raises:
        UserError: it cannot be a path: too long, empty, with a NUL, or of an unknown ``~user``.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{str(source)[:60]!r}: no path ({reason}); give a folder, a .zip or a name"
        ) from None
    if not str(source).strip():
        raise UserError("DATA: an empty name; give a folder, a .zip or a name")
    return path
