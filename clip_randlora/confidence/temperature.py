"""Temperature scaling: one number that makes probabilities mean what they say.

The logits are divided by a temperature before the softmax. The order of the classes stays, and the
log loss on images that were not trained on is the smallest (Guo et al., On Calibration of Modern
Neural Networks, ICML 2017, section 4.2).
"""

from __future__ import annotations

import math

from torch import Tensor

LEAST, MOST = 0.05, 20.0
"""Bounds of a temperature; answers that are worse than guessing would have an infinite one."""

_HALVINGS = 60
_LOWEST = -1e4  # in place of minus infinity, the logarithm of a probability that was too small


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the smallest log loss, within the bounds.

    The log loss is convex in 1 / temperature, so its slope is searched for zero. The right class of
    each image has the target (N + 1) / (N + 2), and the others share the rest: a few images that
    are all answered correctly do not show that no other will be wrong (Platt, Probabilistic Outputs
    for Support Vector Machines, 1999, section 2.2).

    Args:
        logits: float (N, C), or log probabilities, for N images that were not trained on.
        labels: int64 (N,).
    """
    logits = logits.double()
    logits = (logits - logits.max(dim=1, keepdim=True).values).clamp(min=_LOWEST)
    right = logits.gather(1, labels[:, None]).squeeze(1)
    others = (logits.sum(dim=1) - right) / max(logits.shape[1] - 1, 1)
    target = right + (others - right) / (len(labels) + 2)

    def slope(sharpness: float) -> float:
        expected = (logits.mul(sharpness).softmax(dim=1) * logits).sum(dim=1)
        return float((expected - target).mean())

    low, high = 1 / MOST, 1 / LEAST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def change_temperature(probabilities: Tensor, factor: float) -> Tensor:
    """Return the probabilities (N, C) that logits would give at ``factor`` x the temperature."""
    if factor == 1:
        return probabilities
    return (probabilities.double().log() / factor).softmax(dim=-1).to(probabilities.dtype)
