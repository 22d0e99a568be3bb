"""Training in the background: one at a time, first come, first served."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import clip_randlora as cr

_WATCHED_IMAGES = 48  # test images that the live curve is measured on

State = Literal["waiting", "preparing", "training", "measuring", "done", "stopped", "failed"]


@dataclass(eq=False)
class Job:
    """One training, from the queue to the finished run.

    Attributes:
        model, data, config: what is trained, on what, and how.
        folder: where its run goes.
        source: where the data came from, for the run's records.
        preset: what it was started with.
        on_end: called when it has ended, however that was.
        history: the steps that were reported.
        error: the sentence that says why it failed.
    """

    model: str
    data: cr.Data
    config: cr.TrainConfig
    folder: Path
    source: str
    preset: str = ""
    on_end: Callable[[Job], None] = lambda job: None
    state: State = "waiting"
    device: str = ""
    history: list[cr.Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_running(self) -> bool:
        """Whether it waits, trains or measures."""
        return self.state in ("waiting", "preparing", "training", "measuring")

    @property
    def is_learning(self) -> bool:
        """Whether it can still be stopped: it waits or trains, and was not told to stop."""
        return self.state in ("waiting", "preparing", "training") and not self.stop.is_set()

    def record_step(self, step: cr.Step) -> None:
        """Note what a step of the training reported."""
        self.history.append(step)
        is_last = step.step == step.steps or self.stop.is_set()
        self.state = "measuring" if is_last else "training"


class TrainingQueue:
    """Trains jobs in the order in which they came, in a thread of its own.

    ``on_model`` is called with the base model of each before it is trained on.
    """

    def __init__(
        self, max_minutes: float, device: str | None, on_model: Callable[[cr.Model], None]
    ):
        self.max_minutes, self.device, self.on_model = max_minutes, device, on_model
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # the first one is trained, the others wait
        self._model: cr.Model | None = None
        threading.Thread(target=self._work, name="training", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def place(self, job: Job) -> int:
        """Return how many trainings are before a waiting job."""
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
                    self._train(job, model)
                    job.state = "done"
            except cr.UserError as error:
                job.error, job.state = str(error), "failed"
            except Exception:  # the person gets a sentence, the log the traceback
                if job.stop.is_set() and not job.folder.exists():  # everything was deleted
                    job.state = "stopped"
                else:
                    traceback.print_exc()
                    job.error = "training failed; what happened is in the app's log"
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

    def _train(self, job: Job, model: cr.Model) -> None:
        job.device = str(model.device)
        self.on_model(model)
        ends = time.monotonic() + 60 * self.max_minutes
        run = cr.fit(
            model,
            job.data,
            job.config,
            out=job.folder,
            source={"data": job.source},
            on_step=job.record_step,
            on_start=lambda adapter, notes: job.notes.extend(notes),
            should_stop=lambda: job.stop.is_set() or time.monotonic() > ends,
            watch=_WATCHED_IMAGES,
        )
        job.notes = run.notes
        run.adapter.detach()  # the model is the next job's
