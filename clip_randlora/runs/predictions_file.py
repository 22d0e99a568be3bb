"""A run's ``predictions.csv``: the zero-shot and the tuned answer for every test image."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class AnswerRow:
    """Both answers for one test image.

    Attributes:
        image: its name in the data set.
        label: its class.
        zero_shot, tuned: the class that each answers.
        zero_shot_probability, tuned_probability: of those classes.
    """

    image: str
    label: str
    zero_shot: str
    tuned: str
    zero_shot_probability: float
    tuned_probability: float


def read_answers(folder: str | Path) -> list[AnswerRow]:
    """Read both answers for every test image.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / PREDICTIONS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [_parse(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{folder}: the run is not finished (it has no {PREDICTIONS})") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:  # a UnicodeDecodeError is one
        raise UserError(f"{path}: damaged, not the predictions of a run") from error


def _parse(row: Mapping[str, str]) -> AnswerRow:
    def probability(which: str) -> float:
        only = f"{which} probability"  # of the answer, where there are many classes
        return float(row[only] if only in row else row[f"{which}: {row[which]}"])

    image, label, zero_shot, tuned = (row[column] for column in _ANSWER_COLUMNS)
    both = probability("zero_shot"), probability("tuned")
    return AnswerRow(image, label, zero_shot, tuned, *both)
