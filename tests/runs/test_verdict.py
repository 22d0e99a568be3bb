"""The outcome of a training in a sentence."""

import pytest

from clip_randlora.runs.predictions_file import AnswerRow
from clip_randlora.runs.verdict import judge


def rows(outcomes: str) -> list[AnswerRow]:
    """Make an answer for each letter: Right, Wrong, Fixed, Broken."""
    before = {"R": "a", "W": "b", "F": "b", "B": "a"}
    after = {"R": "a", "W": "b", "F": "a", "B": "b"}
    return [AnswerRow("x", "a", before[o], after[o], 0.9, 0.9) for o in outcomes]


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ("FFRW", "Fixed 2 of 4 test images and broke none: 3 are right now, 1 before. One image is "
         "25 points here."),
        ("FFBR" * 25, "Fixed 50 of 100 test images and broke 25: 75 are right now, 50 before."),
        ("R" * 60, "No difference: it knew all 60 test images already."),
        ("R" * 30 + "W" * 30, "No difference: 30 of 60 test images are right, as before."),
        ("R", "No difference: it knew the 1 test image already. One image is 100 points here."),
        ("FBBR" * 25, "It got worse. Fixed 25 of 100 test images and broke 50: 50 are right now, "
         "75 before. More images of each class help most."),
    ],
)  # fmt: skip
def test_verdicts(outcomes, says):
    assert judge(rows(outcomes)) == says
