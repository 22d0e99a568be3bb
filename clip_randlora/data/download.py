"""Whether a described data set is on this machine, and how it gets there."""

from __future__ import annotations

from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.errors import UserError


def is_on_disk(spec: DatasetSpec) -> bool:
    """Whether the images are on this machine."""
    if spec.folder:
        return spec.path_of(spec.folder).is_dir()
    if spec.hub:
        from clip_randlora.data import hub_datasets  # imported only where it is needed, as below

        return hub_datasets.is_on_disk(spec)
    from clip_randlora.data import torchvision_sets

    return torchvision_sets.is_on_disk(spec)


def download(spec: DatasetSpec) -> None:
    """Fetch the images through the library that knows the source.

    Raises:
        UserError: nothing can be downloaded, or the library could not.
    """
    if spec.folder and not is_on_disk(spec):
        raise UserError(f"{spec.name}: {_how_to_get(spec)}")
    if spec.folder:
        return
    if spec.hub:
        from clip_randlora.data import hub_datasets

        hub_datasets.download(spec)
    else:
        from clip_randlora.data import torchvision_sets

        torchvision_sets.download(spec)


def require_on_disk(spec: DatasetSpec) -> None:
    """Raise a ``UserError`` that says how to get the images, unless they are there."""
    if not is_on_disk(spec):
        raise UserError(f"{spec.name}: not on this machine; {_how_to_get(spec)}")


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.folder:
        folder = spec.path_of(spec.folder)
        otherwise = f"correct `folder` in {spec.file}"
        return f"{spec.how_to_get or otherwise}; there is no folder {folder}"
    size = spec.download_megabytes
    source = spec.file.stem if spec.is_packaged else spec.file
    return (
        f"`clip-randlora datasets {source} --download` fetches it"
        f"{f' ({show_size(size)})' if size else ''}"
    )


def show_size(megabytes: int) -> str:
    """Megabytes as a text, from 1,000 on in gigabytes."""
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
