"""The command check: wrong labels, near duplicates, outliers and bad files, and their repair."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from clip_randlora.cli.console import (
    loading,
    messages,
    print_json,
    print_notes,
    progress,
    results,
)
from clip_randlora.cli.options import (
    RESULTS,
    ClassFoldersOption,
    ColumnsOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    load_data_and_model,
)
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.checking.problems_file import Problem

_FIRST = 5


def check(
    data: DataArgument,
    class_folders: ClassFoldersOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = "lite0",
    pretrained: PretrainedOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a report with thumbnails to this new file.", rich_help_panel=RESULTS
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Write every problem to this new file.", rich_help_panel=RESULTS
        ),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Do what the column `action` of an edited --csv says, `move` or `remove`, in "
            "place of a check.",
            rich_help_panel="Repair",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Of --fix, for --undo. Default: a new file beside DATA.", rich_help_panel="Repair"
        ),
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option(
            metavar="JOURNAL",
            help="Put back what --fix moved, in place of a check.",
            rich_help_panel="Repair",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find wrong labels, near duplicates, outliers and bad files; change none without --fix.

    --fix moves files to the folder of the suggested class, or into a folder DATA_removed beside
    the data; it deletes and overwrites nothing.
    """
    if fix and undo:
        raise UserError("--fix and --undo: give one of them")
    if journal and not fix:
        raise UserError("--journal: only with --fix")
    if undo:
        return _undo(undo, as_json)
    if fix:
        return _fix(data, class_folders, fix, journal, as_json)
    for option, path in (("--html", html), ("--csv", csv_file)):
        if path and path.exists():
            raise UserError(f"{option} {path}: exists; choose another file")
    # copies of test images stay in training, so that they are found
    labelled, loaded = load_data_and_model(
        data, None, class_folders, model, pretrained, device, check=False, columns=columns
    )
    from clip_randlora.checking import check_images
    from clip_randlora.checking.problems_file import list_problems, write_problems
    from clip_randlora.checking.report_page import write_report

    with progress() as on_progress:
        findings = check_images(labelled, loaded, on_progress)
        if html:
            write_report(findings, html, data, on_progress)
    if csv_file:
        write_problems(findings, csv_file)
    problems = list(list_problems(findings))
    if as_json:
        rows = [{k: v for k, v in asdict(p).items() if k != "index"} for p in problems]
        content = {"images": len(findings.items), "problems": rows, "notes": findings.notes}
        print_json(content)
    else:
        _print(problems, len(findings.items))
    print_notes(findings.notes)
    for path in filter(None, (html, csv_file)):
        messages.print(f"Saved to {path}")


def _print(problems: list[Problem], images: int) -> None:
    """Print how many images have each problem, and the first of them."""
    counts = Counter(problem.problem for problem in problems)
    if not counts:
        results.print(f"{images} images: nothing found")
        return
    table = Table("problem", "images", "the first")
    for kind, count in counts.items():
        first = [p for p in problems if p.problem == kind][:_FIRST]
        table.add_row(kind, str(count), "\n".join(map(_line, first)))
    results.print(table)
    results.print(f"{images} images checked")


def _line(problem: Problem) -> str:
    if problem.certainty is not None:
        return f"{problem.image}: {problem.suggestion}? ({problem.certainty:.0%} sure)"
    return f"{problem.image}: {problem.detail}" if problem.detail else problem.image


def _fix(
    data: str, class_folders: str | None, fix: Path, journal: Path | None, as_json: bool
) -> None:
    if not Path(data).expanduser().is_dir():
        raise UserError(
            f"{data}: --fix moves files of a folder of class folders; unpack or download it first"
        )
    with loading():
        from clip_randlora.checking.fixes import apply_moves, default_journal, plan_moves
        from clip_randlora.checking.problems_file import read_actions
        from clip_randlora.data import load_data

    actions = read_actions(fix)
    with progress() as on_progress:
        labelled = load_data(
            data,
            class_folders=class_folders,  # type: ignore[arg-type]  # checked there
            check=False,
            on_progress=on_progress,
        )
    moves = plan_moves(data, labelled, actions)
    if not moves:
        raise UserError(f"--fix {fix}: no row has an action; write move or remove under action")
    journal = journal or default_journal(data)
    count = apply_moves(moves, journal)
    if as_json:
        return print_json({"moved": count, "journal": str(journal)})
    results.print(f"Moved {count} files; --undo {journal} puts them back")


def _undo(journal: Path, as_json: bool) -> None:
    with loading():
        from clip_randlora.checking.fixes import undo_moves
    count, problems = undo_moves(journal)
    print_notes(problems)
    if as_json:
        return print_json({"put_back": count, "notes": problems})
    results.print(f"Put back {count} files")
