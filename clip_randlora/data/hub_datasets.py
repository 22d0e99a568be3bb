"""Images of Hugging Face data sets and of tables in parquet or Arrow, decoded one at a time.

The rows are those of Arrow files that are mapped into memory, so any thread can read them, and a
row is sent to another process as a path and a number. `datasets` makes such files of parquet, in
its cache.

The ``datasets`` library is optional and takes a second to import, so this module is imported only
where a data set needs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.data.folder_names import EVALUATION, TEST, TRAIN, VALIDATION, split_name
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.label_files import ColumnNames
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
from clip_randlora.utils.hub import explain
from clip_randlora.utils.progress import OnProgress, one_stage
from clip_randlora.utils.shared_settings import SharedSetting
from clip_randlora.utils.wording import join_names

with needs_extra("a data set of the Hugging Face hub", "data"):
    import datasets
    from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class HubImage:
    """The encoded image of one row."""

    rows: datasets.Dataset  # one column of images that are not decoded
    index: int
    name: str  # in errors
    root: str | None = None  # the folder of files that a row may name; "" for any

    @property
    def size(self) -> int:
        """Bytes, of which none is read."""
        image = self.rows.data.column(0)[self.index]
        if image["bytes"].is_valid:
            return image["bytes"].as_buffer().size
        path = self._file(image["path"].as_py())
        return path.stat().st_size if path and path.is_file() else 0

    def read(self) -> bytes | Path:
        """Return the image's file, or its bytes; raises ``UnreadableImage``."""
        (image,) = self.rows[self.index].values()
        if not image:
            raise UnreadableImage(self.name, "the row has no image; replace it")
        if image["bytes"] is None and (path := self._file(image["path"])):
            return path
        if image["bytes"] is None:  # a path in a stranger's data is not followed
            raise UnreadableImage(
                self.name, "the row holds a path, not an image; use parquet files"
            )
        return image["bytes"]

    def _file(self, path: str | None) -> Path | None:
        """Return the file that a row names, if it is in the data set's own folder."""
        if not path or self.root is None:
            return None
        if not self.root:
            return Path(path)
        file = os.path.normpath(path)
        return Path(file) if file.startswith(os.path.join(self.root, "")) else None


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
        why = explain(error, str(spec.hub), spec.revision, kind="datasets/") or (
            f"{_reason(error)}; check the network, and your access to it"
        )
        raise UserError(
            f"{spec.name}: {spec.hub} cannot be fetched from the Hugging Face hub: {why}"
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


def read_object(
    value: object, columns: ColumnNames
) -> tuple[LabelledFiles, LabelledFiles | None, list[str]]:
    """List the images of a ``Dataset`` or ``DatasetDict``, as `read_hub` does.

    Raises:
        UserError: it is of another kind, or as for `read_hub`.
    """
    if isinstance(value, datasets.Dataset):
        return _read_splits("the data set", {str(value.split or "train"): value}, columns, "")
    if isinstance(value, datasets.DatasetDict) and value:
        return _read_splits("the data set", value, columns, "")
    raise UserError(
        f"the data set: a {type(value).__name__}; give a Dataset, or a DatasetDict with splits"
    )


def read_hub(
    source: str, columns: ColumnNames, on_progress: OnProgress | None = None
) -> tuple[LabelledFiles, LabelledFiles | None, list[str]]:
    """List the images of a data set of the hub, or of a local folder in the hub's form.

    It is taken from the cache of ``datasets``, else from that of ``huggingface_hub``, else it is
    downloaded.

    Args:
        source: ``hub:ORG/NAME`` or ``hub:./folder``; ``@SPLIT`` at the end takes one split.
        columns: which to use; by default those that hold images and classes.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Returns:
        The training images, the test images or None, and notes.

    Raises:
        UserError: it is not there and cannot be downloaded, or it is not clear which split or
            column is meant.
    """
    name, _, split = source.partition(":")[2].partition("@")
    is_local = name.startswith((".", "/", "~"))
    hub = str(Path(name).expanduser().resolve()) if is_local else name
    if not is_local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"{source}: no name of a data set; give hub:ORG/NAME or hub:./FOLDER")
    if is_local and not Path(hub).is_dir():
        raise UserError(f"{source}: no such folder; correct it")
    spec = DatasetSpec(name=name, hub=hub, file=Path(source))
    with one_stage("opening the data set", on_progress), _without_bars.active():
        splits, root = _open_hub(spec, is_local)
    if split and split not in splits:
        raise UserError(f"{source}: no split {split!r}, only {', '.join(splits)}")
    return _read_splits(source, {split: splits[split]} if split else splits, columns, root)


def _open_hub(spec: DatasetSpec, is_local: bool) -> tuple[Mapping[str, datasets.Dataset], str]:
    """Return the splits of a data set, and the folder of the files that its rows may name."""
    folder = str(spec.hub) if is_local else None
    if folder is None and (builder := _cached(spec)) is None:
        folder = _snapshot(str(spec.hub))
        if folder is None:
            download(spec)
            builder = _cached(spec)
    try:
        if folder is None:
            assert builder is not None
            repository = f"datasets--{str(spec.hub).replace('/', '--')}"
            root = os.path.join(huggingface_hub.constants.HF_HUB_CACHE, repository)
            return _as_splits(builder.as_dataset()), root
        with _offline.active():
            return _as_splits(datasets.load_dataset(folder)), folder
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{spec.file}: cannot be read ({_reason(error)})") from error


def _as_splits(found: datasets.Dataset | datasets.DatasetDict) -> Mapping[str, datasets.Dataset]:
    return {str(found.split): found} if isinstance(found, datasets.Dataset) else found


def _snapshot(hub: str) -> str | None:
    """Return the folder of a data set in the cache of ``huggingface_hub``; the hub is not asked."""
    try:
        return huggingface_hub.snapshot_download(hub, repo_type="dataset", local_files_only=True)
    except Exception:  # not there: the library raises several kinds
        return None


def _read_splits(
    where: str, splits: Mapping[str, datasets.Dataset], columns: ColumnNames, root: str
) -> tuple[LabelledFiles, LabelledFiles | None, list[str]]:
    """List the images of the training split and of the first one to test on that has labels."""
    if columns.split:
        raise UserError(f"{where}: --columns split: it has splits of its own, {', '.join(splits)}")
    kinds = {name: found.split if (found := split_name(name)) else None for name in splits}
    train = next((name for name, kind in kinds.items() if kind == TRAIN), None)
    if train is None and len(splits) > 1:
        raise UserError(
            f"{where}: no split is for training; say which with @, as hub:ORG/NAME@"
            f"{next(iter(splits))} (there are {', '.join(splits)})"
        )
    train = train or next(iter(splits))
    notes: list[str] = []
    found_train = _read_rows(where, splits[train], columns, train, root, notes)
    if not found_train.labels:
        raise UserError(f"{where}: no row of the split {train} has a label")
    order = (TEST, EVALUATION, VALIDATION)
    rest = sorted((n for n in kinds if kinds[n] in order), key=lambda n: order.index(str(kinds[n])))
    for name in rest if len(splits) > 1 else ():
        test = _read_rows(where, splits[name], columns, name, root, notes)
        if test.labels:
            unused = [other for other in splits if other not in (train, name)]
            if unused:
                notes.append(f"{name} is the test split; {', '.join(unused)} left out.")
            return found_train, test, notes
    return found_train, None, notes


def _read_rows(
    where: str,
    rows: datasets.Dataset,
    columns: ColumnNames,
    split: str,
    root: str,
    notes: list[str],
) -> LabelledFiles:
    """List the images of one split that have a label, and note how many have none."""
    image = _find_image(where, rows, columns.path)
    label = _find_label(where, rows, columns.label)
    files = _images(rows, image, split, root)
    kind, values = rows.features[label], rows[label][:]
    unlabelled = [
        n for n, value in enumerate(values) if value is None or value == "" or value == -1
    ]
    if unlabelled:
        named = join_names(files[n].name for n in unlabelled)
        notes.append(f"{len(unlabelled)} rows of {split} have no label: left out ({named}).")
        left = set(unlabelled)
        files = [file for n, file in enumerate(files) if n not in left]
        values = [value for n, value in enumerate(values) if n not in left]
    notes.append(f"{split}: the images are in the column {image}, the labels in {label}.")
    return LabelledFiles(files, *_label_numbers(where, kind, label, values))


def read_tables(
    parts: Parts,
    split: str,
    columns: ColumnNames | None = None,
    on_progress: OnProgress | None = None,
) -> LabelledFiles:
    """List the images and labels of tables in parquet or Arrow; nothing is decoded.

    The labels are in the column ``label``, else in the one that holds classes or is called like a
    label.

    Args:
        parts: the tables.
        split: what their images' names begin with.
        columns: which to use, where they are said.
        on_progress: told that the tables are opened.

    Raises:
        UserError: they cannot be read, or it is not clear which column is the label.
    """
    rows = _open(parts, on_progress)
    if not len(rows):
        raise UserError(f"{parts.base}: the tables have no rows")
    columns = columns or ColumnNames()
    if columns.split:
        raise UserError(f"{parts.base}: --columns split: the files' names tell the split")
    image = _find_image(parts.base, rows, columns.path)
    label = _find_label(parts.base, rows, columns.label)
    return LabelledFiles(_images(rows, image, split), *_labels(parts.base, rows, label))


def list_tables(parts: Parts, on_progress: OnProgress | None = None) -> Listing:
    """List all images of tables, in the order of their rows, without their labels.

    Raises:
        UserError: they cannot be read, or hold no images.
    """
    listing = Listing()
    for part in parts.files:  # one at a time, so that an image's name tells the file and the row
        rows = _open(Parts(part.path, (part,)), on_progress)
        listing.files += _images(rows, _find_image(parts.base, rows), part.name)
    return listing


def _find_label(where: str, rows: datasets.Dataset, said: str | None) -> str:
    """Return the column of the labels: ``label``, else of classes, else called like a label."""
    if said is not None:
        return _require(where, rows, said)
    kinds = rows.features.items()
    classes = [name for name, kind in kinds if isinstance(kind, datasets.ClassLabel)]
    candidates = classes or [name for name, _ in kinds if is_label(name, [*rows.features])]
    if "label" in rows.features:
        candidates = ["label"]
    if len(candidates) != 1:
        which = " and ".join(candidates) if candidates else "none"
        raise UserError(
            f"{where}: of its columns {', '.join(rows.features)}, {which} may be the label; say "
            f"which is with --columns label=COLUMN"
        )
    return candidates[0]


def _require(where: str, rows: datasets.Dataset, column: str) -> str:
    if column not in rows.features:
        raise UserError(f"{where}: no column {column!r}, only {', '.join(rows.features)}")
    return column


def _find_image(where: str, rows: datasets.Dataset, said: str | None = None) -> str:
    """Return the first column that holds images, or else the files' bytes."""
    kinds = rows.features.items()
    images = [name for name, kind in kinds if isinstance(kind, datasets.Image)]
    images += [name for name, kind in kinds if isinstance(kind, dict) and "bytes" in kind]
    images += [name for name, kind in kinds if kind == datasets.Value("binary")]
    if said is not None and _require(where, rows, said) not in images:
        raise UserError(f"{where}: the column {said!r} does not hold images")
    if not images:
        columns = ", ".join(rows.features)
        raise UserError(f"{where}: none of its columns ({columns}) holds images")
    return said or images[0]


def _images(
    rows: datasets.Dataset, column: str, prefix: str, root: str | None = None
) -> list[File]:
    """Return the images of a column; their names are the prefix and the row's number."""
    images = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    places: Sequence[int] = range(len(images))
    if (indices := images._indices) is not None:  # rows were selected or shuffled
        places = indices.column(0).to_pylist()
        images = datasets.Dataset(images.data, images.info, images.split)
    digits = len(str(len(rows)))
    start = f"{prefix}/" if prefix else ""
    names = (f"{start}{number:0{digits}d}" for number in range(len(rows)))
    return [
        File(name, HubImage(images, place, name, root))
        for place, name in zip(places, names, strict=True)
    ]


def _labels(
    where: str, rows: datasets.Dataset, column: str
) -> tuple[list[int], tuple[str, ...] | None]:
    return _label_numbers(where, rows.features[column], column, rows[column][:])


def _label_numbers(
    where: str, kind: object, column: str, values: Sequence[Any]
) -> tuple[list[int], tuple[str, ...] | None]:
    if isinstance(kind, datasets.ClassLabel):
        return [-1 if value is None else value for value in values], tuple(kind.names)
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[value] for value in values], names
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return list(values), None
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
