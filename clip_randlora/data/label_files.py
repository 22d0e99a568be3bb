"""Files that give images labels, as tables: CSV, JSON, and what labelling tools export.

Read are CSV with any separator, JSON and JSON lines; the exports of Label Studio (JSON, JSON-MIN,
CSV), of CVAT ("CVAT for images" and "ImageNet") and of Roboflow (``_classes.csv``); and data frames
of pandas and polars. The images are not known here: `tables` finds the columns and the images.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.parsers import expat

from clip_randlora.data.folder_names import split_name, word_table, words_of
from clip_randlora.data.sources import File, printable
from clip_randlora.data.texts import read_bytes, read_text
from clip_randlora.errors import UserError

CSV_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*CSV_SUFFIXES, ".json", ".jsonl", ".ndjson", ".xml", ".txt")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")

_PREDICTION_WORDS = word_table(  # tables of guesses to be handed in, not of labels
    "submission submissions submit sample pred preds prediction predictions"
)
_CLASS_FILES = ("synsets.txt", "classes.txt", "classnames.txt")  # one name a line
_SEPARATORS = ",;\t|"
_MAX_COLUMNS = 10_000
_MAX_CELLS = 50_000_000
_MAX_LINE = 4000  # of a list
_LIST_LINE = re.compile(  # "a name".jpg 0 2, of which only an id with spaces is quoted
    r'(?:"(?P<id>[^"]+)"(?P<ending>\S*)|(?P<plain>\S.*?))(?P<numbers>(?:\s+\d+)*)\s*'
)

Cell = str | tuple[str, ...]
"""A text without spaces around it, or the several classes of one image."""


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table to use; those that are None are found.

    Attributes:
        path: names the image's file; in a data set of the hub, holds the image.
        label: the image's class.
        split: the image's split, such as train and test; or 0 and 1, of a column ``is_test``.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None

    def __bool__(self) -> bool:
        return any((self.path, self.label, self.split))

    @classmethod
    def parse(cls, value: str | Mapping[str, str] | ColumnNames | None) -> ColumnNames:
        """Read ``path=file,label=species``, or a mapping; ``image`` means ``path``.

        Raises:
            UserError: it is not of that form, or names other things.
        """
        if isinstance(value, ColumnNames):
            return value
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.split(",")]
            value = {name.strip(): column.strip() for name, _, column in pairs}
        found: dict[str, str] = {}
        for name, column in (value or {}).items():
            key = "path" if name == "image" else name
            if key not in cls.__dataclass_fields__ or key in found or not str(column):
                raise UserError(
                    f"--columns: {name}={column}: give path=COLUMN, label=COLUMN and split=COLUMN, "
                    f"or some of them"
                )
            found[key] = str(column)
        return cls(**found)

    def as_text(self) -> str:
        """Return it in the form of ``--columns``."""
        chosen = {"path": self.path, "label": self.label, "split": self.split}
        return ",".join(f"{name}={column}" for name, column in chosen.items() if column)


@dataclass(frozen=True)
class Table:
    """The rows of a file or a data frame.

    Attributes:
        name: of the file.
        rows: cells; the rows of a CSV need not have the same width.
        header: the columns' names; None if the first row may be them.
        columns: those that the format tells.
    """

    name: str
    rows: Sequence[Sequence[Cell]]
    header: Sequence[str] | None = None
    columns: ColumnNames = ColumnNames()

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.header if self.header is not None else self.rows[0] if self.rows else ())


def is_csv(file: File) -> bool:
    """Whether a file may be a CSV of labels, by its name."""
    return file.name.lower().endswith(CSV_SUFFIXES) and may_have_labels(file)


def may_have_labels(file: File, siblings: Iterable[str] = ()) -> bool:
    """Whether a file may give labels, by its name.

    Args:
        file: any file.
        siblings: the names of the files beside it.
    """
    name = file.own_name.lower()
    if not name.endswith(SUFFIXES) or _PREDICTION_WORDS & set(words_of(file.own_name)):
        return False
    if not name.endswith(".txt"):
        return True
    return name not in _CLASS_FILES and (
        split_name(name.rpartition(".")[0]) is not None or _CLASS_FILES[0] in siblings
    )


def read_table(file: File, where: str, siblings: Sequence[File] = ()) -> Table | None:
    """Read a file as a table.

    Args:
        file: its ending says which of the forms it has.
        where: the file's name in errors.
        siblings: the files beside it, among which may be the names of the classes.

    Returns:
        None if it is in none of the forms: other JSON or XML, for example.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    ending = file.own_name.lower().rpartition(".")[2]
    if ending == "xml":
        return _read_cvat(file, where)
    text = read_text(file, where)
    if ending == "txt":
        return _read_list(file, text, where, siblings)
    if f".{ending}" in CSV_SUFFIXES:
        return _read_csv(file.name, text, where)
    return _read_json(file.name, text, where)


def is_frame(value: object) -> bool:
    """Whether a value is a data frame of pandas, or a table in the Arrow C stream's form."""
    return hasattr(value, "__arrow_c_stream__") or (
        type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "itertuples")
    )


def table_of_frame(frame: Any) -> Table:
    """Read a data frame of pandas, or a table in the Arrow C stream's form, as polars has it."""
    if not hasattr(frame, "itertuples"):
        from pyarrow import table

        frame = table(frame).to_pandas()
    rows = frame.itertuples(index=False, name=None)
    header = [str(name).strip() for name in frame.columns]
    return Table("the table", [tuple(map(_cell, row)) for row in rows], header)


# --- CSV


def _read_csv(name: str, text: str, where: str) -> Table:
    first, _, rest = text.partition("\n")
    stated = re.fullmatch(r"sep=(.)\s*", first)  # Excel's own line
    separator = stated[1] if stated else _find_separator(text)
    source = io.StringIO(rest if stated else text, newline="")
    try:
        rows = list(csv.reader(source, delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{where}: no table that can be read ({error}); save it again") from None
    read = _choices if '{""choices""' in text else str.strip  # of Label Studio
    return Table(name, [list(map(read, row)) for row in rows if any(map(str.strip, row))])


def _find_separator(text: str) -> str:
    """Choose the separator that splits the first lines into the most columns of one number."""
    start = "\n".join(text.split("\n", 20)[:20])

    def count(separator: str) -> tuple[int, int]:
        try:
            rows = list(csv.reader(io.StringIO(start, newline=""), delimiter=separator))
        except csv.Error:
            return 0, 0
        width = len(rows[0]) if rows else 0
        return sum(len(row) == width > 1 for row in rows), width

    return max(_SEPARATORS, key=count)


def _choices(text: str) -> Cell:
    """Read a cell of Label Studio's CSV: one class as it is, several as JSON."""
    if text.startswith('{"choices"'):
        try:
            return _cell(json.loads(text))
        except (ValueError, RecursionError):
            pass
    return text.strip()


# --- JSON


def _read_json(name: str, text: str, where: str) -> Table | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) < 2:
                raise error
            value = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            raise UserError(
                f"{where}: neither JSON nor JSON lines ({error}); export it again"
            ) from None
    return _table_of_json(name, value, where)


def _table_of_json(name: str, value: Any, where: str) -> Table | None:
    if isinstance(value, dict):
        if {"columns", "data"} <= value.keys():  # pandas, orient="split"
            return _table_of_lists(name, [value["columns"], *_list(value["data"])])
        lists = [entry for entry in value.values() if isinstance(entry, list) and entry]
        if len(lists) == 1 and isinstance(lists[0][0], list | dict):  # {"images": [...]}
            return _table_of_json(name, lists[0], where)
        value = list(map(list, value.items())) if not _is_nested(value) else _records_of(value)
        if value and isinstance(value[0], list):  # {"1.jpg": "cat"}
            return Table(name, [list(map(_cell, pair)) for pair in value], ["file", "label"])
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(entry, list) for entry in value):
        return _table_of_lists(name, value)
    if not all(isinstance(entry, dict) for entry in value):
        return None
    if all(isinstance(task.get("data"), dict) for task in value):
        return _read_label_studio(name, value, where)
    return _table_of_records(name, value, where)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _table_of_lists(name: str, rows: Sequence[Any]) -> Table | None:
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return None
    return Table(name, [list(map(_cell, row)) for row in rows])


def _is_nested(value: Mapping[str, Any]) -> bool:
    return all(isinstance(entry, dict) for entry in value.values())


def _records_of(value: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Read pandas' orient="columns", ``{column: {row: cell}}``, or "index", the other way round."""
    first = next(iter(value.values()), {})
    if len(value) > len(first) or any(len(cells) != len(first) for cells in value.values()):
        return list(value.values())
    return [{column: cells.get(row) for column, cells in value.items()} for row in first]


def _table_of_records(
    name: str,
    records: Sequence[Mapping[str, Any]],
    where: str,
    columns: ColumnNames = ColumnNames(),  # frozen
) -> Table:
    header = list(dict.fromkeys(key for record in records for key in record))
    if len(header) > _MAX_COLUMNS or len(header) * len(records) > _MAX_CELLS:
        raise UserError(f"{where}: {len(header)} columns, too many for {len(records)} rows")
    rows = [tuple(_cell(record.get(key)) for key in header) for record in records]
    return Table(name, rows, [key.strip() for key in header], columns)


def _cell(value: Any) -> Cell:
    """Return a value as a cell; "" for one that is missing, or is no text, number or list."""
    if isinstance(value, str | int | float):
        return _text(value)
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, dict) and set(value) == {"choices"}:
        value = value["choices"]
    if isinstance(value, list | tuple):
        return _several(filter(None, map(_text, value)))
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) or hasattr(value, "__fspath__") else ""


def _several(names: Iterable[str]) -> Cell:
    """Return the cell of an image with these classes, none, one or several."""
    different = tuple(dict.fromkeys(names))
    return different if len(different) > 1 else "".join(different)


# --- labelling tools


def _read_label_studio(name: str, tasks: Sequence[Any], where: str) -> Table | None:
    """Read Label Studio's JSON: tasks with annotations, of which choices are the classes.

    The annotators of a task may not agree: it then has several classes.
    """
    records: list[dict[str, Any]] = []
    controls: set[str] = set()  # <Choices> of the labelling interface
    for task in tasks:
        chosen: dict[str, list[str]] = {}
        for annotation in _list(task.get("annotations", task.get("completions"))):
            if _dict(annotation).get("was_cancelled") or _dict(annotation).get("skipped"):
                continue
            for result in map(_dict, _list(_dict(annotation).get("result"))):
                if result.get("type") == "choices":
                    names = _list(_dict(result.get("value")).get("choices"))
                    chosen.setdefault(str(result.get("from_name")), []).extend(map(_text, names))
        controls |= chosen.keys()
        cells = {key: _several(filter(None, names)) for key, names in chosen.items()}
        records.append(task["data"] | cells)
    if not controls:
        return None
    label = controls.pop() if len(controls) == 1 else None
    return _table_of_records(name, records, where, ColumnNames(label=label))


def _read_cvat(file: File, where: str) -> Table | None:
    """Read CVAT's ``annotations.xml`` for images, of which tags are the classes.

    Entities, which could expand without bounds or read other files, need a document type, and CVAT
    writes none: a file with one is refused.
    """
    rows: list[tuple[Cell, ...]] = []
    image: dict[str, str] = {}
    tags: list[str] = []
    depth, tagged = 0, 0

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal depth, image, tagged
        depth += 1
        if depth == 1 and element != "annotations":
            raise _NotCvat
        if element == "image":
            image = attributes
            tags.clear()
        elif element == "tag" and image and "label" in attributes:
            tags.append(attributes["label"].strip())
            tagged += 1

    def end(element: str) -> None:
        nonlocal depth, image
        depth -= 1
        if element == "image":
            rows.append((image.get("name", ""), image.get("subset", ""), _several(tags)))
            image = {}

    def refuse(*_: Any) -> None:
        raise UserError(f"{where}: has a DOCTYPE, which CVAT does not write; export it again")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_bytes(file, where), True)
    except _NotCvat:
        return None
    except expat.ExpatError as error:
        raise UserError(f"{where}: no XML that can be read ({error}); export it again") from None
    known = ColumnNames("name", "tag", "subset" if any(row[1] for row in rows) else None)
    return Table(file.name, rows, ["name", "subset", "tag"], known) if tagged else None


class _NotCvat(Exception):
    """The XML is another program's."""


def _read_list(file: File, text: str, where: str, siblings: Sequence[File]) -> Table | None:
    """Read a list like ImageNet's, ``1.jpg 0``, whose numbers ``synsets.txt`` beside it names.

    The lists of Caffe and of others look alike, and may have names in place of numbers.
    """
    by_name = {other.own_name.lower(): other for other in siblings}
    names_file = next((by_name[name] for name in _CLASS_FILES if name in by_name), None)
    names: list[str] = []
    if names_file is not None:
        names = [line.strip() for line in read_text(names_file, where).splitlines()]
    rows: list[tuple[Cell, ...]] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = _LIST_LINE.fullmatch(line) if len(line) < _MAX_LINE else None
        if found is None:
            continue
        path = found["plain"] or found["id"] + found["ending"]
        labels = found["numbers"].split()
        if not labels and found["plain"] and len(words := path.split()) == 2:
            path, *labels = words
        elif names:
            if wrong := [label for label in labels if int(label) >= len(names)]:
                raise UserError(
                    f"{where}: line {number} has the label {wrong[0]}, but the {len(names)} names "
                    f"beside it are those of 0 to {len(names) - 1}; correct one of them"
                )
            labels = [names[int(label)] for label in labels]
        rows.append((path, _several(map(printable, labels))))
    labelled = sum(bool(label) for _, label in rows)
    if 2 * labelled <= len(rows):
        return None
    return Table(file.name, rows, ["file", "label"], ColumnNames("file", "label"))
