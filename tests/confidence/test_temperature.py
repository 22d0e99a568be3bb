"""One temperature makes probabilities right, and moves no answer."""

import math

import pytest
import torch

from clip_randlora.confidence import Confidence, change_temperature, fit_temperature
from clip_randlora.evaluation import expected_calibration_error


def drawn(logits: torch.Tensor) -> torch.Tensor:
    """Labels that are drawn with the probabilities of the logits."""
    return torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    torch.manual_seed(0)
    logits = 3 * torch.randn(20_000, 5)
    labels = drawn(logits)
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    before, after = ((logits * temperature / t).softmax(dim=1) for t in (1.0, found))
    assert expected_calibration_error(after, labels) < 0.01
    assert torch.equal(before.argmax(dim=1), after.argmax(dim=1))


def test_a_few_right_answers_are_no_certainty():
    """By hand: of 8 images all are right, so the right class is to have 9 / 10."""
    logits = torch.tensor([[1.0, 0.0]] * 8)
    found = fit_temperature(logits, torch.zeros(8, dtype=torch.int64))
    assert 1 / found == pytest.approx(math.log(9), rel=1e-3)


def test_answers_that_are_worse_than_guessing_get_the_highest_temperature():
    logits = torch.tensor([[1.0, 0.0]] * 8)
    assert fit_temperature(logits, torch.ones(8, dtype=torch.int64)) == pytest.approx(20)


def test_log_probabilities_do_as_well_as_logits():
    torch.manual_seed(1)
    logits = 3 * torch.randn(500, 4)
    labels = drawn(logits / 2)
    from_logits, from_log = (fit_temperature(x, labels) for x in (logits, logits.log_softmax(1)))
    assert from_logits == pytest.approx(from_log, rel=1e-4)
    certain = torch.tensor([[1.0, 0.0], [0.4, 0.6]]).log()  # minus infinity
    assert math.isfinite(fit_temperature(certain, torch.tensor([0, 1])))


def test_a_temperature_is_taken_back():
    probabilities = torch.randn(50, 3, dtype=torch.float64).softmax(dim=1)
    there_and_back = change_temperature(change_temperature(probabilities, 3.0), 1 / 3.0)
    torch.testing.assert_close(there_and_back, probabilities)


def test_half_strength_has_the_geometric_mean():
    confidence = Confidence(zero_shot=4.0, tuned=0.25)
    temperatures = [confidence.temperature_at(strength) for strength in (0, 0.5, 1)]
    assert temperatures == pytest.approx([4, 1, 0.25])
