"""The CSV of findings: a row for each image with a problem, which a person may edit."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clip_randlora.checking.findings import Findings
from clip_randlora.errors import UserError
from clip_randlora.utils.outputs import write_csv

COLUMNS = ("problem", "image", "split", "class", "suggestion", "certainty", "detail", "action")
ACTIONS = ("", "move", "remove")
_PROBLEMS = {"splits": "duplicate across splits", "classes": "duplicate across classes"}


@dataclass(frozen=True)
class Problem:
    """One row: an image and what is the matter with it.

    Attributes:
        problem: its kind, in words.
        image: its name in the set.
        split: "train", "test" or "validation"; "" if the image could not be read.
        given: its class, "" if it could not be read.
        suggestion: the class that it may belong to, for wrong labels.
        certainty: of wrong labels, 0 to 1; None for other problems.
        detail: what else there is to say.
        index: into the findings' items; None if the image could not be read.
    """

    problem: str
    image: str
    split: str = ""
    given: str = ""
    suggestion: str = ""
    certainty: float | None = None
    detail: str = ""
    index: int | None = None


def list_problems(findings: Findings) -> Iterator[Problem]:
    """Yield a row for each image with a problem; a copy names the group that it belongs to."""

    def row(problem: str, index: int, **more: object) -> Problem:
        item = findings.items[index]
        given = findings.classes[item.label]
        split = findings.splits[index]
        return Problem(problem, item.name, split, given, index=index, **more)  # type: ignore[arg-type]

    for wrong in findings.wrong_labels:
        suggestion = findings.classes[wrong.suggested]
        yield row("wrong label", wrong.index, suggestion=suggestion, certainty=wrong.certainty)
    for number, group in enumerate(findings.duplicates, start=1):
        detail = f"group {number}, {group.similarity:.3f} alike"
        for index in group.indices:
            yield row(_PROBLEMS.get(group.where, "duplicate"), index, detail=detail)
    for outlier in findings.outliers:
        yield row("outlier", outlier.index, detail=f"distance {outlier.distance:.3f}")
    for index in findings.blank:
        yield row("blank", index)
    for small in findings.tiny:
        width, height = small.size
        yield row("tiny", small.index, detail=f"{width} x {height} pixels")
    for skipped in findings.unreadable:
        yield Problem("unreadable", skipped.name, detail=skipped.reason)


def write_problems(findings: Findings, path: str | Path) -> None:
    """Write every problem to a CSV, with an empty column ``action`` to be filled in.

    Raises:
        UserError: the file cannot be written.
    """
    rows = (
        (p.problem, p.image, p.split, p.given, p.suggestion, _share(p.certainty), p.detail, "")
        for p in list_problems(findings)
    )
    write_csv(path, COLUMNS, rows)


@dataclass(frozen=True)
class Action:
    """What a row of an edited CSV asks for: to move an image to a class, or to remove it.

    Attributes:
        line: of the file.
        image: its name in the set.
        target: the class to move it to; None removes it.
    """

    line: int
    image: str
    target: str | None


def read_actions(path: str | Path) -> list[Action]:
    """Read the rows of an edited CSV whose ``action`` is ``move`` or ``remove``.

    Spreadsheets may have written semicolons or tabs in place of commas, and a byte-order mark.

    Raises:
        UserError: the file cannot be read, lacks a column, or has another action, a move without a
            suggestion, or two different actions for an image.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--fix {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--fix {path}: not text in UTF-8; save it as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    missing = {"image", "suggestion", "action"} - set(reader.fieldnames or ())
    if missing:
        raise UserError(
            f"--fix {path}: there is no column {sorted(missing)[0]}; give the file that --csv "
            f"wrote, with its first line"
        )
    found: dict[str, Action] = {}
    for row in reader:
        where, action = f"--fix {path}, line {reader.line_num}", (row["action"] or "").strip()
        if action.casefold() not in ACTIONS:
            raise UserError(f"{where}: the action {action!r} is not move, remove or nothing")
        if not action:
            continue
        image, target = row["image"] or "", (row["suggestion"] or "").strip()
        if action.casefold() == "move" and not target:
            raise UserError(f"{where}: move {image} where? give a class under suggestion")
        wanted = Action(reader.line_num, image, target if action.casefold() == "move" else None)
        before = found.setdefault(image, wanted)
        if before.target != wanted.target:
            raise UserError(f"{where}: line {before.line} wants something else done to {image}")
    return list(found.values())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
