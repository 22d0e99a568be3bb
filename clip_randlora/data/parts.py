"""Data sets in a few large files: tar shards, and tables in parquet or Arrow.

They are given as a folder, as one file, or as a pattern: ``shards/train-{000000..000009}.tar`` as
WebDataset writes it, or ``data/train-*.parquet``.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from clip_randlora.data.dataset_spec import DatasetSpec, name_classes
from clip_randlora.data.folder_names import TRAIN, VALIDATION, pick_test_split, split_name
from clip_randlora.data.sources import DiskFile, File, natural_key, printable
from clip_randlora.data.texts import read_text
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

SHARD = ".tar"
TABLES = (".parquet", ".arrow")
CLASS_FILES = ("classes.txt", "classnames.txt")

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_MAX_PARTS = 100_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MAGIC = re.compile(r"[*?[{]")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a data set; it is pickled with each image that is sent to another process.

    Attributes:
        path: of the file.
        name: the path below the data set's folder, with ``/``; "" if it is the whole data set.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Parts:
    """The files of a data set, or of one of its splits, naturally sorted.

    Attributes:
        base: the path that the names of the parts continue.
        files: at least one, all of one kind.
    """

    base: str
    files: tuple[Part, ...]

    @property
    def are_shards(self) -> bool:
        """Whether the files are tar archives, not tables."""
        return self.files[0].path.lower().endswith(SHARD)


def is_pattern(source: str | Path) -> bool:
    """Whether a source is a pattern of shards or tables, not a path that exists."""
    text = str(source)
    return (
        text.lower().endswith((SHARD, *TABLES))
        and _MAGIC.search(text) is not None
        and not os.path.lexists(os.path.expanduser(text))
    )


def is_part(source: str | Path) -> bool:
    """Whether a source is a shard, a table or a compressed shard that exists, or a pattern."""
    text = os.path.expanduser(str(source))
    has_ending = text.lower().endswith((SHARD, *TABLES, *_COMPRESSED))
    return is_pattern(source) or (has_ending and os.path.isfile(text))


def find_parts(source: str | Path) -> Parts | None:
    """Return the files if a source is one shard or table, or a pattern of some; else None.

    Raises:
        UserError: a file of the pattern is missing, or it is a compressed shard.
    """
    path = os.path.expanduser(str(source))
    if is_pattern(source):
        return _match(path)
    if not is_part(path):
        return None
    if path.lower().endswith(_COMPRESSED):
        raise _compressed(path)
    return Parts(path, (Part(path, ""),))


def parts_of(folder: str | Path, files: Sequence[File]) -> Parts | None:
    """Return the shards among the files of a folder, else the tables of a kind; None without any.

    Raises:
        UserError: there are only compressed shards.
    """
    for ending in (SHARD, *TABLES):
        if found := [file for file in files if file.name.lower().endswith(ending)]:
            return Parts(str(folder), tuple(Part(str(_path(f)), f.name) for f in found))
    for file in files:
        if file.name.lower().endswith(_COMPRESSED):
            raise _compressed(str(_path(file)))
    return None


def split_parts(source: str, parts: Parts) -> tuple[Parts, Parts | None, list[str]]:
    """Split files by their folders or their own names: ``train/0.tar``, ``set-test-0.parquet``.

    Returns:
        Files to train on; files to test on, or None if there is no such split; notes.

    Raises:
        UserError: only some of the names tell a split, or none is for training.
    """
    groups: dict[str | None, list[Part]] = defaultdict(list)
    for part in parts.files:
        groups[_split_of(part.name)].append(part)
    if len(groups) == 1:
        return parts, None, []
    if None in groups or TRAIN not in groups:
        first = {split: files[0].name for split, files in groups.items()}
        one, other = first.pop(None, None), next(iter(first.values()))
        why = (
            f"{other} tells a split by its name, {one} tells none"
            if one
            else "none is for training"
        )
        raise UserError(
            f"{source}: {why}; give the files to train on and those to test on apart, as a "
            f"pattern and --test with another"
        )
    test = pick_test_split(split for split in groups if split)
    notes = [
        f"The {split} files are left out ({join_names(part.name for part in files)})."
        for split, files in groups.items()
        if split not in (TRAIN, test)
    ]
    if test == VALIDATION:
        notes.append("No test files: val is the test split.")
    train, tested = (Parts(parts.base, tuple(groups[split])) for split in (TRAIN, test))
    return train, tested, notes


@dataclass(frozen=True)
class ClassNames:
    """The names of the classes 0, 1, ...

    Attributes:
        where: they stand, for errors.
        classes: the names, all different.
        prompts: ``{class: names in its prompts}`` of those whose names differ there.
    """

    where: str
    classes: Sequence[str]
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def name_numbers(
    parts: Parts, highest: int, example: str, spec: DatasetSpec | None = None
) -> ClassNames:
    """Name the classes 0, 1, ... by a spec, or by the ``classes.txt`` that is beside some files.

    Args:
        parts: ``classes.txt`` or ``classnames.txt`` may lie beside them, in the folder that was
            given, or in the one around ``train`` and ``test``. It has one name a line.
        highest: the largest label.
        example: an image that has it.
        spec: whose ``classes`` to use, if it has some.

    Raises:
        UserError: there are no names, or too few.
    """
    found = _find_class_file(parts)
    if spec is not None and (spec.classes is not None or found is None):
        classes, prompts = name_classes(spec, None, highest + 1)
        return ClassNames(f"{spec.file}: classes", classes, prompts)
    if found is None:
        raise UserError(
            f"{parts.base}: the labels are only numbers; write the names of the classes, one a "
            f"line in their order, into {CLASS_FILES[0]} beside the images' files"
        )
    file = File((found.name,), DiskFile(found, found.stat().st_size))
    words = [" ".join(line.split()) for line in read_text(file, str(found)).splitlines()]
    words = [printable(word) for word in words if word]
    if highest >= len(words):
        raise UserError(
            f"{found}: {len(words)} names, but {example} has the label {highest} (the first is 0); "
            f"correct one of them"
        )
    counts = Counter(words)  # two of ImageNet's classes have the same name as another
    names = [n if counts[n] == 1 else f"{n} ({place})" for place, n in enumerate(words)]
    apart = zip(names, words, strict=True)
    return ClassNames(str(found), names, {name: (word,) for name, word in apart if name != word})


def _find_class_file(parts: Parts) -> Path | None:
    folders = list(dict.fromkeys(Path(part.path).parent for part in parts.files))
    folders += [folder.parent for folder in folders if split_name(folder.resolve().name)]
    folders.append(Path(parts.base))
    paths = (folder / name for folder in dict.fromkeys(folders) for name in CLASS_FILES)
    return next(filter(Path.is_file, paths), None)


def _match(pattern: str) -> Parts:
    """Find the files of a pattern; all that its braces name must be there."""
    expanded = list(islice(_expand(pattern), _MAX_PARTS + 1))
    if len(expanded) > _MAX_PARTS:
        raise UserError(f"{pattern}: more than {_MAX_PARTS} files; give fewer, larger ones")
    paths = []
    missing = []
    for path in expanded:
        found = glob.glob(path) if glob.has_magic(path) else [path] * os.path.isfile(path)
        paths += found
        if not found:
            missing.append(path)
    if missing:
        of = f"{len(missing)} of {len(expanded)} files are" if len(expanded) > 1 else "no file is"
        raise UserError(f"{pattern}: {of} there ({join_names(missing)}); correct the pattern")
    base = os.path.dirname(_MAGIC.split(pattern)[0]) or "."
    names = {path: os.path.relpath(path, base).replace(os.sep, "/") for path in paths}
    ordered = sorted(names, key=lambda path: natural_key(names[path]))
    return Parts(base, tuple(Part(path, names[path]) for path in ordered))


def _expand(pattern: str) -> Iterator[str]:
    """Write out the braces of a pattern: ``{08..11}`` and ``{train,test}``."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    first, last, names = found.groups()
    choices: Iterable[str] = names.split(",") if names is not None else _numbers(first, last)
    for choice in choices:
        yield from _expand(f"{pattern[: found.start()]}{choice}{pattern[found.end() :]}")


def _numbers(first: str, last: str) -> Iterator[str]:
    is_padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def _split_of(name: str) -> str | None:
    """Return the split that a folder above a file or the file's own name tells, or None."""
    *folders, own = name.split("/")
    for text in (*folders, own.rpartition(".")[0]):
        found = split_name(text)
        if found and (found.is_bare or not found.is_abbreviation):
            return found.split
    return None


def _path(file: File) -> Path:
    assert isinstance(file.content, DiskFile)  # parts are files of a folder
    return file.content.path


def _compressed(path: str) -> UserError:
    return UserError(
        f"{path}: a compressed archive, in which no image can be read from its place; decompress "
        f"it to a .tar (images hardly compress)"
    )
