"""The commands that ask a run: eval, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clip_randlora.cli.console import loading, messages, print_metrics, progress, results
from clip_randlora.cli.options import (
    ClassFoldersOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    RunArgument,
)


def evaluate(
    run: RunArgument,
    data: DataArgument,
    count: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="held-out: those that the run held out, where DATA has them, else as unseen. "
            "unseen: all that it was not trained on. all: those too.",
        ),
    ] = "held-out",
    class_folders: ClassFoldersOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare zero-shot and tuned on labelled images that the run was not trained on."""
    with loading():
        from clip_randlora.classifier import Classifier
        from clip_randlora.data import summarize_skipped
        from clip_randlora.evaluation import as_mapping, predict_split, score
        from clip_randlora.heldout import find_test_images

        classifier = Classifier.load(run, device=device)
    with progress() as on_progress:
        images = find_test_images(run, data, count, class_folders, on_progress=on_progress)
        predictions = predict_split(classifier.side_by_side(), images.split, on_progress)
    for note in images.notes:
        messages.print(f"- {note}", markup=False)
    skipped = [*images.skipped, *predictions.skipped]
    metrics = score(predictions) | {
        "images": len(predictions.names),
        "left_out": images.left_out,
        "others_left_out": images.others_left_out,
        "skipped": len(skipped),
    }
    if skipped:
        messages.print(summarize_skipped(skipped), markup=False)
    if not as_json:
        print_metrics(metrics)
        return
    metrics["predictions"] = [
        {
            "image": name,
            "label": classifier.classes[label],
            "zero_shot": as_mapping(classifier.classes, zero_shot),
            "tuned": as_mapping(classifier.classes, tuned),
        }
        for name, label, zero_shot, tuned in zip(
            predictions.names,
            predictions.labels.tolist(),
            predictions.zero_shot,
            predictions.tuned,
            strict=True,
        )
    ]
    print(json.dumps(metrics, ensure_ascii=False))


def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    strength: Annotated[float, typer.Option(help="0: zero-shot, 1: tuned.")] = 1.0,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the answers side by side to this PNG.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images, zero-shot and tuned side by side."""
    with loading():
        from clip_randlora.classifier import Classifier

        classifier = Classifier.load(run, strength=strength, device=device)
    answers = classifier.predict(images)
    if figure:
        from clip_randlora import figures
        from clip_randlora.data import decode_image

        opened = [decode_image(image) for image in images]
        figures.save(figures.side_by_side(opened, answers, [None] * len(opened)), figure)
    if as_json:
        rows = [
            {"image": str(image), **answer} for image, answer in zip(images, answers, strict=True)
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("image", "zero-shot", "tuned")
    for image, answer in zip(images, answers, strict=True):
        table.add_row(*map(escape, [str(image), _top(answer["zero_shot"]), _top(answer["tuned"])]))
    results.print(table)


def _top(answer: dict[str, float], most: int = 3) -> str:
    return "\n".join(f"{p:6.1%}  {name}" for name, p in list(answer.items())[:most])
