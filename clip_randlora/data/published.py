"""Published data sets: whether they are on this machine, how they get there, and their splits."""

from __future__ import annotations

from types import ModuleType

from clip_randlora.data.coop_splits import find_coop_split
from clip_randlora.data.dataset_spec import Arguments, DatasetSpec
from clip_randlora.data.parts import is_pattern
from clip_randlora.data.sources import LabelledFiles
from clip_randlora.errors import UserError


def is_on_disk(spec: DatasetSpec) -> bool:
    """Whether the images are on this machine."""
    if find_coop_split(spec):
        return True
    if spec.folder:
        return spec.path_of(spec.folder).is_dir()
    if spec.shards:
        path = spec.path_of(spec.shards)
        return path.exists() or is_pattern(path)
    return _library(spec).is_on_disk(spec)


def download(spec: DatasetSpec) -> None:
    """Fetch the images through the library of the data set.

    Raises:
        UserError: nothing can be downloaded, or the library could not do it.
    """
    if not (spec.folder or spec.shards):
        _library(spec).download(spec)
    elif not is_on_disk(spec):
        raise UserError(f"{spec.name}: {_how_to_get(spec)}")


def require_on_disk(spec: DatasetSpec) -> None:
    """Raise a ``UserError`` that says how to get the images, unless they are on this machine."""
    if not is_on_disk(spec):
        raise UserError(f"{spec.name}: not on this machine; {_how_to_get(spec)}")


def read_split(spec: DatasetSpec, split: str | Arguments | None) -> LabelledFiles:
    """List the images of a split of a data set of the hub or of torchvision.

    Raises:
        UserError: the split is not there, or is not in the form that the spec states.
    """
    return _library(spec).read_split(spec, split)


def _library(spec: DatasetSpec) -> ModuleType:
    """Return the module for the spec's source; their libraries are slow to import."""
    if spec.hub:
        from clip_randlora.data import hub_datasets

        return hub_datasets
    from clip_randlora.data import torchvision_sets

    return torchvision_sets


def _how_to_get(spec: DatasetSpec) -> str:
    if place := spec.folder or spec.shards:
        field = "folder" if spec.folder else "shards"
        advice = spec.how_to_get or f"correct `{field}` in {spec.file}"
        return f"{advice}; there is no {'folder ' * bool(spec.folder)}{spec.path_of(place)}"
    size = f" ({show_size(spec.download_megabytes)})" if spec.download_megabytes else ""
    name = spec.file.stem if spec.is_packaged else spec.file
    return f"`clip-randlora datasets {name} --download` fetches it{size}"


def show_size(megabytes: int) -> str:
    """Return a size as 900 MB or, from 1,000 MB on, as 1.2 GB."""
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
