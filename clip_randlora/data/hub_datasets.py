"""Images of Hugging Face data sets: rows of Arrow tables on disk, decoded one at a time.

The ``datasets`` library is optional and takes a second to import, so this module is imported only
where a data set needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.sources import File, LabelledFiles
from clip_randlora.errors import UserError, needs_extra
from clip_randlora.utils.shared_settings import SharedSetting

with needs_extra("a data set of the Hugging Face hub", "data"):
    import datasets


@dataclass(frozen=True, slots=True)
class HubImage:
    """The encoded image of one row."""

    rows: datasets.Dataset  # one column of images that are not decoded
    index: int
    name: str  # in errors

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.read())

    def read(self) -> bytes:
        """Return the bytes of the image's file; raises ``UnreadableImage``."""
        (image,) = self.rows[self.index].values()
        if not image:
            raise UnreadableImage(self.name, "the row has no image; replace it")
        if image["bytes"] is None:  # a path in a stranger's data is not followed
            raise UnreadableImage(
                self.name, "the row holds a path, not an image; use parquet files"
            )
        return image["bytes"]


def is_on_disk(spec: DatasetSpec) -> bool:
    """Whether the data set is in the cache of ``datasets``, or the folder is there."""
    folder = _folder(spec)
    return folder.is_dir() if folder else _cached(spec) is not None


def download(spec: DatasetSpec) -> None:
    """Fetch the data set into the cache of ``datasets``.

    Raises:
        UserError: there is no network, no such data set, or no access to it.
    """
    if _folder(spec):
        raise UserError(f"{spec.hub}: a folder, there is nothing to download")
    try:
        # asked first, as `datasets` retries for long if there is no network
        huggingface_hub.HfApi().dataset_info(str(spec.hub), revision=spec.revision)
        datasets.load_dataset_builder(
            spec.hub, spec.config, revision=spec.revision
        ).download_and_prepare()
    except Exception as error:  # the libraries and the network raise many kinds
        raise UserError(
            f"{spec.name}: {spec.hub} cannot be fetched from the Hugging Face hub "
            f"({_reason(error)}); check the network, and your access to it"
        ) from error
    if not is_on_disk(spec):
        raise UserError(
            f"{spec.name}: the cache of `datasets` holds another revision of "
            f"{spec.hub}; delete {datasets.config.HF_DATASETS_CACHE} and download it again"
        )


def read_split(spec: DatasetSpec, split: str | None) -> LabelledFiles:
    """List the images of a split, by default "train"; nothing is decoded.

    Raises:
        UserError: the split or a column is not there, or is of another type.
    """
    split = split or "train"
    rows = _load(spec, split)
    image, label = spec.columns.image, spec.columns.label
    for column in (image, label):
        if column not in rows.features:
            raise UserError(
                f"{spec.file}: columns: the data set has no {column!r}, only "
                f"{', '.join(rows.features)}"
            )
    if not isinstance(rows.features[image], datasets.Image):
        raise UserError(f"{spec.file}: columns: {image!r} does not hold images")
    images = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels, names = _labels(spec, rows)
    digits = len(str(len(rows)))
    paths = [(split, f"{index:0{digits}d}") for index in range(len(rows))]
    files = [File(path, HubImage(images, n, "/".join(path))) for n, path in enumerate(paths)]
    return LabelledFiles(files, labels, names)


def _labels(spec: DatasetSpec, rows: datasets.Dataset) -> tuple[list[int], tuple[str, ...] | None]:
    column = spec.columns.label
    kind, values = rows.features[column], rows[column][:]
    if isinstance(kind, datasets.ClassLabel):
        return [-1 if value is None else value for value in values], tuple(kind.names)
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[value] for value in values], names
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return values, None
    raise UserError(f"{spec.file}: columns: {column!r} holds neither numbers nor names of classes")


def _folder(spec: DatasetSpec) -> Path | None:
    """Return the folder of parquet files that a spec names in place of a data set of the hub."""
    hub = str(spec.hub)
    return spec.path_of(hub) if hub.startswith((".", "/", "~")) else None


def _load(spec: DatasetSpec, split: str) -> datasets.Dataset:
    try:
        if folder := _folder(spec):
            return datasets.load_dataset(str(folder.resolve()), spec.config, split=split)
        builder = _cached(spec)
        if builder is None:
            raise FileNotFoundError("not in the cache")
        return builder.as_dataset(split=split)
    except Exception as error:  # the library raises many kinds
        raise UserError(
            f"{spec.file}: split {split!r} of {spec.hub} cannot be read ({_reason(error)})"
        ) from error


def _cached(spec: DatasetSpec) -> datasets.DatasetBuilder | None:
    """Return what the cache of ``datasets`` holds; the hub is not asked."""
    with _offline.active():
        try:
            builder = datasets.load_dataset_builder(spec.hub, spec.config)
        except Exception:  # not cached: the library raises many kinds
            return None
    return builder if spec.revision in (None, builder.hash) else None


def _go_offline() -> Callable[[], None]:
    """Let ``datasets`` use its cache alone, without a warning. Return what undoes it."""
    before, verbosity = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()

    def go_back() -> None:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(verbosity)

    return go_back


_offline = SharedSetting(_go_offline)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
