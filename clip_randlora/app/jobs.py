"""Training in the background: one at a time, first come, first served."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import clip_randlora as cr
from clip_randlora.runs.run_folder import read_metrics

WATCHED_IMAGES = 48  # test images that the live curve is measured on

State = Literal["waiting", "preparing", "training", "measuring", "done", "stopped", "failed"]


@dataclass
class Job:
    """One training, from the queue to the finished run.

    ``folder`` is where its run goes; ``history`` has a row for each report of a step; ``error`` is
    the sentence that says why it failed.
    """

    model: str
    data: cr.Data
    config: cr.TrainConfig
    folder: Path
    source: str
    state: State = "waiting"
    device: str = ""
    last: cr.Step | None = None
    history: list[dict[str, float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_running(self) -> bool:
        """Whether it waits, trains or measures."""
        return self.state in ("waiting", "preparing", "training", "measuring")

    @property
    def is_learning(self) -> bool:
        """Whether there is something left to stop: what only measures what it learned is not."""
        return self.state in ("waiting", "preparing", "training") and not self.stop.is_set()

    def metrics(self) -> dict[str, Any]:
        """Return the finished run's metrics."""
        return read_metrics(self.folder)


class Trainer:
    """Trains jobs in the order in which they came, in a thread of its own.

    ``on_model`` is called with the base model of each before it is trained on.
    """

    def __init__(
        self, max_minutes: float, device: str | None, on_model: Callable[[cr.Model], None]
    ):
        self.max_minutes, self.device, self.on_model = max_minutes, device, on_model
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._model: cr.Model | None = None
        threading.Thread(target=self._work, name="training", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def place(self, job: Job) -> int:
        """Return how many trainings are before a waiting job."""
        with self._changed:
            ahead = self._waiting.index(job) if job in self._waiting else 0
            return ahead + (self._current is not None and self._current is not job)

    def stop(self, job: Job) -> None:
        """Stop a job: what it has learned is kept; one that still waits leaves the queue."""
        job.stop.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = "stopped"

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                self._current = job = self._waiting.pop(0)
                job.state = "preparing"
            try:
                self._train(job)
                job.state = "done"
            except cr.UserError as error:
                job.error, job.state = str(error), "failed"
            except Exception as error:  # the person gets a sentence, the log the traceback
                if not job.folder.parent.exists():  # everything was deleted meanwhile
                    job.state = "stopped"
                    continue
                traceback.print_exc()
                job.error = f"training failed ({type(error).__name__}: {error})"
                job.state = "failed"
            finally:
                job.data = None  # a finished job needs no images
                with self._changed:
                    self._current = None

    def _train(self, job: Job) -> None:
        model = self._load(job.model)
        job.device = str(model.device)
        self.on_model(model)
        ends = time.monotonic() + 60 * self.max_minutes
        run = cr.fit(
            model,
            job.data,
            job.config,
            out=job.folder,
            source={"data": job.source},
            on_step=_Follow(job),
            on_start=lambda adapter, notes: job.notes.extend(notes),
            should_stop=lambda: job.stop.is_set() or time.monotonic() > ends,
            watch=WATCHED_IMAGES,
        )
        job.notes = run.notes
        run.adapter.detach()  # the model is the next job's

    def _load(self, name: str) -> cr.Model:
        """Return the base model, kept from job to job as long as it is the same."""
        if self._model is None or self._model.name != name:
            self._model = None  # its memory is free before the next needs it
            self._model = cr.load_model(name, device=self.device)
        return self._model


class _Follow:
    """Writes a training's steps down in its job."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self, step: cr.Step) -> None:
        job = self.job
        job.last = step
        job.history.append(
            {
                "step": step.step,
                "loss": step.loss,
                "accuracy": step.accuracy,
                "test_accuracy": step.test_accuracy,
            }
        )
        ends = step.step == step.steps or job.stop.is_set()
        job.state = "measuring" if ends else "training"
