"""Endpoints with stable names for scripts (``gradio_client``): the page's work without the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app.events import as_sentences
from clip_randlora.app.jobs import Job
from clip_randlora.app.service import Service
from clip_randlora.app.workspace import Added, Workspace
from clip_randlora.runs.run_folder import read_metrics

_SECONDS_BETWEEN_LOOKS = 0.5


class Endpoints:
    """``/load_sample``, ``/load_archive``, ``/train``, ``/predict``, ``/evaluate``, ``/export``."""

    def __init__(self, service: Service):
        self.service = service
        with gr.Column(visible=False):
            name, model = gr.Textbox("clipart"), gr.Textbox("lite0")
            method, preset = gr.Textbox("randlora"), gr.Textbox("balanced")
            shots, seed = gr.Number(16, precision=0), gr.Number(1, precision=0)
            strength, form, precision = gr.Number(1.0), gr.Textbox("adapter"), gr.Textbox("fp32")
            share, file, image = gr.Number(0.0), gr.File(), gr.File()
            result, exported = gr.JSON(), gr.File()
            self._add(self.load_sample, [name], result)
            self._add(self.load_archive, [file], result)
            self._add(self.train, [model, method, shots, seed, preset], result)
            self._add(self.predict, [image, strength], result)
            self._add(self.evaluate, [], result)
            self._add(self.export, [form, strength, precision, share], exported)

    def load_sample(self, name: str, request: gr.Request) -> dict[str, Any]:
        """Add a bundled set to the session's images; return classes and counts."""
        workspace = self.service.workspace(request)
        return _summary(workspace, workspace.add_data(name, name))

    def load_archive(self, file: str, request: gr.Request) -> dict[str, Any]:
        """Add a zip of class folders; return classes, counts and what was skipped."""
        workspace, path = self.service.workspace(request), Path(file)
        return _summary(workspace, workspace.add_data(path, path.name))

    def train(
        self, model: str, method: str, shots: int, seed: int, preset: str, request: gr.Request
    ) -> Iterator[dict[str, Any]]:
        """Train on the session's images; stream the progress, end with the metrics."""
        settings = {"method": method, "shots": shots or None, "seed": seed}
        workspace = self.service.workspace(request)
        job = self.service.start(workspace, model, preset, settings)
        try:
            while job.is_running:
                yield self._progress(job)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            if job.is_learning:  # the client is gone: others may train
                self.service.trainer.stop(job)
        if job.state == "failed":
            raise cr.UserError(job.error)
        yield job.metrics() if job.state == "done" else {"state": job.state}

    def predict(self, image: str, strength: float, request: gr.Request) -> dict[str, Any]:
        """Classify an image with the session's run: ``{"zero_shot": {...}, "tuned": {...}}``."""
        workspace = self.service.workspace(request)
        (answer,) = self.service.classify(workspace, [Path(image)], strength)
        return answer

    def evaluate(self, request: gr.Request) -> dict[str, Any]:
        """Return the metrics of the session's run on its held-out images."""
        workspace = self.service.workspace(request)
        return read_metrics(self.service.finished_run(workspace))

    def export(
        self, format: str, strength: float, precision: str, share: float, request: gr.Request
    ) -> str:
        """Return a file of the session's run, in one of the formats of the page."""
        workspace = self.service.workspace(request)
        return str(self.service.export(workspace, format, strength, precision, share))

    def _add(self, function: Any, inputs: list[Any], output: Any) -> None:
        gr.Button().click(
            as_sentences(function),
            inputs,
            output,
            api_name=function.__name__,
            concurrency_limit=None,
        )

    def _progress(self, job: Job) -> dict[str, Any]:
        step = job.last
        state: dict[str, Any] = {"state": job.state}
        if job.state == "waiting":
            state["place"] = self.service.trainer.place(job)
        if step is not None:
            state |= {
                "step": step.step,
                "steps": step.steps,
                "loss": step.loss,
                "accuracy": step.accuracy,
                "seconds_left": step.seconds_left,
            }
        return state


def _summary(workspace: Workspace, added: Added) -> dict[str, Any]:
    return {
        "classes": workspace.classes,
        "counts": {
            name: {
                "train": sum(not picture.is_test for picture in workspace.pictures(name)),
                "test": sum(picture.is_test for picture in workspace.pictures(name)),
            }
            for name in workspace.classes
        },
        "added": added.images,
        "known": added.known,
        "skipped": [{"name": entry.name, "reason": entry.reason} for entry in added.skipped],
        "warnings": workspace.warnings(),
    }
