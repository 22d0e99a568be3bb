"""The command eval: a run's accuracy on labelled images."""

from __future__ import annotations

from typing import Annotated

import typer

from clip_randlora.cli.console import (
    loading,
    messages,
    print_json,
    print_metrics,
    print_notes,
    progress,
)
from clip_randlora.cli.options import (
    AddressOption,
    ClassFoldersOption,
    ColumnsOption,
    DataArgument,
    DeviceOption,
    EngineOption,
    JsonOption,
    RunArgument,
    WorkersOption,
    load_classifier,
)
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import report_progress


def evaluate(
    run: RunArgument,
    data: DataArgument,
    count: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="held-out: the images of DATA that the run held out; if there are none, as "
            "unseen. unseen: all that it was not trained on. all: every image.",
        ),
    ] = "held-out",
    own_classes: Annotated[
        bool,
        typer.Option(
            "--own-classes",
            help="Answer among the classes of DATA, not the run's: the tuned encoders with the "
            "prompts of classes that they may not have been trained on.",
        ),
    ] = False,
    class_folders: ClassFoldersOption = None,
    columns: ColumnsOption = None,
    device: DeviceOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare zero-shot and tuned on labelled images that the run was not trained on."""
    with loading():
        from clip_randlora.classifier import Classifier
        from clip_randlora.data import summarize_skipped
        from clip_randlora.evaluation import as_mapping, score, score_none_of_these
        from clip_randlora.runs.held_out import find_test_images

        classifier = load_classifier(run, device, engine, address, workers)
    with progress() as on_progress:
        images = find_test_images(
            run,
            data,
            count,  # type: ignore[arg-type]  # checked there
            class_folders,
            own_classes=own_classes,
            columns=columns,
            on_progress=on_progress,
        )
        notes = list(images.notes)
        if own_classes:
            trained = set(classifier.classes)
            classifier = classifier.for_classes(
                images.split.classes, images.templates or None, images.prompts
            )
            known = sum(name in trained for name in classifier.classes)
            notes.append(
                f"Answered among the {len(classifier.classes)} classes of {data}, of which the "
                f"run was trained on {known or 'none'}."
            )
        everything = classifier.predict_split(images.split, on_progress)
    print_notes(notes)
    classes = tuple(classifier.classes)
    is_of_class = everything.labels < len(classes)
    if not is_of_class.any():
        raise UserError(f"{data}: has images of none of the classes alone; give others beside them")
    predictions = everything.select(is_of_class, classes)
    skipped = [*images.skipped, *predictions.skipped]
    metrics = score(predictions) | {
        "images": len(predictions.names),
        "left_out": images.left_out,
        "others_left_out": images.others_left_out,
        "skipped": len(skipped),
    }
    if isinstance(classifier, Classifier) and everything.scores is not None:
        metrics |= score_none_of_these(everything, classes, classifier.unknown_threshold)
    if skipped:
        messages.print(summarize_skipped(skipped))
    if not as_json:
        print_metrics(metrics)
        return
    with progress() as on_progress:
        answers = zip(
            predictions.names,
            predictions.labels.tolist(),
            predictions.zero_shot,
            predictions.tuned,
            strict=True,
        )
        metrics["predictions"] = [
            {
                "image": name,
                "label": classifier.classes[label],
                "zero_shot": as_mapping(classifier.classes, zero_shot),
                "tuned": as_mapping(classifier.classes, tuned),
            }
            for name, label, zero_shot, tuned in report_progress(
                answers, "collecting answers", len(predictions.names), on_progress
            )
        ]
    print_json(metrics)
