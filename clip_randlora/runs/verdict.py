"""What a training changed, in a sentence for somebody who has never seen a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clip_randlora.runs.predictions_file import AnswerRow, read_answers

_FEW_IMAGES = 50  # below that, one image is two points or more


def verdict(run: str | Path) -> str:
    """Return a finished run's outcome on its test images in one or two sentences.

    For example: "Fixed 9 of 20 test images and broke 3: 14 are right now, 8 were before."

    Raises:
        UserError: the run is not finished, or its predictions are damaged.
    """
    return judge(read_answers(run))


def judge(answers: Sequence[AnswerRow]) -> str:
    """Return the same of answers that were read already; there is at least one."""
    images = len(answers)
    before = sum(row.zero_shot == row.label for row in answers)
    after = sum(row.tuned == row.label for row in answers)
    fixed = sum(row.zero_shot != row.label == row.tuned for row in answers)
    broken = sum(row.zero_shot == row.label != row.tuned for row in answers)
    said = f"{images} test image{'s' if images != 1 else ''}"
    if before == after == images:
        first = f"No difference: it knew {'all ' if images > 1 else 'the '}{said} already."
    elif not fixed and not broken:
        first = f"No difference: {after} of {said} are right, as before."
    elif not broken:
        first = f"Fixed {fixed} of {said} and broke none: {after} are right now, {before} before."
    else:
        first = (
            f"Fixed {fixed} of {said} and broke {broken}: {after} are right now, {before} before."
        )
    if after < before:
        first = f"It got worse. {first} More images of each class help most."
    if images < _FEW_IMAGES:
        points = 100 / images
        first += f" One image is {points:.0f} points here."
    return first
