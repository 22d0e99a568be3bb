"""Whether a described data set is on this machine, and how it gets there."""

from __future__ import annotations

from clip_randlora.data.dataset_spec import Description
from clip_randlora.errors import UserError


def is_on_disk(description: Description) -> bool:
    """Whether the images are on this machine."""
    if description.folder:
        return description.path_of(description.folder).is_dir()
    if description.hub:
        from clip_randlora.data import hub_datasets  # imported only where it is needed, as below

        return hub_datasets.is_on_disk(description)
    from clip_randlora.data import torchvision_sets

    return torchvision_sets.is_on_disk(description)


def download(description: Description) -> None:
    """Fetch the images through the library that knows the source.

    Raises:
        UserError: nothing can be downloaded, or the library could not.
    """
    if description.folder and not is_on_disk(description):
        raise UserError(f"{description.name}: {_how_to_get(description)}")
    if description.folder:
        return
    if description.hub:
        from clip_randlora.data import hub_datasets

        hub_datasets.download(description)
    else:
        from clip_randlora.data import torchvision_sets

        torchvision_sets.download(description)


def require_on_disk(description: Description) -> None:
    """Raise a ``UserError`` that says how to get the images, unless they are there."""
    if not is_on_disk(description):
        raise UserError(f"{description.name}: not on this machine; {_how_to_get(description)}")


def _how_to_get(description: Description) -> str:
    if description.folder:
        folder = description.path_of(description.folder)
        otherwise = f"correct `folder` in {description.file}"
        return f"{description.how_to_get or otherwise}; there is no folder {folder}"
    size = description.download_megabytes
    source = description.file.stem if description.is_packaged else description.file
    return (
        f"`clip-randlora datasets {source} --download` fetches it"
        f"{f' ({show_size(size)})' if size else ''}"
    )


def show_size(megabytes: int) -> str:
    """Megabytes as a text, from 1,000 on in gigabytes."""
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
