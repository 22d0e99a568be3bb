"""What a training reports while it runs, and how it notices that it diverged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from clip_randlora.adapters import Adapter
from clip_randlora.errors import UserError
from clip_randlora.training.state import OnStep, StepMetrics, TrainState
from clip_randlora.utils.progress import OnProgress

_REPORTS, _EVALUATIONS = 100, 8  # in a training, about


_END = 0.1  # share of the reports whose mean loss counts as the loss at the end
_FEWEST_REPORTS = 20  # fewer say nothing about a rise


class Diverged(UserError):
    """The rate was too high: the loss is NaN, infinite, or rose to that of guessing.

    If it is NaN or infinite, the adapter is back in its last good state. If it rose, there is none.
    """


class TrainLogger:
    """Collects the loss and accuracy of each step, and reports their means now and then.

    In between they stay on the device, so that a GPU need not be waited for at every step.
    """

    def __init__(
        self,
        state: TrainState,
        adapter: Adapter,
        peak_learning_rate: float,
        on_step: OnStep | None = None,
        on_progress: OnProgress | None = None,
        evaluate: Callable[[], float] | None = None,
    ):
        """Begin at the present step.

        Args:
            state: read; reports are appended to its history.
            adapter: checked at each report, and put back in its last good state if it diverged.
            peak_learning_rate: named in the message if the training diverges.
            on_step: called with each report.
            on_progress: told the step of each report, see `clip_randlora.utils.progress`.
            evaluate: returns the accuracy on test images; called at some of the reports.
        """
        self._state, self._adapter, self._peak = state, adapter, peak_learning_rate
        self._on_step, self._on_progress, self._evaluate = on_step, on_progress, evaluate
        self._every = max(1, state.steps // _REPORTS)
        self._evaluate_every = max(1, state.steps // _EVALUATIONS)
        self._next_evaluation = state.step + 1
        self._first_step, self._started = state.step, time.perf_counter()
        self._losses: list[Tensor] = []
        self._accuracies: list[Tensor] = []
        self._keep_good_state()
        if on_progress and state.step < state.steps:
            on_progress("training", state.step, state.steps)

    def log(self, loss: Tensor, accuracy: Tensor, learning_rate: float | Tensor) -> None:
        """Add the scalars of the step that is done, and report if it is time to.

        Raises:
            Diverged: the loss or a trainable parameter is NaN or infinite.
        """
        state = self._state
        self._losses.append(loss)
        self._accuracies.append(accuracy)
        if state.step % self._every and state.step != state.steps:
            return
        mean_loss = float(torch.stack(self._losses).mean())
        mean_accuracy = float(torch.stack(self._accuracies).mean())
        self._losses, self._accuracies = [], []
        if not (math.isfinite(mean_loss) and is_finite(self._adapter)):
            raise self._diverged()
        self._keep_good_state()
        rate, test_accuracy = float(learning_rate), None
        row: dict[str, float | None] = {
            "step": state.step,
            "loss": mean_loss,
            "accuracy": mean_accuracy,
            "learning_rate": rate,
        }
        if self._evaluate:
            if state.step >= self._next_evaluation or state.step == state.steps:
                self._next_evaluation = state.step + self._evaluate_every
                test_accuracy = self._evaluate()
            row["test_accuracy"] = test_accuracy
        state.history.append(row)
        if self._on_progress:
            self._on_progress("training", state.step, state.steps)
        if self._on_step:
            per_step = (time.perf_counter() - self._started) / (state.step - self._first_step)
            left = per_step * (state.steps - state.step)
            self._on_step(
                StepMetrics(
                    state.step, state.steps, mean_loss, mean_accuracy, rate, left, test_accuracy
                )
            )

    def check_end(self, classes: int) -> None:
        """Check at the end of a training that it has not lost what it had learned.

        A loss that is above its lowest by a fifth, and near that of guessing among ``classes``,
        comes from a rate that is too high. A model that never learned has no lower loss.

        Raises:
            Diverged: the loss rose so.
        """
        losses = [row["loss"] for row in self._state.history]
        window = max(1, int(_END * len(losses)))
        if len(losses) < _FEWEST_REPORTS or classes < 2:
            return
        means = [sum(losses[i : i + window]) / window for i in range(len(losses) - window + 1)]
        if means[-1] > 1.2 * min(means) and means[-1] > 0.9 * math.log(classes):
            self._state.step = 0  # no state of it is worth keeping
            raise Diverged(
                f"training diverged: its loss rose from {min(means):.2f} to {means[-1]:.2f}, "
                f"which is no better than guessing; set a lower learning_rate than {self._peak:g}"
            )

    def _keep_good_state(self) -> None:
        self._good_step = self._state.step
        self._good = [parameter.detach().clone() for parameter in self._adapter.parameters()]

    def _diverged(self) -> Diverged:
        """Go back to the last good state, and return the error that says so."""
        step, self._state.step = self._state.step, self._good_step
        with torch.no_grad():
            for parameter, good in zip(self._adapter.parameters(), self._good, strict=True):
                parameter.copy_(good)
        kept = f"; the state of step {self._good_step} is kept" if self._good_step else ""
        return Diverged(
            f"training diverged at step {step}: the loss is NaN or infinite{kept}; set a lower "
            f"learning_rate than {self._peak:g}"
        )


def is_finite(adapter: Adapter) -> bool:
    """Return whether all trainable parameters are finite."""
    # the largest absolute value: one answer from a GPU, not one for each parameter
    return bool(get_total_norm(adapter.parameters(), math.inf).isfinite())
