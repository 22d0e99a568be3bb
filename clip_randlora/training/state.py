"""How far a training is: shared by what trains, what logs and what saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class StepMetrics:
    """What a training reports at a step: means since the last report.

    ``test_accuracy`` is measured on some of the test images, at some of the reports only.
    """

    step: int
    steps: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds_left: float
    test_accuracy: float | None = None


OnStep = Callable[[StepMetrics], None]


@dataclass
class TrainState:
    """How far a training is.

    Attributes:
        step: steps that are done; of a head, the iterations of its fit.
        steps: steps of the whole training; 0 if nothing is trained.
        seconds: time that training took.
        step_seconds: time that each step took.
        history: one row for each report, as ``history.csv`` has them.
        learning_rate: the peak in use; lower than asked for if the training diverged. None without
            an optimiser.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        accumulate: parts in which the images of a step are encoded; None until they are chosen.
        notes: one line for everything that was done otherwise than asked for.
    """

    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float | None = None
    precision: str = "fp32"
    accumulate: int | None = None
    notes: list[str] = field(default_factory=list)


class Training(Protocol):
    """Whatever trains an adapter and records in a `TrainState` how far it is."""

    def run(self, on_step: OnStep | None, should_stop: Callable[[], bool]) -> None:
        """Train to the end, or until ``should_stop`` returns True."""
