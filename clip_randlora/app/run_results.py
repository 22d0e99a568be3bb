"""How good a run is on its test images, for the page and for scripts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import clip_randlora as cr
from clip_randlora.app.pictures import Picture
from clip_randlora.app.workspace import Workspace
from clip_randlora.runs.image_record import read_images
from clip_randlora.runs.predictions_file import read_answers
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.runs.verdict import judge


def summarize(folder: Path) -> dict[str, Any]:
    """Return what the list of runs shows of a finished run.

    Raises:
        UserError: the run is damaged.
    """
    metrics = read_metrics(folder)
    try:
        return {
            "before": metrics["zero_shot"]["top1"],
            "after": metrics["tuned"]["top1"],
            "train_images": metrics["images"]["train"],
            "test_images": metrics["images"]["test"],
            "method": metrics["method"],
            "model": metrics["model"],
            "seconds": metrics["train_seconds"],
            "parameters": metrics["trainable_parameters"],
            "verdict": cr.verdict(folder),
        }
    except (KeyError, TypeError) as error:
        raise cr.UserError("the run's metrics are damaged; load another copy") from error


def results(workspace: Workspace, run: str | None) -> dict[str, Any]:
    """Return everything that is known of a run's answers to its test images.

    Args:
        workspace: whose run.
        run: its id; None for the run in use.

    Returns:
        ``verdict``; ``before`` and ``after`` with ``top1`` and ``ece``; ``classes``, the names;
        ``per_class``, a row each; ``images``, a row for each test image with the ``number`` and
        ``address`` of the gathered image, None if it is not there any more; ``curves``, what was
        reported during the training.

    Raises:
        UserError: there is no such run, or it is not finished or damaged.
    """
    folder = workspace.runs.finished(run)
    metrics, answers = read_metrics(folder), read_answers(folder)
    classes = list(cr.read_task(folder).classes)
    gathered = _gathered(workspace, folder)
    return {
        "verdict": judge(answers),
        "before": metrics["zero_shot"],
        "after": metrics["tuned"],
        "classes": classes,
        "per_class": [
            {
                "name": name,
                "images": row["images"],
                "before": row["zero_shot"],
                "after": row["tuned"],
            }
            for name, row in metrics["per_class"].items()
        ],
        "images": [
            {
                "number": picture.number if picture else None,
                "address": workspace.address(picture) if picture else None,
                "label": row.label,
                "before": row.zero_shot,
                "after": row.tuned,
                "p_before": row.zero_shot_probability,
                "p_after": row.tuned_probability,
            }
            for row, picture in ((row, gathered.get((row.label, row.image))) for row in answers)
        ],
        "curves": _curves(folder),
    }


def _gathered(workspace: Workspace, folder: Path) -> dict[tuple[str, str], Picture]:
    """Return the gathered images by their class and name in the run's test images.

    Their content identifies them: another image may have got the name of one since.
    """
    record = read_images(folder)
    if record is None:  # a run of an earlier version
        return {}
    found = workspace.by_digest()
    return {
        (image.class_name, image.name): found[image.digest]
        for image in record.of("held out", "tested")
        if image.digest in found
    }


def _curves(folder: Path) -> list[dict[str, float | None]]:
    """Return loss and accuracies by step, from the run's ``history.csv``."""
    try:
        with open(folder / "history.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = ("step", "loss", "accuracy", "test_accuracy")
        return [{n: float(row[n]) if row.get(n) else None for n in names} for row in rows]
    except (OSError, ValueError):  # a loaded run may have none
        return []
