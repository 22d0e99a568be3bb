"""Images of Hugging Face data sets and of tables in parquet or Arrow, decoded one at a time.

The rows are those of Arrow files that are mapped into memory, so any thread can read them, and a
row is sent to another process as a path and a number. `datasets` makes such files of parquet, in
its cache.

The ``datasets`` library is optional and takes a second to import, so this module is imported only
where a data set needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.parts import Parts
from clip_randlora.data.sources import (
    MAX_EXPANSION,
    MAX_UNJUDGED_BYTES,
    File,
    LabelledFiles,
    Listing,
)
from clip_randlora.data.tables import is_label
from clip_randlora.errors import UserError, needs_extra
from clip_randlora.utils.progress import OnProgress, one_stage
from clip_randlora.utils.shared_settings import SharedSetting

with needs_extra("a data set of the Hugging Face hub", "data"):
    import datasets
    from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class HubImage:
    """The encoded image of one row."""

    rows: datasets.Dataset  # one column of images that are not decoded
    index: int
    name: str  # in errors

    @property
    def size(self) -> int:
        """Bytes, of which none is read."""
        content = self.rows.data.column(0)[self.index]["bytes"]
        return content.as_buffer().size if content.is_valid else 0

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
    where = f"{spec.file}: columns"
    for column in (image, label):
        if column not in rows.features:
            raise UserError(
                f"{where}: the data set has no {column!r}, only {', '.join(rows.features)}"
            )
    if not isinstance(rows.features[image], datasets.Image):
        raise UserError(f"{where}: {image!r} does not hold images")
    return LabelledFiles(_images(rows, image, split), *_labels(where, rows, label))


def read_tables(parts: Parts, split: str, on_progress: OnProgress | None = None) -> LabelledFiles:
    """List the images and labels of tables in parquet or Arrow; nothing is decoded.

    The labels are in the column ``label``, else in the one that holds classes or is called like a
    label.

    Args:
        parts: the tables.
        split: what their images' names begin with.
        on_progress: told that the tables are opened.

    Raises:
        UserError: they cannot be read, or it is not clear which column is the label.
    """
    rows = _open(parts, on_progress)
    if not len(rows):
        raise UserError(f"{parts.base}: the tables have no rows")
    image = _find_image(parts, rows)
    classes = [
        name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)
    ]
    named = [name for name in rows.features if is_label(name, [*rows.features])]
    candidates = classes or named
    if "label" in rows.features:
        candidates = ["label"]
    if len(candidates) != 1:
        which = " and ".join(candidates) if candidates else "none"
        raise UserError(
            f"{parts.base}: of its columns {', '.join(rows.features)}, {which} may be the label; "
            f"name one with `hub` and `columns: {{label: ...}}` in a YAML file"
        )
    return LabelledFiles(_images(rows, image, split), *_labels(parts.base, rows, candidates[0]))


def list_tables(parts: Parts, on_progress: OnProgress | None = None) -> Listing:
    """List all images of tables, in the order of their rows, without their labels.

    Raises:
        UserError: they cannot be read, or hold no images.
    """
    listing = Listing()
    for part in parts.files:  # one at a time, so that an image's name tells the file and the row
        rows = _open(Parts(part.path, (part,)), on_progress)
        listing.files += _images(rows, _find_image(parts, rows), part.name)
    return listing


def _find_image(parts: Parts, rows: datasets.Dataset) -> str:
    """Return the first column that holds images, or else the files' bytes."""
    kinds = rows.features.items()
    images = [name for name, kind in kinds if isinstance(kind, datasets.Image)]
    images += [name for name, kind in kinds if isinstance(kind, dict) and "bytes" in kind]
    images += [name for name, kind in kinds if kind == datasets.Value("binary")]
    if not images:
        columns = ", ".join(rows.features)
        raise UserError(f"{parts.base}: none of its columns ({columns}) holds images")
    return images[0]


def _images(rows: datasets.Dataset, column: str, prefix: str) -> list[File]:
    """Return the images of a column; their names are the prefix and the row's number."""
    images = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    digits = len(str(len(rows)))
    start = f"{prefix}/" if prefix else ""
    names = (f"{start}{number:0{digits}d}" for number in range(len(rows)))
    return [File(name, HubImage(images, n, name)) for n, name in enumerate(names)]


def _labels(
    where: str, rows: datasets.Dataset, column: str
) -> tuple[list[int], tuple[str, ...] | None]:
    kind, values = rows.features[column], rows[column][:]
    if isinstance(kind, datasets.ClassLabel):
        return [-1 if value is None else value for value in values], tuple(kind.names)
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[value] for value in values], names
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return values, None
    raise UserError(f"{where}: {column!r} holds neither numbers nor names of classes")


def _open(parts: Parts, on_progress: OnProgress | None) -> datasets.Dataset:
    """Open tables of one split.

    Raises:
        UserError: they cannot be read, or expand beyond the bounds of an archive.
    """
    paths = [part.path for part in parts.files]
    with one_stage("opening tables", on_progress), _without_bars.active():
        try:
            if not paths[0].lower().endswith(".parquet"):
                return datasets.concatenate_datasets(list(map(datasets.Dataset.from_file, paths)))
            for path in paths:
                _check_expansion(path)
            return datasets.load_dataset("parquet", data_files=paths, split="train")
        except UserError:
            raise
        except Exception as error:  # the libraries raise many kinds
            raise UserError(
                f"{parts.base}: the tables cannot be read ({_reason(error)})"
            ) from error


def _check_expansion(path: str) -> None:
    """Refuse a parquet file that says of itself that it expands more than images can."""
    table = parquet.read_metadata(path)
    size = sum(table.row_group(n).total_byte_size for n in range(table.num_row_groups))
    if size > max(MAX_UNJUDGED_BYTES, MAX_EXPANSION * os.path.getsize(path)):
        raise UserError(
            f"{path}: {size / 2**30:.1f} GiB when unpacked, more than {MAX_EXPANSION} times its "
            f"size; images do not compress that well"
        )


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


def _hide_bars() -> Callable[[], None]:
    """Let ``datasets`` draw no bars of its own. Return what undoes it."""
    if datasets.are_progress_bars_disabled():
        return lambda: None
    datasets.disable_progress_bars()
    return datasets.enable_progress_bars


_without_bars = SharedSetting(_hide_bars)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
