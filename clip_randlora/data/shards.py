"""WebDataset: tar archives in which the files of a sample have one name up to the first dot.

``0001.jpg`` and ``0001.cls`` are a sample, as in the ``webdataset`` library, whose files these are.
That library streams a shard from its beginning, shuffles within a buffer, and goes on after a break
with other images. Here every image is drawn by its place in the whole set, and a resumed training
sees the images that it would have seen. So the headers of a shard are read once, with ``tarfile``,
and an image is read from its offset when it is needed. Nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clip_randlora.data.dataset import Skipped
from clip_randlora.data.dataset_spec import DatasetSpec, name_classes
from clip_randlora.data.folder_names import TRAIN, bare_splits, pick_test_split
from clip_randlora.data.folders import ClassFiles, Layout, read_folders
from clip_randlora.data.images import EXTENSIONS, MAX_FILE_BYTES, UnreadableImage, oversize_reason
from clip_randlora.data.label_files import is_csv
from clip_randlora.data.parts import (
    Part,
    Parts,
    name_numbers,
    split_parts,
)
from clip_randlora.data.sources import MAX_DEPTH, File, Listing, natural_key, printable, safe_parts
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import OnProgress, report_progress
from clip_randlora.utils.wording import join_names

MAX_FILES = 30_000_000  # in all shards together; a sample has two or three
_MAX_TEXT = 2**20  # bytes of a .cls, a .json, or an extended header
_MAX_NAME = 200  # characters of a class name
_HEAD = 2**16  # bytes
_LABEL_FIELDS = ("label", "class", "cls")

Label = int | str
Groups = dict[Label, list[File]]


@dataclass(frozen=True, slots=True)
class ShardMember:
    """A file in a shard, which is read from its place; errors call it ``name``.

    The shard is opened for each reading, which takes some ten microseconds. So any thread and any
    process can read, and no number of shards runs out of open files.
    """

    shard: Part
    offset: int
    size: int  # bytes
    name: str

    def read(self) -> bytes:
        """Return the file's bytes; raises ``UnreadableImage``."""
        return self._read(self.size)

    def read_head(self) -> bytes:
        """Return the first bytes, which tell format and size of most images."""
        return self._read(min(self.size, _HEAD))

    def _read(self, size: int) -> bytes:
        try:
            with open(self.shard.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(size)
        except OSError as error:
            reason = f"{self.shard.path} cannot be read ({error.strerror}); check it"
            raise UnreadableImage(self.name, reason) from None
        if len(content) < size:
            reason = f"{self.shard.path} has become shorter since it was listed; copy it again"
            raise UnreadableImage(self.name, reason)
        return content


def read_shards(
    parts: Parts,
    class_folders: str | None = None,
    *,
    test: Parts | None = None,
    spec: DatasetSpec | None = None,
    on_progress: OnProgress | None = None,
) -> Layout:
    """Sort the images of shards into splits and classes.

    The label of a sample is in its ``.cls``, a number or a name, else in a field of its ``.json``
    (``label``, ``class`` or ``cls``). If no sample has a label, the folders in the shards are
    sorted like those of a folder. How a set is cut into shards makes no difference: a class's
    images are in the natural order of their paths in the shards.

    Args:
        parts: the shards; if some tell by their names that they are for testing, those are.
        class_folders: as for `load_data`; if given, the folders are the classes, not the labels.
        test: shards of test images, if ``parts`` holds none.
        spec: names the classes, and the files or fields that hold images and labels.
        on_progress: told how many shards are read, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: a shard is broken, there are no images or no classes, or a label is unknown.
    """
    train_parts, notes = parts, list[str]()
    if test is None:
        train_parts, test, notes = split_parts(parts.base, parts)
    reader = _ShardReader(parts.base, class_folders, spec, on_progress)
    train, tested = reader.read(train_parts)
    if test is not None:
        first, second = reader.read(test)
        tested = first if second is None else second
    reader.raise_broken()
    layout = _name_classes(parts, train, tested, spec)
    layout.notes = [*notes, *reader.notes, *layout.notes]
    layout.skipped = reader.skipped
    return layout


def list_shards(parts: Parts, on_progress: OnProgress | None = None) -> Listing:
    """List all images of shards, naturally sorted, without their labels.

    Raises:
        UserError: a shard is broken.
    """
    reader = _ShardReader(parts.base, on_progress=on_progress)
    listing = Listing(skipped=reader.skipped)
    for sample in reader.samples(parts):
        listing.files += map(_file, sample.images)
    reader.raise_broken()
    listing.files.sort(key=lambda file: natural_key(file.name))
    return listing


@dataclass(slots=True)
class _Sample:
    """The files of one sample.

    Attributes:
        images: those with an image's extension.
        others: all the rest.
        texts: the content of those that may hold the label, after their `_ending`.
    """

    images: tuple[ShardMember, ...] = ()  # an empty tuple takes no memory
    others: tuple[ShardMember, ...] = ()
    texts: tuple[tuple[str, bytes], ...] = ()


class _ShardReader:
    """Reads the headers of shards, and collects what is broken or left out."""

    def __init__(
        self,
        source: str,
        class_folders: str | None = None,
        spec: DatasetSpec | None = None,
        on_progress: OnProgress | None = None,
    ):
        self.source, self.class_folders = source, class_folders
        named = spec.columns.model_fields_set if spec else set()
        self.image_ending = spec.columns.image if spec and "image" in named else None
        own_label = spec.columns.label if spec and "label" in named else None
        self.label_ending = own_label or "cls"
        self.label_fields = (own_label,) if own_label else _LABEL_FIELDS
        self.files, self.on_progress = 0, on_progress
        self.fields: list[str] = []  # of a .json without a label
        self.notes: list[str] = []
        self.skipped: list[Skipped] = []
        self.broken: list[str] = []

    def read(self, parts: Parts) -> tuple[Groups, Groups | None]:
        """Return the images of some shards by label, and the test images if they hold both.

        Raises:
            UserError: there are neither labels nor class folders.
        """
        labelled: dict[str, Groups] = {}  # by the topmost folder in the shards
        images: list[File] = []  # without a label
        others: list[File] = []
        for sample in self.samples(parts):
            label = None if self.class_folders else self._label(sample)
            if not sample.images:
                others += map(_file, sample.others)
            elif label is None:
                images += map(_file, sample.images)
            elif member := self._choose_image(sample):
                top = _path_in_shard(member).rpartition("/")[0].partition("/")[0]
                labelled.setdefault(top, {}).setdefault(label, []).append(_file(member))
        if self.broken:  # raised when all shards are read
            return {}, None
        if not labelled:
            return self._read_folders(images, others)
        self._skip(images, f"no label, neither a .{self.label_ending} nor one in a .json")
        self._skip(others, "no image in its sample")
        splits = bare_splits(labelled)
        test = pick_test_split(splits.values())
        if TRAIN not in splits.values() or test is None:
            return _merge(labelled.values()), None
        for top, split in splits.items():
            if split not in (TRAIN, test):
                count = sum(map(len, labelled[top].values()))
                self.notes.append(f"{top}/ in the shards is left out ({count} images).")
        train, tested = (
            _merge(groups for top, groups in labelled.items() if splits[top] == split)
            for split in (TRAIN, test)
        )
        return train, tested

    def samples(self, parts: Parts) -> Iterator[_Sample]:
        """Yield the samples of all shards; what is broken or left out is recorded."""
        count = len(parts.files)
        for shard in report_progress(parts.files, "listing shards", count, self.on_progress):
            samples: dict[str, _Sample] = {}
            try:
                with _Headers(io.FileIO(shard.path)) as file:
                    for member in self._members(file, shard):
                        self._sort_in(member, file, samples)
            except UserError:
                raise
            except Exception as error:  # broken headers can raise nearly anything inside tarfile
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self.broken.append(f"{shard.path} ({reason})")
            else:
                for key in list(samples):
                    yield samples.pop(key)

    def raise_broken(self) -> None:
        """Raise a ``UserError`` if shards are broken, which names them; all were read by now."""
        if self.broken:
            count = f"{len(self.broken)} " * (len(self.broken) > 1)
            raise UserError(
                f"{count}broken tar archive{'s' * bool(count)}: {join_names(self.broken)}; copy or "
                f"write {'them' if count else 'it'} again"
            )

    # --- one shard

    def _members(self, file: _Headers, shard: Part) -> Iterator[ShardMember]:
        """Yield the regular files of a shard; others are left out."""
        for info in _read_headers(file):
            parts = safe_parts(info.name)
            path = printable(info.name) if parts is None else "/".join(parts)
            name = f"{shard.name}/{path}" if shard.name else path
            self.files += 1
            if self.files > MAX_FILES:
                raise UserError(f"{self.source}: more than {MAX_FILES} files; give fewer shards")
            if problem := _problem(info, parts):
                self.skipped.append(Skipped(name, problem))
            elif info.isreg():
                yield ShardMember(shard, info.offset_data, info.size, name)
        if not file.has_end:
            self.notes.append(f"{shard.path} has no end mark: files at its end may be missing.")

    def _sort_in(self, member: ShardMember, file: _Headers, samples: dict[str, _Sample]) -> None:
        """Add a file to its sample, and read it if it may hold the label."""
        path, ending = _path_in_shard(member), _ending(member)
        sample = samples.setdefault(path[: len(path) - len(ending)], _Sample())
        is_image = f".{ending.rpartition('.')[2]}" in EXTENSIONS
        if self.image_ending is not None:
            is_image = is_image and ending == self.image_ending
        group = sample.images if is_image else sample.others
        earlier = tuple(other for other in group if _ending(other) != ending)
        if len(earlier) < len(group):
            self.skipped.append(Skipped(member.name, "twice in the archive, last one used"))
        if is_image:
            sample.images = (*earlier, member)
        else:
            sample.others = (*earlier, member)
        if ending in (self.label_ending, "json") and member.size <= _MAX_TEXT:
            file.seek(member.offset)
            sample.texts = (*sample.texts, (ending, file.read(member.size)))

    # --- one sample

    def _label(self, sample: _Sample) -> Label | None:
        texts = dict(sample.texts)
        label = _as_label(texts.get(self.label_ending, b"").decode("utf-8-sig", "replace"))
        if label is not None or "json" not in texts:
            return label
        try:
            record = json.loads(texts["json"])
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        self.fields = self.fields or sorted(map(printable, record))
        labels = (_as_label(record.get(name)) for name in self.label_fields)
        return next((label for label in labels if label is not None), None)

    def _choose_image(self, sample: _Sample) -> ShardMember | None:
        """Return a sample's image: of ``jpg`` and ``mask.png`` the first; None if it is unclear."""
        if len(sample.images) == 1:
            return sample.images[0]
        plain = [image for image in sample.images if "." not in _ending(image)]
        if len(plain) == 1:
            return plain[0]
        endings = join_names(sorted(map(_ending, sample.images)))
        self._skip(
            map(_file, sample.images),
            f"one of {len(sample.images)} images of its sample ({endings}); name one in a YAML "
            f"file with `columns: {{image: ...}}`",
        )
        return None

    # --- no labels

    def _read_folders(self, images: list[File], others: list[File]) -> tuple[Groups, Groups | None]:
        """Sort images by the folders in the shards, or by a table that is there."""
        if not images:
            first = "".join(f" (the first is {s.name}: {s.reason})" for s in self.skipped[:1])
            raise UserError(f"{self.source}: no images found{first}")
        images, others = (
            sorted(
                (File(_path_in_shard(file), file.content) for file in files),
                key=lambda file: natural_key(file.name),
            )
            for files in (images, others)
        )
        if not any(map(is_csv, others)) and not any("/" in file.name for file in images):
            hint = f"; the .json has {join_names(self.fields, 10)}" if self.fields else ""
            raise UserError(
                f"{self.source}: {len(images)} images without labels; put a .cls or a .json with a "
                f"label beside each, or name the label's field in a YAML file{hint}"
            )
        listing = Listing([*images, *others])
        for file in others:
            listing.skip(file.name, "no image in its sample")
        layout = read_folders(self.source, listing, images, self.class_folders)
        self.skipped += layout.skipped
        self.notes += layout.notes
        return _rename(layout.train), None if layout.test is None else _rename(layout.test)

    def _skip(self, files: Iterable[File], reason: str) -> None:
        self.skipped += (Skipped(file.name, reason) for file in files)


class _Headers(io.BufferedReader):
    """A tar archive of which only small parts are read at once, whatever its headers say.

    Attributes:
        has_end: whether the archive's end is marked, once all headers are read.
    """

    has_end = True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; raises ``tarfile.ReadError`` if they are too many."""
        if size is None or not 0 <= size <= _MAX_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _read_headers(file: _Headers) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive, and raise if it is cut off or damaged.

    ``tarfile`` itself stops without a word at a damaged header that is not the first, and may go
    round in circles where a size is below zero.
    """
    archive = tarfile.TarFile(fileobj=file)
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # there may be millions
        if info.size < 0:
            raise tarfile.ReadError(f"a file of {info.size} bytes")
        yield info
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset}")
    file.has_end = bool(block)


def _problem(info: tarfile.TarInfo, parts: tuple[str, ...] | None) -> str | None:
    """Return why a file in a shard is left out, or None."""
    if parts is None:
        return "unsafe path"
    if info.issym() or info.islnk():
        return "a link, not followed in archives"
    if not (info.isreg() or info.isdir()):
        return "not a regular file"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    if info.issparse():
        return "stored with its holes left out; make the archive without --sparse"
    return oversize_reason(info.size) if info.size > MAX_FILE_BYTES else None


def _as_label(value: object) -> Label | None:
    """Return a number from 0 on, or a name; None for anything else."""
    if isinstance(value, str):
        value = printable(" ".join(value.split()))
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            return value if 0 < len(value) <= _MAX_NAME else None
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _merge(several: Iterable[Groups]) -> Groups:
    """Put groups together, each naturally sorted by the paths in the shards."""
    merged: Groups = defaultdict(list)
    for groups in several:
        for label, files in groups.items():
            merged[label] += files
    for files in merged.values():
        files.sort(key=lambda file: natural_key(_path_in_shard(file)))
    return dict(merged)


def _rename(classes: ClassFiles) -> Groups:
    """Name files with their shard again."""
    return {name: [_file(_member(file)) for file in files] for name, files in classes.items()}


def _file(member: ShardMember) -> File:
    return File(member.name, member)


def _member(file: File) -> ShardMember:
    assert isinstance(file.content, ShardMember)
    return file.content


def _ending(member: ShardMember) -> str:
    """Return what follows the first dot of a file's own name, in small letters."""
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _path_in_shard(file: File | ShardMember) -> str:
    member = file if isinstance(file, ShardMember) else _member(file)
    return member.name[len(member.shard.name) :].removeprefix("/")


# --- the names of the classes


def _name_classes(
    parts: Parts, train: Groups, test: Groups | None, spec: DatasetSpec | None
) -> Layout:
    """Name the labels by the spec, or by a ``classes.txt`` if they are numbers.

    Raises:
        UserError: there are numbers and no names, or a number that has none.
    """
    groups = [train, *([test] if test is not None else [])]
    examples = {label: files[0].name for group in groups for label, files in group.items()}
    numbers = [label for label in examples if isinstance(label, int)]
    prompts: dict[str, tuple[str, ...]] = {}
    names: dict[Label, str] = {label: str(label) for label in examples}
    if numbers:
        if other := next((label for label in examples if isinstance(label, str)), None):
            raise UserError(
                f"{parts.base}: the label of {examples[numbers[0]]} is the number {numbers[0]}, "
                f"that of {examples[other]} is {other!r}; give all a number, or all a name"
            )
        known = name_numbers(parts, max(numbers), examples[max(numbers)], spec)
        names, prompts = dict[Label, str](enumerate(known.classes)), known.prompts
    elif spec is not None:
        source = sorted(map(str, train), key=natural_key)
        renamed, prompts = name_classes(spec, source, len(source))
        names |= zip(source, renamed, strict=True)
    order = list(names) if numbers else sorted(names, key=lambda label: natural_key(str(label)))
    named = [{names[label]: group.get(label, []) for label in order} for group in groups]
    layout = Layout(named[0], named[1] if test is not None else None, prompts=prompts)
    layout.is_described = bool(numbers)
    layout.leave_out_empty()
    return layout
