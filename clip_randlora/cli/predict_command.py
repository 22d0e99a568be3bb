"""The command predict: a run's answers for images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from clip_randlora.cli.console import loading, messages, print_notes, progress, results
from clip_randlora.cli.image_arguments import IMAGES_HELP, name_unreadable, read_images
from clip_randlora.cli.options import (
    RESULTS,
    AddressOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    RunArgument,
    WorkersOption,
    load_classifier,
)
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import report_streamed

if TYPE_CHECKING:
    from clip_randlora.data.inputs import Input

_IN_FIGURE = 100

Write = Callable[[str, dict[str, Any]], None]


def predict(
    run: RunArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help=IMAGES_HELP,
        ),
    ],
    strength: Annotated[float, typer.Option(help="0: zero-shot, 1: tuned.")] = 1.0,
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw the answers to this PNG.", rich_help_panel=RESULTS),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Write every probability to this new file.", rich_help_panel=RESULTS
        ),
    ] = None,
    reject: Annotated[
        bool,
        typer.Option("--reject", help="Say of images that are of none of the classes: unknown."),
    ] = False,
    device: DeviceOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images, zero-shot and tuned side by side.

    Images that cannot be read are named on standard error; the others are classified. The exit
    status is 2 if no image can be read.
    """
    if csv_file and csv_file.exists():
        raise UserError(f"--csv {csv_file}: exists; choose another file")
    if reject and engine != "local":
        raise UserError(f"--reject: not with --engine {engine}; leave one of them out")
    with loading():
        classifier = load_classifier(run, device, engine, address, workers, strength)
    with progress() as on_listing:
        entries = read_images(images, on_listing)
    total = len(entries) if isinstance(entries, list) else 0  # unknown for standard input
    entries, asked = tee(entries)
    bad: list[str] = []
    drawn: list[tuple[Input, dict[str, Any]]] = []
    answered = 0
    with ExitStack() as stack:
        outputs = (
            [stack.enter_context(_csv(csv_file, classifier.classes, reject))] if csv_file else []
        )
        if as_json or not csv_file:
            outputs.append(stack.enter_context(_json() if as_json else _table()))
        # on a terminal a bar would mix with the lines of JSON
        hidden = as_json and sys.stdout.isatty()
        on_progress = None if hidden else stack.enter_context(progress())
        options = {"reject": True} if reject else {}
        found = classifier.predict_each(entries, on_error="return", **options)
        answers = zip(asked, found, strict=True)
        for entry, (name, answer) in report_streamed(
            answers, "classifying images", total, on_progress
        ):
            if "error" in answer:
                bad.append(answer["error"])
                continue
            answered += 1
            for write in outputs:
                write(name, answer)
            if figure and len(drawn) < _IN_FIGURE:
                drawn.append((entry, answer))
        if not answered:
            raise _nothing_answered(bad)
    name_unreadable(bad, answered)
    if csv_file:
        messages.print(f"{answered} images answered: saved to {csv_file}")
    if figure:
        _draw(drawn, answered, figure)


def _nothing_answered(errors: list[str]) -> UserError:
    from clip_randlora.data.inputs import none_readable

    if len(errors) > 1:
        name_unreadable(errors, 0)
    return none_readable(errors)


@contextmanager
def _csv(path: Path, classes: tuple[str, ...], reject: bool) -> Iterator[Write]:
    """Write a row for each answer; the file appears when it is complete."""
    from clip_randlora.runs.predictions_file import probability_cells, probability_columns
    from clip_randlora.utils.outputs import atomic_write

    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        columns = ["image", "zero_shot", "tuned", *(["unknown"] if reject else [])]
        writer.writerow([*columns, *probability_columns(classes)])

        def write(name: str, answer: dict[str, Any]) -> None:
            both = answer["zero_shot"], answer["tuned"]
            in_order = ([probabilities[name] for name in classes] for probabilities in both)
            tops = [next(iter(probabilities)) for probabilities in both]
            unknown = [str(answer["unknown"]).lower()] if reject else []
            writer.writerow([name, *tops, *unknown, *probability_cells(*in_order)])

        yield write


@contextmanager
def _json() -> Iterator[Write]:
    """Print one JSON list, answer by answer, or nothing without answers."""
    before = "["

    def write(name: str, answer: dict[str, Any]) -> None:
        nonlocal before
        print(before, json.dumps({"image": name, **answer}, ensure_ascii=False), sep="", end="")
        before = ", "

    yield write
    if before != "[":
        print("]")


@contextmanager
def _table() -> Iterator[Write]:
    table = Table("image", "zero-shot", "tuned")

    def write(name: str, answer: dict[str, Any]) -> None:
        tuned = _top(answer["tuned"])
        if answer.get("unknown"):
            tuned = f"unknown: none of the classes\n{tuned}"
        table.add_row(name, _top(answer["zero_shot"]), tuned)

    yield write
    results.print(table)


def _top(answer: dict[str, float], most: int = 3) -> str:
    return "\n".join(f"{p:6.1%}  {name}" for name, p in list(answer.items())[:most])


def _draw(answered: list[tuple[Input, dict[str, Any]]], count: int, path: Path) -> None:
    """Draw the first answers side by side.

    Raises:
        UserError: the figure cannot be drawn or written.
    """
    from clip_randlora.utils.outputs import figure_errors_to_notes

    notes: list[str] = []
    with figure_errors_to_notes(f"--figure {path}", notes):
        from clip_randlora.runs import figures

        images = [entry.open() for entry, _ in answered]
        figure = figures.compare_answers(images, [a for _, a in answered], [None] * len(images))
        figures.save(figure, path)
    if notes:
        raise UserError(notes[0])
    if count > len(answered):
        print_notes([f"The figure shows the first {len(answered)} of {count} images."])
