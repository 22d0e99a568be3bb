"""Labels of images from a table beside them, such as ``train.csv`` with ``id,label``."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clip_randlora.data.sources import File
from clip_randlora.data.splits import TRAIN, split_name, word_table, words_of
from clip_randlora.errors import UserError

MAX_TABLE_BYTES = 64 * 2**20
_EXTENSIONS = (".csv", ".tsv")
# A column with such a header is the label, whatever is in it.
_LABELS = word_table("""
    label labels class classes category categories species breed target diagnosis tag classid
    classname labelname klasse etikett classe etiquette clase etiqueta categoria categorie
    etichetta метка класс 标签 类别 ラベル クラス 라벨 레이블
""")
_TO_FILL_IN = word_table(  # tables of guesses, not of labels
    "submission submissions submit sample pred preds prediction predictions"
)


@dataclass
class Labels:
    """What a table says of some files.

    Attributes:
        table: its name.
        by_file: class by ``id(file)``.
        missing: files that the table names and that are not there.
        unnamed: files that the table does not name.
    """

    table: str
    by_file: dict[int, str]
    missing: list[str] = field(default_factory=list)
    unnamed: list[File] = field(default_factory=list)


def read_text(file: File, where: str) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Args:
        file: from a folder or an archive.
        where: what its error names.

    Raises:
        UserError: it is too big, or not in UTF-8.
    """
    if file.content.size > MAX_TABLE_BYTES:
        raise UserError(
            f"{where}: {file.content.size / 2**20:.0f} MiB, at most {MAX_TABLE_BYTES >> 20}"
        )
    try:
        content = file.content.read()
        data = content if isinstance(content, bytes) else content.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check it") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not in UTF-8; save it as CSV in UTF-8") from None


def find_labels(
    source: str, tables: Sequence[File], images: Sequence[File], others: Sequence[File], split: str
) -> Labels | None:
    """Find the one table that names the images, and their labels in it.

    Args:
        source: what errors name first.
        tables: files that may be tables.
        images: of one split, without class folders.
        others: images of the other splits, which a table may name too.
        split: of the images, as `clip_randlora.data.splits` calls it.

    Returns:
        None if no table has labels for these images.

    Raises:
        UserError: the table cannot be read, or it is not clear which table or column is meant.
    """
    found: dict[bool, list[Labels]] = defaultdict(list)
    for table in tables:
        own = split_name(table.parts[-1].rpartition(".")[0])
        if (own and own.split != split) or not is_table(table):
            continue
        labels = _read(source, table, images, () if own else others, split)
        if labels:
            found[own is not None].append(labels)
    best = found[True] or found[False]  # one that is called after the split wins
    if len(best) > 1 and any(labels.by_file != best[0].by_file for labels in best):
        names = " and ".join(labels.table for labels in best[:2])
        raise UserError(f"{source}: {names} label the same images differently; remove one of them")
    return best[0] if best else None


def is_table(file: File) -> bool:
    """Whether a file may be a table of labels, by its name."""
    name = file.parts[-1]
    return name.lower().endswith(_EXTENSIONS) and not _TO_FILL_IN & set(words_of(name))


def _read(
    source: str, table: File, images: Sequence[File], others: Sequence[File], split: str
) -> Labels | None:
    where = f"{source}: {table.name}"
    rows = _rows(read_text(table, where), where)
    if len(rows) < 2:
        return None
    known, rivals = _by_name(images), _by_name(others)
    width = len(rows[0])

    def matches(column: int, names: Mapping[str, File]) -> int:
        return sum(_find(row[column], names) is not None for row in rows if len(row) == width)

    hits = [matches(column, known) for column in range(width)]
    key = max(range(width), key=lambda column: hits[column])
    if 2 * hits[key] < min(len(images), len(rows) - 1) or not hits[key]:
        return None
    of_both = [row for row in rows if len(row) == width and _find(row[key], rivals)]
    if split != TRAIN and any(_find(row[key], known) for row in of_both):
        return None  # the same names in both: those to train on are meant
    has_header = _find(rows[0][key], known) is None
    header = rows[0] if has_header else [f"column {n + 1}" for n in range(width)]
    body = rows[has_header:]
    elsewhere = {id(row) for row in of_both if _find(row[key], known) is None}
    for number, row in enumerate(body, 1 + has_header):
        if len(row) != width:
            raise UserError(f"{where}: row {number} has {len(row)} fields, the first {width}")
    column = _label_column(where, header, body, key)
    if column is None:
        return None
    body = [row for row in body if id(row) not in elsewhere]
    return _labels(where, table, body, key, column, known, images)


def _rows(text: str, where: str) -> list[list[str]]:
    """The rows of a table, whichever of comma, semicolon and tab stands between its fields."""
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{where}: no table that can be read ({error}); save it again") from None
    return [[field.strip() for field in row] for row in rows if any(map(str.strip, row))]


def _by_name(images: Sequence[File]) -> dict[str, File]:
    """Files by every way to name them: with folders or without, with the extension or without."""
    found: dict[str, File] = {}
    twice = set()
    for file in images:
        for start in range(len(file.parts)):
            name = "/".join(file.parts[start:])
            for spelling in {name, name.rpartition(".")[0]}:
                if found.setdefault(spelling, file) is not file:
                    twice.add(spelling)
    return {name: file for name, file in found.items() if name not in twice}


def _find(value: str, names: Mapping[str, File]) -> File | None:
    """The file that a field names; folders that are not there are passed over."""
    parts = value.replace("\\", "/").removeprefix("./").strip("/").split("/")
    for start in range(min(len(parts), 16)):
        file = names.get("/".join(parts[start:]))
        if file is not None:
            return file
    return None


def _label_column(
    where: str, header: Sequence[str], rows: Sequence[Sequence[str]], key: int
) -> int | None:
    """The column of the labels: one that is called so, else the one with few different values."""
    columns = [column for column in range(len(header)) if column != key]
    values = {column: {row[column] for row in rows} - {""} for column in columns}
    called = [column for column in columns if _is_label(header[column], header)]
    several = [column for column in called if len(values[column]) > 1]
    few = [column for column in columns if 2 <= len(values[column]) <= len(rows) / 2]
    candidates = several or called or few
    if len(candidates) > 1:
        candidates = _names_for_numbers(candidates, rows) or candidates
    if len(candidates) > 1:
        named = ", ".join(header[column] for column in candidates[:5])
        raise UserError(
            f"{where}: {len(candidates)} columns may be the label ({named}); "
            f"call the right one label and the others something else"
        )
    return candidates[0] if candidates else None


def _is_label(name: str, header: Sequence[str]) -> bool:
    """Whether a header says label; y does not beside x, which are a place in the image."""
    words = set(words_of(name))
    return bool(words & _LABELS) or (words == {"y"} and not {"x", "X"} & set(header))


def _names_for_numbers(columns: Sequence[int], rows: Sequence[Sequence[str]]) -> list[int]:
    """The first column that is no number, if all of them tell the same classes apart."""
    together = len({tuple(row[column] for column in columns) for row in rows})
    if any(len({row[column] for row in rows}) != together for column in columns):
        return []
    names = [c for c in columns if not all(row[c].replace(".", "").isdigit() for row in rows)]
    return (names or list(columns))[:1]


def _labels(
    where: str,
    table: File,
    rows: Sequence[Sequence[str]],
    key: int,
    column: int,
    known: Mapping[str, File],
    images: Sequence[File],
) -> Labels:
    labels = Labels(table.name, {})
    for row in rows:
        file, label = _find(row[key], known), row[column]
        if file is None:
            labels.missing.append(row[key])
        elif not label:
            continue
        elif labels.by_file.setdefault(id(file), label) != label:
            raise UserError(
                f"{where}: {row[key]} has the labels {labels.by_file[id(file)]} and {label}; "
                f"give every image one class"
            )
    labels.unnamed = [file for file in images if id(file) not in labels.by_file]
    if len(Counter(labels.by_file.values())) == len(labels.by_file) > 2:
        raise UserError(
            f"{where}: every image has a label of its own; call the column of the classes label"
        )
    return labels
