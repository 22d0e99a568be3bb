"""Class labels of images from a table beside them, such as ``train.csv`` with ``id,label``."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_randlora.data.folder_names import TRAIN, split_name, word_table, words_of
from clip_randlora.data.sources import File
from clip_randlora.errors import UserError

MAX_TABLE_BYTES = 64 * 2**20
_EXTENSIONS = (".csv", ".tsv")
_LABEL_WORDS = word_table("""
    label labels class classes category categories species breed target diagnosis tag classid
    classname labelname klasse etikett classe etiquette clase etiqueta categoria categorie
    etichetta метка класс 标签 类别 ラベル クラス 라벨 레이블
""")
_PREDICTION_WORDS = word_table(  # tables of guesses to be handed in, not of labels
    "submission submissions submit sample pred preds prediction predictions"
)


@dataclass
class Labels:
    """What a table says of some images.

    Attributes:
        table: its name.
        by_file: class by ``id(file)``.
        missing: files that the table names and that do not exist.
        unnamed: files that the table does not name.
    """

    table: str
    by_file: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unnamed: list[File] = field(default_factory=list)


def read_text(file: File, where: str) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Args:
        file: from a folder or an archive.
        where: the file's name in errors.

    Raises:
        UserError: it is too big, cannot be read, or is not in UTF-8.
    """
    if file.content.size > MAX_TABLE_BYTES:
        raise UserError(
            f"{where}: {file.content.size / 2**20:.0f} MiB, at most {MAX_TABLE_BYTES >> 20}"
        )
    try:
        content = file.content.read()
        data = content.read_bytes() if isinstance(content, Path) else content
        assert isinstance(data, bytes)  # only files and members of archives can be texts
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check it") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not in UTF-8; save it as CSV in UTF-8") from None


def is_table(file: File) -> bool:
    """Whether a file may be a table of labels, by its name."""
    name = file.parts[-1]
    return name.lower().endswith(_EXTENSIONS) and not _PREDICTION_WORDS & set(words_of(name))


def find_labels(
    source: str, tables: Sequence[File], images: Sequence[File], others: Sequence[File], split: str
) -> Labels | None:
    """Find the one table that names the images, and read their labels.

    Args:
        source: what errors name first.
        tables: files that may be tables.
        images: images of one split, without class folders.
        others: images of the other splits, which the table may name too.
        split: the images' split, in the words of `clip_randlora.data.folder_names`.

    Returns:
        None if no table has labels of these images.

    Raises:
        UserError: the table cannot be read, or it is not clear which table or column is meant.
    """
    found: dict[bool, list[Labels]] = defaultdict(list)  # by whether it is named after the split
    for table in tables:
        own = split_name(table.parts[-1].rpartition(".")[0])
        if (own and own.split != split) or not is_table(table):
            continue
        if labels := _read_table(source, table, images, () if own else others, split):
            found[own is not None].append(labels)
    best = found[True] or found[False]
    if any(labels.by_file != best[0].by_file for labels in best):
        names = " and ".join(labels.table for labels in best[:2])
        raise UserError(f"{source}: {names} label the same images differently; remove one of them")
    return best[0] if best else None


def _read_table(
    source: str, table: File, images: Sequence[File], others: Sequence[File], split: str
) -> Labels | None:
    where = f"{source}: {table.name}"
    rows = _rows(read_text(table, where), where)
    if len(rows) < 2:
        return None
    width = len(rows[0])
    full_rows = [row for row in rows if len(row) == width]  # others are an error, further down
    known, rivals = _by_name(images), _by_name(others)
    hits = [sum(_find(row[n], known) is not None for row in full_rows) for n in range(width)]
    key = hits.index(max(hits))  # the column of the files
    if 2 * hits[key] < min(len(images), len(rows) - 1) or not hits[key]:
        return None
    of_others = [row for row in full_rows if _find(row[key], rivals)]
    if split != TRAIN and any(_find(row[key], known) for row in of_others):
        return None  # both splits use the same file names, and the table is of the training images
    has_header = _find(rows[0][key], known) is None
    header = rows[0] if has_header else [f"column {n + 1}" for n in range(width)]
    body = rows[has_header:]
    for number, row in enumerate(body, 1 + has_header):
        if len(row) != width:
            raise UserError(f"{where}: row {number} has {len(row)} fields, the first {width}")
    column = _label_column(where, header, body, key)
    if column is None:
        return None
    elsewhere = {id(row) for row in of_others if _find(row[key], known) is None}
    pairs = [(row[key], row[column]) for row in body if id(row) not in elsewhere]
    labels = Labels(table.name)
    for name, label in pairs:
        file = _find(name, known)
        if file is None:
            labels.missing.append(name)
        elif label and labels.by_file.setdefault(id(file), label) != label:
            raise UserError(
                f"{where}: {name} has the labels {labels.by_file[id(file)]} and {label}; give "
                f"every image one class"
            )
    if len(set(labels.by_file.values())) == len(labels.by_file) > 2:
        raise UserError(
            f"{where}: every image has a label of its own; call the column of the classes label"
        )
    labels.unnamed = [file for file in images if id(file) not in labels.by_file]
    return labels


def _rows(text: str, where: str) -> list[list[str]]:
    """Split a table into rows of fields, which are separated by commas, semicolons or tabs."""
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{where}: no table that can be read ({error}); save it again") from None
    return [[field.strip() for field in row] for row in rows if any(map(str.strip, row))]


def _by_name(images: Sequence[File]) -> dict[str, File]:
    """Return files by every unique way to name them: with or without folders and extension."""
    found: dict[str, File] = {}
    ambiguous = set()
    for file in images:
        for start in range(len(file.parts)):
            name = "/".join(file.parts[start:])
            for spelling in {name, name.rpartition(".")[0]}:
                if found.setdefault(spelling, file) is not file:
                    ambiguous.add(spelling)
    return {name: file for name, file in found.items() if name not in ambiguous}


def _find(value: str, names: Mapping[str, File]) -> File | None:
    """Find the file that a field names; unknown folders before its name are ignored."""
    parts = value.replace("\\", "/").removeprefix("./").strip("/").split("/")
    candidates = ("/".join(parts[start:]) for start in range(min(len(parts), 16)))
    return next((names[name] for name in candidates if name in names), None)


def _label_column(
    where: str, header: Sequence[str], rows: Sequence[Sequence[str]], key: int
) -> int | None:
    """Choose the column of the labels: by its header, else the one with few different values."""
    columns = [column for column in range(len(header)) if column != key]
    values = {column: {row[column] for row in rows} - {""} for column in columns}
    named = [column for column in columns if is_label(header[column], header)]
    varied = [column for column in named if len(values[column]) > 1]
    few = [column for column in columns if 2 <= len(values[column]) <= len(rows) / 2]
    candidates = varied or named or few
    if len(candidates) > 1:
        candidates = _merge_equivalent(candidates, rows) or candidates
    if len(candidates) > 1:
        names = ", ".join(header[column] for column in candidates[:5])
        raise UserError(
            f"{where}: {len(candidates)} columns may be the label ({names}); call the right one "
            f"label and the others something else"
        )
    return candidates[0] if candidates else None


def is_label(name: str, header: Sequence[str]) -> bool:
    """Whether a header says label; y does, except beside x, with which it is a place."""
    words = set(words_of(name))
    return bool(words & _LABEL_WORDS) or (words == {"y"} and not {"x", "X"} & set(header))


def _merge_equivalent(columns: Sequence[int], rows: Sequence[Sequence[str]]) -> list[int]:
    """If all columns give the same classes, return the first one of names, not numbers."""
    together = len({tuple(row[column] for column in columns) for row in rows})
    if any(len({row[column] for row in rows}) != together for column in columns):
        return []
    names = [c for c in columns if not all(row[c].replace(".", "").isdigit() for row in rows)]
    return (names or list(columns))[:1]
