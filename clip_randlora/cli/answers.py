"""The commands that ask a run: eval, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clip_randlora.cli.console import loading, messages, print_metrics, results
from clip_randlora.cli.options import DataArgument, DeviceOption, JsonOption, RunArgument, absolute
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.data import Data, Split


def evaluate(
    run: RunArgument,
    data: DataArgument,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare zero-shot and tuned on labelled images."""
    with loading():
        from clip_randlora.classifier import Classifier
        from clip_randlora.data import load_data, summarize_skipped
        from clip_randlora.evaluation import as_mapping, predict_split, score

        classifier = Classifier.load(run, device=device)
        labelled = load_data(data)
        split = _relabel(_all_or_test(run, data, labelled), classifier.classes, data)
    predictions = predict_split(classifier.side_by_side(), split)
    skipped = [*labelled.skipped, *predictions.skipped]
    metrics = score(predictions) | {"images": len(predictions.names), "skipped": len(skipped)}
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


def _all_or_test(run: Path, source: str, data: Data) -> Split:
    """Return the test split; for a new source without one, all its images."""
    from clip_randlora import runs
    from clip_randlora.data import Split

    trained_on = runs.read_config(run).get("data", {})
    if not data.held_out or absolute(source) == trained_on.get("data"):
        return data.test
    messages.print(f"- {source} has no test split: all its images are used", markup=False)
    return Split(data.train.items + data.test.items, data.classes)


def _relabel(split: Split, classes: tuple[str, ...], source: str) -> Split:
    """Number a split's labels by the run's classes."""
    from dataclasses import replace

    from clip_randlora.data import Split

    present = {split.classes[item.label] for item in split}
    unknown = sorted(present - set(classes))
    if unknown:
        raise UserError(
            f"{source}: the run does not know the class {unknown[0]!r}; it knows "
            f"{', '.join(classes)}"
        )
    items = (replace(i, label=classes.index(split.classes[i.label])) for i in split)
    return Split(tuple(items), classes)
