"""Work in the background: one job at a time, first come, first served."""

from __future__ import annotations

import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import clip_randlora as cr

_WATCHED_IMAGES = 48  # test images that the live curve is measured on

State = Literal[
    "waiting",
    "preparing",
    "training",
    "searching",
    "checking",
    "measuring",
    "done",
    "stopped",
    "failed",
]


@dataclass(eq=False, kw_only=True)
class Job(ABC):
    """A training, a search for settings or a check of images, from the queue to its end.

    Attributes:
        model: name of the base model.
        data: the images.
        folder: where its files are; if it is gone, everything was deleted.
        on_end: called when it has ended, however that was.
        error: the sentence that says why it failed.
    """

    kind: ClassVar[str]
    """What messages call it."""

    model: str
    data: cr.Data
    folder: Path
    on_end: Callable[[Any], None] = lambda job: None
    state: State = "waiting"
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_running(self) -> bool:
        """Whether it waits or is at work."""
        return self.state not in ("done", "stopped", "failed")

    @property
    def is_learning(self) -> bool:
        """Whether it can still be stopped: it was not told to, and is not measured yet."""
        return self.is_running and self.state != "measuring" and not self.stop.is_set()

    @abstractmethod
    def run(self, model: cr.Model, max_minutes: float) -> State:
        """Do the work, and return how it ended.

        Args:
            model: the base model, which has no adapter before and after.
            max_minutes: the most that a training or a search may take.

        Raises:
            UserError: it failed, and the person can mend it.
        """


@dataclass(eq=False, kw_only=True)
class TrainingJob(Job):
    """One training.

    Attributes:
        config: how it is trained.
        folder: where its run goes.
        source: where the data came from, for the run's records.
        preset: what it was started with.
        device: that it is trained on.
        history: the steps that were reported.
    """

    kind = "training"

    config: cr.TrainConfig
    source: str
    preset: str = ""
    device: str = ""
    history: list[cr.Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record_step(self, step: cr.Step) -> None:
        """Note what a step of the training reported."""
        self.history.append(step)
        is_last = step.step == step.steps or self.stop.is_set()
        self.state = "measuring" if is_last else "training"

    def run(self, model: cr.Model, max_minutes: float) -> State:
        """Train, and measure the run."""
        self.device = str(model.device)
        ends = time.monotonic() + 60 * max_minutes
        run = cr.fit(
            model,
            self.data,
            self.config,
            out=self.folder,
            source={"data": self.source},
            on_step=self.record_step,
            on_start=lambda adapter, notes: self.notes.extend(notes),
            should_stop=lambda: self.stop.is_set() or time.monotonic() > ends,
            watch=_WATCHED_IMAGES,
        )
        self.notes = run.notes
        run.adapter.detach()
        return "done"


class JobQueue:
    """Does jobs in the order in which they came, in a thread of its own.

    ``on_model`` is called with the base model of each before the job.
    """

    def __init__(
        self, max_minutes: float, device: str | None, on_model: Callable[[cr.Model], None]
    ):
        self.max_minutes, self.device, self.on_model = max_minutes, device, on_model
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # the first one is done, the others wait
        self._model: cr.Model | None = None
        threading.Thread(target=self._work, name="training", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def place(self, job: Job) -> int:
        """Return how many jobs are before a waiting one."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def stop(self, job: Job) -> None:
        """Stop a job. What it has learned is kept; one that still waits leaves the queue."""
        job.stop.set()
        with self._changed:
            waits = job.state == "waiting"
            if waits:
                self._jobs.remove(job)
                job.state = "stopped"
        if waits:
            job.on_end(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs[0]
                job.state = "preparing"
            try:
                model = self._load(job.model)
                if job.stop.is_set():  # before it has learned anything
                    job.state = "stopped"
                else:
                    self.on_model(model)
                    job.state = job.run(model, self.max_minutes)
            except cr.UserError as error:
                job.error, job.state = str(error), "failed"
            except Exception:  # the person gets a sentence, the log the traceback
                if job.stop.is_set() and not job.folder.exists():  # everything was deleted
                    job.state = "stopped"
                else:
                    traceback.print_exc()
                    job.error = f"the {job.kind} failed; what happened is in the app's log"
                    job.state = "failed"
            finally:
                del job.data  # a finished job needs no images
                with self._changed:
                    self._jobs.remove(job)
                job.on_end(job)

    def _load(self, name: str) -> cr.Model:
        """Return the base model, kept from job to job as long as it is the same."""
        if self._model is None or self._model.name != name:
            self._model = None  # its memory is free before the next needs it
            self._model = cr.load_model(name, device=self.device)
        return self._model
