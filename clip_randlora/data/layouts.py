"""What a source holds by split and class: folders, archives, named and described sets."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from clip_randlora.data.dataset import Skipped
from clip_randlora.data.dataset_spec import (
    SUFFIXES,
    DatasetSpec,
    find_dataset_spec,
    name_classes,
    packaged_specs,
)
from clip_randlora.data.download import require_on_disk
from clip_randlora.data.folders import EXPECTED, check_class_folders, read_folders
from clip_randlora.data.images import EXTENSIONS
from clip_randlora.data.registry import DATASETS
from clip_randlora.data.sources import (
    ClassFiles,
    File,
    LabelledFiles,
    Layout,
    Listing,
    list_folder,
    list_zip,
    natural_key,
)
from clip_randlora.errors import UserError


def read_layout(source: str | Path, class_folders: str | None = None) -> Layout:
    """Read what a source holds; no image is opened.

    Args:
        source: a folder, a ``.zip``, a YAML file that describes a set, or the name of a set.
        class_folders: which folders are the classes, ``top`` or ``leaves``; by default what the
            description says, else the topmost below the splits.

    Raises:
        UserError: the source is missing, not downloaded, or not in one of these forms.
    """
    check_class_folders(class_folders)
    path = _path_of(source)
    is_file = path.suffix in SUFFIXES and not path.is_dir()
    if is_file or (not path.exists() and str(source) in packaged_specs()):
        return _read_described(find_dataset_spec(source), class_folders)
    return _read_listed(source, class_folders)


def _read_described(spec: DatasetSpec, class_folders: str | None) -> Layout:
    """Read what a description describes, with its class names, templates and notes."""
    require_on_disk(spec)
    if spec.folder:
        layout = _described_folder(spec, class_folders or spec.class_folders)
    else:
        layout = _ready_made(spec)
    layout.templates = spec.templates
    layout.notes += spec.notes
    return layout


def _described_folder(spec: DatasetSpec, class_folders: str | None) -> Layout:
    """Read a folder of class folders, and give the classes the names of the description."""
    root = spec.path_of(spec.folder)
    train = root / spec.train if spec.train else root
    layout = _read_listed(train, class_folders)
    if spec.test:
        other = _read_listed(root / spec.test, class_folders)
        layout.test = other.test or other.train
        layout.notes += other.notes
        layout.skipped += other.skipped
    elif spec.test_files:
        layout.train, layout.test = _split_by_name(layout.train, spec.test_files)
        if not layout.test:
            raise UserError(
                f"{spec.file}: test_files: no file in {root} is named like {spec.test_files}"
            )
    folders = sorted(layout.train, key=natural_key)
    classes, layout.prompts = name_classes(spec, folders, len(folders))
    renamed = dict(zip(folders, classes, strict=True))
    layout.train = {renamed[folder]: layout.train[folder] for folder in folders}
    if layout.test is not None:
        layout.test = {renamed.get(name, name): files for name, files in layout.test.items()}
    layout.is_described = True
    return layout


def _split_by_name(files: ClassFiles, pattern: str) -> tuple[ClassFiles, ClassFiles]:
    """Set the files apart whose names are like the pattern."""
    train: ClassFiles = {}
    test: ClassFiles = {}
    for name, group in files.items():
        for file in group:
            chosen = test if fnmatchcase(file.parts[-1], pattern) else train
            chosen.setdefault(name, []).append(file)
    return train, test


def _ready_made(spec: DatasetSpec) -> Layout:
    """Read the splits of a data set of the Hugging Face hub or of torchvision."""
    if spec.hub:
        from clip_randlora.data.hub_datasets import (
            read_split,  # imported only where they are needed
        )
    else:
        from clip_randlora.data.torchvision_sets import read_split
    train = read_split(spec, spec.train)
    labels = max(train.labels, default=-1) + 1
    classes, prompts = name_classes(spec, train.names, labels)
    layout = Layout(_by_class(spec, train, classes), prompts=prompts)
    if spec.test is not None:
        test = read_split(spec, spec.test)
        named = dict(zip(train.names or (), classes, strict=False))
        ordered = tuple(named.get(name, name) for name in test.names) if test.names else classes
        layout.test = _by_class(spec, test, ordered)
    layout.is_described = layout.is_ready_made = True
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


def list_source(source: str | Path) -> tuple[Listing, list[File]]:
    """List a folder, an archive or a bundled set, and which of its files are images by their name.

    The files that are not are among the listing's ``skipped``.

    Raises:
        UserError: the source is missing or cannot be read.
    """
    listing, images = _list(source), []
    for file in listing.files:
        if _extension(file) in EXTENSIONS:
            images.append(file)
        else:
            listing.skipped.append(Skipped(file.name, _not_image(_extension(file))))
    return listing, images


def _read_listed(source: str | Path, class_folders: str | None) -> Layout:
    listing, images = list_source(source)
    if not images:
        raise UserError(f"{source}: no images found; {EXPECTED}")
    return read_folders(str(source), listing, images, class_folders)


def _path_of(source: str | Path) -> Path:
    """A source as a path, or the one line that says that it can be none."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown ~user
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{str(source)[:60]!r}: no path ({reason}); give a folder, a .zip or a name"
        ) from None
    if not str(source).strip():
        raise UserError("DATA: an empty name; give a folder, a .zip or a name")
    return path


def _list(source: str | Path) -> Listing:
    path = _path_of(source)
    if path.is_dir():
        return list_folder(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{source}: neither a folder nor a file; give a folder or a .zip")
    if path.exists():
        return list_zip(path)
    if str(source) in DATASETS:
        return DATASETS[str(source)].load()
    raise UserError(
        f"{source}: no such folder, .zip, description or name "
        f"({', '.join([*DATASETS, *packaged_specs()])}); "
        "give a folder with one folder of images per class"
    )


def _extension(file: File) -> str:
    return Path(file.parts[-1]).suffix.lower()


def _not_image(extension: str) -> str:
    return f"not an image ({extension or 'no extension'})"
