"""Class labels of images from a table beside them, such as ``train.csv`` with ``id,label``.

The column that names the images is the one in which most of them are found. The label and the split
are in columns of such names, else in those whose content is of that kind. A note says which.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import unquote

from clip_randlora.data.folder_names import (
    TEST,
    TRAIN,
    VALIDATION,
    pick_test_split,
    split_name,
    word_table,
    words_of,
)
from clip_randlora.data.label_files import (
    CSV_SUFFIXES,
    Cell,
    ColumnNames,
    Table,
    may_have_labels,
    read_table,
)
from clip_randlora.data.sources import File, printable
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

_SAMPLE = 1000  # cells by which the columns that name images are told
_FEW_ROWS = 20  # of a table in which a label may be there once
_MAX_SPLITS = 20  # spellings in a column of splits
_MAX_OTHERS = 50  # files that may be tables, apart from CSV: more are one for each image
_LABEL_WORDS = word_table("""
    label labels class classes category categories species breed target diagnosis tag classid
    classname labelname choice choices klasse etikett classe etiquette clase etiqueta categoria
    categorie etichetta метка класс 标签 类别 ラベル クラス 라벨 레이블
""")
_PATH_WORDS = word_table("""
    path paths file files filename filenames filepath filepaths image images img imagename
    imagepath datei bild fichier archivo imagen immagine файл 文件 图片 图像 画像 파일
""")
_SPLIT_WORDS = word_table("split splits set subset partition phase stage usage dataset")
_YES, _NO = {"1", "1.0", "true", "yes", "y", "t"}, {"0", "0.0", "false", "no", "n", "f"}
_BINARY = {"0", "1", "0.0", "1.0"}
_ONE_HOT_FILE = "_classes.csv"  # Roboflow's
_UPLOAD = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an upload


@dataclass
class Labels:
    """What a table says of some images.

    Attributes:
        table: its name.
        columns: those that were read.
        by_file: class by ``id(file)``.
        split_of: split by ``id(file)``, if the table has a column of it.
        missing: files that the table names and that do not exist.
        unlabelled: images whose label is empty.
        several: images of several classes.
        unnamed: images that the table does not name.
    """

    table: str
    columns: ColumnNames
    by_file: dict[int, str] = field(default_factory=dict)
    split_of: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unlabelled: list[File] = field(default_factory=list)
    several: list[File] = field(default_factory=list)
    unnamed: list[File] = field(default_factory=list)

    def left_out(self) -> list[File]:
        """The images that have no class by this table."""
        return [*self.unlabelled, *self.several, *self.unnamed]

    def named(self) -> set[int]:
        """The ``id`` of each image that has a row."""
        return self.by_file.keys() | set(map(id, (*self.unlabelled, *self.several)))

    def describe(self, place: str) -> str:
        """Return a sentence on where the labels are from, and what could not be matched."""
        how = f"columns {self.columns.as_text()}" if self.columns.label else "a column per class"
        parts = [f"The labels of {place} are those of {self.table} ({how})"]
        if self.missing:
            has = "row has" if len(self.missing) == 1 else "rows have"
            parts.append(f"{len(self.missing)} {has} no image ({join_names(self.missing)})")
        for files, what in (
            (self.unlabelled, "an empty label"),
            (self.several, "several classes"),
            (self.unnamed, "no row"),
        ):
            if files:
                has, be = ("image has", "is") if len(files) == 1 else ("images have", "are")
                names = join_names(file.name for file in files)
                parts.append(f"{len(files)} {has} {what} and {be} left out ({names})")
        return f"{'; '.join(parts)}."


@dataclass
class PlacedLabels:
    """Classes and splits of images by one table or several.

    Attributes:
        places: split, training or test, and class by ``id(file)``.
        left_out: the ``id`` of each image that the tables leave out.
        has_test: whether there are test images.
        notes: sentences for the user.
    """

    places: dict[int, tuple[str, str]]
    left_out: set[int]
    has_test: bool
    notes: list[str]


def place_labels(place: str, tables: Sequence[tuple[str, Labels]]) -> PlacedLabels:
    """Place the images of tables, each with the split of the rows that tell none.

    An image of several tables is a test image. Of the splits, the training split and one to test on
    are kept.

    Args:
        place: where the images are, for the notes.
        tables: split and labels of each.
    """
    found: dict[int, tuple[str, str]] = {}
    named: set[int] = set()
    doubles = 0
    for split, labels in tables:
        named |= labels.named()
        for key, label in labels.by_file.items():
            part = labels.split_of.get(key, "") if labels.split_of else split
            if key in found and found[key][0] != part:
                doubles += 1
                if part == TRAIN:
                    continue
            found[key] = (part, label)
    test = pick_test_split(part for part, _ in found.values())
    kinds = {TRAIN: TRAIN} | ({test: TEST} if test else {})
    left = Counter(part or "unsplit" for part, _ in found.values() if part not in kinds)
    places = {key: (kinds[part], label) for key, (part, label) in found.items() if part in kinds}
    notes = []
    for number, (_, labels) in enumerate(tables):
        unnamed = [file for file in labels.unnamed if id(file) not in named]
        notes.append(replace(labels, unnamed=[] if number else unnamed).describe(place))
    if test == VALIDATION:
        notes.append("No rows for testing: val is the test split.")
    notes += [f"The {part} rows are left out ({count} images)." for part, count in left.items()]
    if doubles:
        notes.append(f"{doubles} images are in two tables: they are test images alone.")
    everything = {id(file) for _, labels in tables for file in labels.left_out()} | found.keys()
    return PlacedLabels(places, everything - places.keys(), test is not None, notes)


class Tables:
    """The files of a source that may give labels, each read once.

    Args:
        source: what errors name first.
        files: of the source, apart from its images.
        images: of the source.
    """

    def __init__(self, source: str, files: Sequence[File], images: Sequence[File]):
        self.source = source
        self.unreadable: list[str] = []
        self._siblings: dict[str, list[File]] = defaultdict(list)
        for file in files:
            if file.own_name.lower().endswith(".txt"):
                self._siblings[file.folder].append(file)
        self.files = self._candidates(files, images)
        self._ids = set(map(id, self.files))
        self._read: dict[int, Table | None] = {}

    def __contains__(self, file: File) -> bool:
        return id(file) in self._ids

    def _candidates(self, files: Sequence[File], images: Sequence[File]) -> list[File]:
        found = []
        for file in files:
            siblings = (other.own_name.lower() for other in self._siblings.get(file.folder, ()))
            if may_have_labels(file, siblings):
                found.append(file)
        others = [file for file in found if not file.name.lower().endswith(CSV_SUFFIXES)]
        if others:
            beside = {spelling for f in images for spelling in (f.own_name, stem_of(f.own_name))}
            alone = [file for file in others if stem_of(file.own_name) not in beside]
            kept = set(map(id, alone if len(alone) <= _MAX_OTHERS else ()))
            dropped = set(map(id, others)) - kept
            found = [file for file in found if id(file) not in dropped]
        return found

    def read(self, file: File) -> Table | None:
        """Read one of the files; None if it has no table.

        Raises:
            UserError: a CSV cannot be read. Another file is noted in ``unreadable``: it may be of
                another kind.
        """
        if id(file) not in self._read:
            where = f"{self.source}: {file.name}"
            try:
                self._read[id(file)] = read_table(file, where, self._siblings[file.folder])
            except UserError as error:
                if file.name.lower().endswith(CSV_SUFFIXES):
                    raise
                self.unreadable.append(str(error))
                self._read[id(file)] = None
        return self._read[id(file)]

    def find_labels(
        self,
        files: Sequence[File],
        images: Sequence[File],
        others: Sequence[File],
        split: str,
        only_named: bool = False,
    ) -> Labels | None:
        """Find the one table that names the images, and read their labels.

        Args:
            files: those that may be the table.
            images: images of one split, without class folders.
            others: images of the other splits, which the table may name too.
            split: the images' split, in the words of `clip_randlora.data.folder_names`.
            only_named: whether the table must be named after the split.

        Returns:
            None if no table has labels of these images.

        Raises:
            UserError: a table cannot be read, or it is not clear which table or column is meant.
        """
        found: dict[bool, list[Labels]] = defaultdict(list)  # by whether it is named after a split
        names, rivals = ImageNames(images), ImageNames(others)
        for file in files:
            own = split_name(stem_of(file.own_name))
            if file not in self or (own.split != split if own else only_named):
                continue
            table = self.read(file)
            if table is not None and (
                labels := read_labels(
                    self.source, table, images, names, rivals=None if own else rivals, split=split
                )
            ):
                found[own is not None].append(labels)
        best = found[True] or found[False]
        if any(labels.by_file != best[0].by_file for labels in best):
            named = " and ".join(labels.table for labels in best[:2])
            raise UserError(
                f"{self.source}: {named} label the same images differently; remove one of them, or "
                f"give the right one as DATA"
            )
        return best[0] if best else None


class FindFile(Protocol):
    """Finds the image that a cell names."""

    def find(self, value: str) -> File | None:
        """Return the image with this name, or None."""
        ...

    def find_loosely(self, value: str) -> File | None:
        """Return the image that probably is meant."""
        ...


class ImageNames:
    """Images by every unique way to name them: with or without folders and extension."""

    def __init__(self, images: Iterable[File]):
        self._exact: dict[str, File] = {}
        ambiguous = set()
        for file in images:
            start, name = 0, file.name
            while True:
                for spelling in (name[start:], stem_of(name[start:])):
                    if self._exact.setdefault(spelling, file) is not file:
                        ambiguous.add(spelling)
                start = name.find("/", start) + 1
                if not start:
                    break
        for spelling in ambiguous:
            del self._exact[spelling]
        self._folded: dict[str, File] | None = None

    def find(self, value: str) -> File | None:
        """Return the image with this name; unknown folders before the name are ignored."""
        return _find(value, self._exact)

    def find_loosely(self, value: str) -> File | None:
        """Return the image with this name in other capitals, or as a URL or Label Studio has it."""
        if self._folded is None:
            counts = Counter(map(str.casefold, self._exact))
            self._folded = {
                key: file
                for name, file in self._exact.items()
                if counts[key := name.casefold()] == 1
            }
        for spelling in url_spellings(value):
            if found := _find(spelling, self._exact) or _find(spelling.casefold(), self._folded):
                return found
        return None


def _find(value: str, names: Mapping[str, File]) -> File | None:
    value = value.replace("\\", "/").removeprefix("./").strip("/")
    if value in names or "/" not in value:
        return names.get(value) or (None if value.isascii() else names.get(printable(value)))
    parts = printable(value).split("/")
    candidates = ("/".join(parts[start:]) for start in range(min(len(parts), 16)))
    return next((names[name] for name in candidates if name in names), None)


def url_spellings(value: str) -> list[str]:
    """Return the path in a URL, also in Label Studio's ``?d=``, and the name before its upload."""
    path, _, query = value.partition("?")
    local = re.search(r"(?:^|&)d=([^&]*)", query)
    path = unquote(local[1] if local else path)
    folder, slash, own = path.rpartition("/")
    uploaded = [f"{folder}{slash}{own[9:]}"] if _UPLOAD.match(own) else []
    return [value, path, *uploaded]


def stem_of(name: str) -> str:
    """Return a path without the extension."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and "/" not in ending else name


def read_labels(
    source: str,
    table: Table,
    images: Sequence[File],
    names: FindFile,
    columns: ColumnNames | None = None,
    *,
    rivals: FindFile | None = None,
    split: str = TRAIN,
    required: bool = False,
) -> Labels | None:
    """Read the labels that a table gives to images.

    Args:
        source: what errors name first.
        table: the table.
        images: of one split, or all.
        names: finds the images.
        columns: those to use; the others are found.
        rivals: finds images of other splits, which the table may name too.
        split: of the images.
        required: whether it is an error if the table has no labels of the images.

    Returns:
        None if it has none.

    Raises:
        UserError: a row is broken, an image has two labels, or it is not clear which column is the
            label.
    """
    where = source if table.name == source else f"{source}: {table.name}"
    if not table.rows or not table.width:
        found: Labels | str = "there are no rows"
    else:
        found = _Reader(where, table, columns or ColumnNames(), required).read(
            images, names, rivals, split
        )
    if isinstance(found, str) and required:
        raise UserError(f"{where}: {found}")
    return None if isinstance(found, str) else found


class _Reader:
    """Reads one table: its path column first, as that tells whether there is a header."""

    def __init__(self, where: str, table: Table, said: ColumnNames, required: bool):
        self.where, self.table, self.said, self.required = where, table, said, required
        known = table.columns
        self.wanted = ColumnNames(
            said.path or known.path, said.label or known.label, said.split or known.split
        )
        self.first = [str(cell) for cell in (table.header or table.rows[0])]
        self.top = list(map(printable, self.first))
        full = [row for row in table.rows if len(row) == table.width]  # others are refused later
        self.columns: list[Sequence[Cell]] = [*zip(*full, strict=True)]
        self.titles: list[str] = []

    def read(
        self, images: Sequence[File], names: FindFile, rivals: FindFile | None, split: str
    ) -> Labels | str:
        """Return the labels, or why there are none."""
        for said in (self.said.path, self.said.label, self.said.split):
            if said is not None and self._number(said) is None:
                return f"no column {said!r} (--columns); the columns are {join_names(self.top, 10)}"
        key = self._find_key(images, names)
        if key is None:
            return (
                "no column names files of images that are there; name it with --columns path=COLUMN"
            )
        files = self._files(key, names)
        self._split_off_header(key, files)
        paths = self.columns[key]
        elsewhere: set[Cell] = set()
        if rivals is not None:
            of_others = _find_all(set(paths), rivals.find)
            if split != TRAIN and of_others.keys() & files.keys():
                return "it is of the training images"  # both splits use the same names
            elsewhere = of_others.keys() - files.keys()
        self._check_rows()
        parts = self._split_column(key)
        labels = self._label_column(key, parts and parts[0])
        if labels is None:
            titles = join_names((t for n, t in enumerate(self.titles) if n != key), 10)
            return f"no column is the label; name it with --columns label=COLUMN (of {titles})"
        number, cells = labels
        columns = ColumnNames(
            self.titles[key],
            None if number is None else self.titles[number],
            None if parts is None else self.titles[parts[0]],
        )
        found = Labels(self.table.name, columns)
        splits = [""] * len(paths)
        if parts is not None:
            splits = [parts[1].get(cell, "") for cell in self.columns[parts[0]]]
        several: dict[int, File] = {}
        unlabelled: dict[int, File] = {}
        missing: dict[str, None] = {}
        for name, label, split_said in zip(paths, cells, splits, strict=True):
            file = files.get(name)
            if file is None and name not in elsewhere:
                missing[printable(str(name))] = None
            if file is None:
                continue
            if split_said and found.split_of.setdefault(id(file), split_said) != split_said:
                raise UserError(
                    f"{self.where}: {file.name} is in the splits {found.split_of[id(file)]} and "
                    f"{split_said}; give every image one split"
                )
            if isinstance(label, tuple):
                several[id(file)] = file
            elif not label:
                unlabelled[id(file)] = file
            elif found.by_file.setdefault(id(file), printable(label)) != printable(label):
                raise UserError(
                    f"{self.where}: {printable(str(name))} has the labels "
                    f"{found.by_file[id(file)]} and {printable(label)}; give every image one class"
                )
        for image in several:
            found.by_file.pop(image, None)
        if not found.by_file:
            return "its images have several classes each" if several else "its labels are empty"
        different = len(set(found.by_file.values()))
        if different == len(found.by_file) > _FEW_ROWS and split == TRAIN and not self.said.label:
            raise UserError(
                f"{self.where}: every image has a label of its own; name the column of the classes "
                f"with --columns label=COLUMN"
            )
        found.missing = list(missing)
        found.several = list(several.values())
        classed = found.by_file.keys() | several.keys()
        found.unlabelled = [file for image, file in unlabelled.items() if image not in classed]
        named = found.named()
        found.unnamed = [file for file in images if id(file) not in named]
        return found

    def _number(self, name: str | None) -> int | None:
        """Find a column by its name, or else by its number from 1 on, as in ``column 2``."""
        if name is None:
            return None
        folded = [cell.strip().casefold() for cell in self.top]
        if name in self.top:
            return self.top.index(name)
        if folded.count(name.strip().casefold()) == 1:
            return folded.index(name.strip().casefold())
        number = re.fullmatch(r"(?:column )?(\d{1,5})", name)
        return int(number[1]) - 1 if number and 0 < int(number[1]) <= len(self.top) else None

    def _find_key(self, images: Sequence[File], names: FindFile) -> int | None:
        """Find the column that names the most images; names with an extension come first."""
        wanted = self._number(self.wanted.path)
        numbers = range(len(self.columns)) if wanted is None else (wanted,)
        rows = len(self.columns[0]) - (self.table.header is None)
        for find in (names.find, names.find_loosely):
            ranks = {}
            likely = self._likely_keys(numbers, find)
            for number in likely or (numbers if find == names.find else ()):
                found = _find_all(set(self.columns[number]), find)
                hits = len({id(file) for file in found.values()})
                whole = sum(stem_of(str(name)) != name for name in found)
                is_enough = 2 * hits >= min(len(images), rows) or (
                    self.required and (whole or wanted is not None)
                )
                if hits and is_enough:
                    is_called = bool(_PATH_WORDS & set(words_of(self.top[number])))
                    ranks[number] = (2 * whole >= hits, hits, is_called)
            if ranks:
                return max(ranks, key=ranks.__getitem__)
        return None

    def _likely_keys(
        self, numbers: Sequence[int], find: Callable[[str], File | None]
    ) -> Sequence[int]:
        """Return the columns of which a sample names images."""
        step = max(1, len(self.columns[0]) // _SAMPLE)
        return [n for n in numbers if _find_all(set(self.columns[n][::step]), find)]

    def _files(self, key: int, names: FindFile) -> dict[Cell, File]:
        """Find the images of a column; a loose spelling names only what no other row names."""
        values = set(self.columns[key])
        files = _find_all(values, names.find)
        taken = {id(file) for file in files.values()}
        others = values - files.keys() - {self.first[key]}  # not what is probably the header
        loose = _find_all(others, names.find_loosely)
        return files | {name: file for name, file in loose.items() if id(file) not in taken}

    def _split_off_header(self, key: int, files: Mapping[Cell, File]) -> None:
        """Take the first row for the header if it is one, and name the columns by it."""
        said = (self.said.path, self.said.label, self.said.split)
        is_called = bool(_PATH_WORDS & set(words_of(self.top[key]))) and any(
            is_label(title, self.top) for title in self.top
        )  # there may be an image.png beside image,label
        is_header = self.table.header is not None or (
            self.first[key] not in files or is_called or any(name in self.top for name in said)
        )
        self.titles = [
            (is_header and title.strip()) or f"column {number}"
            for number, title in enumerate(self.top, 1)
        ]
        if is_header and self.table.header is None:
            self.columns = [column[1:] for column in self.columns]

    def _check_rows(self) -> None:
        for number, row in enumerate(self.table.rows, 1):
            if len(row) != len(self.top):
                raise UserError(
                    f"{self.where}: row {number} has {len(row)} fields, the first {len(self.top)}"
                )

    def _split_column(self, key: int) -> tuple[int, dict[Cell, str]] | None:
        """Find the column of the splits, and what its cells mean."""
        label, wanted = self._number(self.wanted.label), self._number(self.wanted.split)
        found: dict[int, dict[Cell, str]] = {}
        for number, title in enumerate(self.titles):
            if wanted in (None, number) and number not in (key, label):
                meaning = _as_splits(title, set(self.columns[number]), bool(self.said.split))
                if meaning is not None:
                    found[number] = meaning
        if self.said.split and not found:
            raise UserError(
                f"{self.where}: the column {self.said.split} holds no splits; use train, val and "
                f"test, or 0 and 1 in a column is_test"
            )
        called = [n for n in found if _SPLIT_WORDS & set(words_of(self.titles[n]))]
        return next(((number, found[number]) for number in called or found), None)

    def _label_column(
        self, key: int, split: int | None
    ) -> tuple[int | None, Sequence[Cell]] | None:
        """Find the labels: by the column's name, else one column per class, else by content."""
        if (wanted := self._number(self.wanted.label)) is not None:
            return wanted, self.columns[wanted]
        numbers = [n for n in range(len(self.columns)) if n not in (key, split)]
        if classes := self._one_hot(numbers):
            titles = [self.titles[n] for n in classes]
            rows = zip(*(self.columns[n] for n in classes), strict=True)
            return None, [_chosen(titles, row) for row in rows]
        values = {n: set(self.columns[n]) - {""} for n in numbers}
        called = [n for n in numbers if is_label(self.titles[n], self.titles)]
        varied = [n for n in called if len(values[n]) > 1]
        few = [n for n in numbers if 2 <= len(values[n]) <= len(self.columns[key]) / 2]
        candidates = varied or called or few
        if not candidates and len(self.columns[key]) <= _FEW_ROWS:
            words = [n for n in numbers if not all(map(_is_number, values[n]))]
            candidates = [n for n in words if len(values[n]) > 1]
        if len(candidates) > 1:
            candidates = self._merge_equivalent(candidates) or candidates
        if exact := [n for n in candidates if self.titles[n].casefold() == "label"]:
            candidates = exact  # beside label_source, for example
        if len(candidates) > 1 and not called:  # sizes and ages are numbers
            words = [n for n in candidates if not all(map(_is_number, values[n]))]
            candidates = words if len(words) == 1 else candidates
        if len(candidates) > 1:
            names = [self.titles[n] for n in candidates]
            raise UserError(
                f"{self.where}: {len(names)} columns may be the label ({', '.join(names[:5])}); "
                f"say which one is, as --columns label={names[0]}"
            )
        return (candidates[0], self.columns[candidates[0]]) if candidates else None

    def _one_hot(self, numbers: Sequence[int]) -> list[int]:
        """Return the columns if there is one per class: 1 for an image's class, else 0."""
        if len(numbers) < 2 or any(set(self.columns[n]) - _BINARY for n in numbers):
            return []
        rows = zip(*(self.columns[n] for n in numbers), strict=True)
        chosen = [sum(map(_is_one, row)) for row in rows]
        is_called = self.table.name.rpartition("/")[2].lower() == _ONE_HOT_FILE
        return list(numbers) if is_called or 2 * chosen.count(1) >= len(chosen) else []

    def _merge_equivalent(self, numbers: Sequence[int]) -> list[int]:
        """If all columns give the same classes, return the first one of names, not numbers."""
        together = len(set(zip(*(self.columns[n] for n in numbers), strict=True)))
        if any(len(set(self.columns[n])) != together for n in numbers):
            return []
        names = [n for n in numbers if not all(map(_is_number, self.columns[n]))]
        return (names or list(numbers))[:1]


def _find_all(values: Iterable[Cell], find: Callable[[str], File | None]) -> dict[Cell, File]:
    return {
        value: file
        for value in values
        if value and isinstance(value, str) and (file := find(value)) is not None
    }


def _as_splits(title: str, values: set[Cell], is_said: bool) -> dict[Cell, str] | None:
    """Return which split each cell means, or None if the column is not one of splits."""
    texts = [value for value in values if value and isinstance(value, str)]
    if not 0 < len(texts) <= _MAX_SPLITS or len(texts) < len(values - {""}):
        return None
    words = words_of(title)
    flag = split_name(" ".join(word for word in words if word != "is"))
    if flag and flag.is_bare and {text.casefold() for text in texts} <= _YES | _NO:
        if flag.split in (TRAIN, TEST) or words[0] == "is":  # a column valid may mean correct
            other = TEST if flag.split == TRAIN else TRAIN
            return {text: flag.split if text.casefold() in _YES else other for text in texts}
        return None
    is_called = is_said or bool(_SPLIT_WORDS & set(words))
    names = {text: split_name(text) for text in texts}
    found = {text: name for text, name in names.items() if name and (is_called or name.is_bare)}
    if len(found) < len(texts) or not any(name.split == TRAIN for name in found.values()):
        return None
    if not is_called and all(name.is_abbreviation for name in found.values()):
        return None  # tr and te may be languages
    return {text: name.split for text, name in found.items()}


def _chosen(titles: Sequence[str], row: Sequence[Cell]) -> Cell:
    """Return the class of a row with one column per class; a tuple of several, "" of none."""
    names = tuple(title for title, cell in zip(titles, row, strict=True) if _is_one(cell))
    return names if len(names) > 1 else "".join(names)


def _is_one(cell: Cell) -> bool:
    return cell in ("1", "1.0")


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, str) and cell.replace(".", "").isdigit()


def is_label(name: str, header: Sequence[str]) -> bool:
    """Whether a header says label; y does, except beside x, with which it is a place."""
    words = set(words_of(name))
    return bool(words & _LABEL_WORDS) or (words == {"y"} and not {"x", "X"} & set(header))
