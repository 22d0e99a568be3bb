"""What a training shows while it runs, and the good state that it goes back to if it diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from clip_randlora.adapters import Adapter
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.training.trainer import Loop

_WATCHES = 8  # times that the watched test images are classified during a training


@dataclass(frozen=True)
class Step:
    """What one step of training showed: means since the last report.

    ``test_accuracy`` is that of the watched test images, at the steps that measure it.
    """

    step: int
    steps: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds_left: float
    test_accuracy: float | None = None


class Diverged(UserError):
    """Training came to numbers that are none; the adapter is back at its last good state."""


class Report:
    """Gathers the loss on the device and hands it on now and then, so that a GPU need not wait."""

    def __init__(self, loop: Loop, on_step: Callable[[Step], None] | None):
        self.loop, self.on_step = loop, on_step
        self.every = max(1, loop.steps // 100)
        self.watch_every = max(1, loop.steps // _WATCHES)
        self.next_watch = loop.step + 1
        self.first_step, self.started = loop.step, time.perf_counter()
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.keep_good_state()

    def keep_good_state(self) -> None:
        """Remember the trained numbers, to go back to them should training diverge."""
        self.good_step = self.loop.step
        self.good = [parameter.detach().clone() for parameter in self.loop.adapter.parameters()]

    def go_back(self) -> None:
        """Put the trained numbers back that were the last good ones."""
        self.loop.step = self.good_step
        with torch.no_grad():
            for parameter, good in zip(self.loop.adapter.parameters(), self.good, strict=True):
                parameter.copy_(good)

    def add(self, loss: Tensor, correct: Tensor) -> None:
        """Count a step, and report if it is time to.

        Raises:
            Diverged: a loss or a trained number is none.
        """
        loop = self.loop
        self.losses.append(loss)
        self.correct.append(correct)
        if loop.step % self.every and loop.step != loop.steps:
            return
        loop.read_stopwatch()
        mean_loss = float(torch.stack(self.losses).mean())
        accuracy = float(torch.stack(self.correct).mean())
        self.losses, self.correct = [], []
        if not (math.isfinite(mean_loss) and is_finite(loop.adapter)):
            at = loop.step
            self.go_back()
            kept = f"; the state of step {loop.step} is kept" if loop.step else ""
            raise Diverged(
                f"training diverged at step {at} (the loss is not a number){kept}: set a lower "
                f"learning_rate than {loop.config.learning_rate or 'the default'}"
            )
        self.keep_good_state()
        rate = float(loop.schedule.get_last_lr()[0])
        row = {"step": loop.step, "loss": mean_loss, "accuracy": accuracy, "learning_rate": rate}
        if loop.watched is not None:
            row["test_accuracy"] = loop.watched_accuracy() if self._is_time_to_watch() else None
        loop.history.append(row)
        if self.on_step:
            elapsed = time.perf_counter() - self.started
            left = elapsed / (loop.step - self.first_step) * (loop.steps - loop.step)
            self.on_step(
                Step(
                    loop.step,
                    loop.steps,
                    mean_loss,
                    accuracy,
                    rate,
                    left,
                    row.get("test_accuracy"),
                )
            )

    def _is_time_to_watch(self) -> bool:
        if self.loop.step < self.next_watch and self.loop.step != self.loop.steps:
            return False
        self.next_watch = self.loop.step + self.watch_every
        return True


def is_finite(adapter: Adapter) -> bool:
    """Tell whether every trained number is one."""
    # the largest is none if any is none; one answer, as a GPU is waited for
    return bool(get_total_norm(adapter.parameters(), math.inf).isfinite())
