"""The files of a source by split and class, whether a folder, an archive or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

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
from clip_randlora.data.projects import find_project, read_project
from clip_randlora.data.registry import DATASETS
from clip_randlora.data.sources import (
    File,
    LabelledFiles,
    Listing,
    list_folder,
    list_zip,
    natural_key,
)
from clip_randlora.errors import UserError


def read_layout(source: str | Path, class_folders: str | None = None) -> Layout:
    """Find the files of a source by split and class; no image is opened.

    Args:
        source: a folder, a ``.zip``, a project of the app, a data set's YAML file or name. If one
            of CoOp's splits is there (`coop_splits`), it is used.
        class_folders: which folders are the classes, ``top`` or ``leaves``; by default as the
            data set's spec says, else the topmost below the splits.

    Raises:
        UserError: the source is missing, not downloaded, or not in one of these forms.
    """
    check_class_folders(class_folders)
    path = source_path(source)
    is_spec = path.suffix in SPEC_SUFFIXES and not path.is_dir()
    if not is_spec and (path.exists() or str(source) not in packaged_specs()):
        split = find_split_in_folder(path) if path.is_dir() and class_folders is None else None
        return read_coop_split(split) if split else _read_listed(source, class_folders)
    spec = find_dataset_spec(source)
    split = find_coop_split(spec)
    if split is None:
        published.require_on_disk(spec)
    if split is not None:
        layout = read_coop_split(split)
    elif spec.folder:
        layout = _read_spec_folder(spec, spec.folder, class_folders or spec.class_folders)
    else:
        layout = _read_published(spec)
    layout.is_described = True
    layout.templates = spec.templates
    layout.held_back = spec.validation
    layout.notes += spec.notes
    return layout


def _read_spec_folder(spec: DatasetSpec, folder: str, class_folders: str | None) -> Layout:
    """Read a spec's folder of class folders, and give the classes the spec's names."""
    root = spec.path_of(folder)
    layout = _read_listed(root / str(spec.train) if spec.train else root, class_folders)
    if spec.test:
        layout.add_test(_read_listed(root / str(spec.test), class_folders))
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


def _split_by_pattern(files: ClassFiles, pattern: str) -> tuple[ClassFiles, ClassFiles]:
    """Split files into those for training and those whose names match a pattern."""
    train: ClassFiles = {}
    test: ClassFiles = {}
    for name, group in files.items():
        for file in group:
            chosen = test if fnmatchcase(file.parts[-1], pattern) else train
            chosen.setdefault(name, []).append(file)
    return train, test


def _read_published(spec: DatasetSpec) -> Layout:
    """Read the splits of a data set of the Hugging Face hub or of torchvision."""
    train = published.read_split(spec, spec.train)
    classes, prompts = name_classes(spec, train.names, max(train.labels, default=-1) + 1)
    layout = Layout(_by_class(spec, train, classes), prompts=prompts, is_ready_made=True)
    if spec.test is not None:
        test = published.read_split(spec, spec.test)
        renamed = dict(zip(train.names or (), classes, strict=False))
        ordered = [renamed.get(name, name) for name in test.names] if test.names else classes
        layout.test = _by_class(spec, test, ordered)
    return layout


def _by_class(spec: DatasetSpec, split: LabelledFiles, classes: Sequence[str]) -> ClassFiles:
    """Group a split's files by the names of their labels, in the order of the labels."""
    groups: ClassFiles = {name: [] for name in classes}
    for file, label in zip(split.files, split.labels, strict=True):
        if not 0 <= label < len(classes):
            raise UserError(
                f"{spec.file}: {file.name} has the label {label}, there are {len(classes)} classes"
            )
        groups[classes[label]].append(file)
    return groups


def _read_listed(source: str | Path, class_folders: str | None) -> Layout:
    listing, images = list_source(source)
    project = find_project(listing)
    if project is not None:
        return read_project(str(source), project, listing, images)
    if not images:
        raise UserError(f"{source}: no images found; {EXPECTED_LAYOUT}")
    return read_folders(str(source), listing, images, class_folders)


def list_source(source: str | Path) -> tuple[Listing, list[File]]:
    """List a folder, an archive or a bundled set.

    Returns:
        All files, and those that are images by their names; the others are in ``skipped``.

    Raises:
        UserError: the source is missing or cannot be read.
    """
    path = source_path(source)
    if path.is_dir():
        listing = list_folder(path)
    elif path.is_file():
        listing = list_zip(path)
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
    images = []
    for file in listing.files:
        extension = Path(file.parts[-1]).suffix.lower()
        if extension in EXTENSIONS:
            images.append(file)
        else:
            listing.skip(file.name, f"not an image ({extension or 'no extension'})")
    return listing, images


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
