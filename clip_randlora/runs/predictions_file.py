"""A run's ``predictions.csv``: the zero-shot and the tuned answer for every test image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from clip_randlora.errors import UserError
from clip_randlora.evaluation import Predictions
from clip_randlora.utils.outputs import write_csv

PREDICTIONS = "predictions.csv"
_ANSWER_COLUMNS = ("image", "label", "zero_shot", "tuned")
_CLASSES_IN_FULL = 100  # with more classes, only the answers' probabilities are written


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write the columns image, label, zero_shot and tuned, and the probabilities.

    With up to 100 classes every class has a column, named ``zero_shot: CLASS``; with more classes
    only the probability of the answer is written.
    """
    classes = predictions.classes
    rows = []
    for index, (name, label) in enumerate(zip(predictions.names, predictions.labels, strict=True)):
        zero_shot, tuned = predictions.zero_shot[index], predictions.tuned[index]
        answers = [classes[label], classes[zero_shot.argmax()], classes[tuned.argmax()]]
        rows.append([name, *answers, *probability_cells(zero_shot.tolist(), tuned.tolist())])
    write_csv(folder / PREDICTIONS, [*_ANSWER_COLUMNS, *probability_columns(classes)], rows)


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Return the names of the probability columns: two for each class, or two in all."""
    if len(classes) > _CLASSES_IN_FULL:
        return ["zero_shot probability", "tuned probability"]
    return [f"{which}: {name}" for which in ("zero_shot", "tuned") for name in classes]


def probability_cells(zero_shot: Sequence[float], tuned: Sequence[float]) -> list[str]:
    """Format the cells of those columns; both arguments are in the order of the classes."""
    if len(tuned) > _CLASSES_IN_FULL:
        zero_shot, tuned = [max(zero_shot)], [max(tuned)]
    return [f"{number:.9g}" for number in (*zero_shot, *tuned)]


def read_answers(folder: str | Path) -> list[dict[str, str]]:
    """Read ``image``, ``label``, ``zero_shot`` and ``tuned`` of every test image.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / PREDICTIONS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: row[key] for key in _ANSWER_COLUMNS} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{folder}: the run is not finished (it has no {PREDICTIONS})") from None
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged, not the predictions of a run") from error
