"""Endpoints with stable names for scripts (``gradio_client``): the page's work without the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app.downloads import export
from clip_randlora.app.service import Service
from clip_randlora.app.view import with_workspace
from clip_randlora.app.workspace import Added, Workspace
from clip_randlora.runs.run_folder import read_metrics

_SECONDS_BETWEEN_REPORTS = 0.5


class Endpoints:
    """``/load_sample``, ``/load_archive``, ``/train``, ``/predict``, ``/evaluate``, ``/export``."""

    def __init__(self, service: Service):
        self.service = service
        with gr.Column(visible=False):
            name, model = gr.Textbox("clipart"), gr.Textbox("lite0")
            method, preset = gr.Textbox("randlora"), gr.Textbox("balanced")
            shots, seed = gr.Number(16, precision=0), gr.Number(1, precision=0)
            strength, format, precision = gr.Number(1.0), gr.Textbox("adapter"), gr.Textbox("fp32")
            share, file, image = gr.Number(0.0), gr.File(), gr.File()
            result, exported = gr.JSON(), gr.File()
            for function, inputs, output in (
                (self.load_sample, [name], result),
                (self.load_archive, [file], result),
                (self.train, [model, method, shots, seed, preset], result),
                (self.predict, [image, strength], result),
                (self.evaluate, [], result),
                (self.export, [format, strength, precision, share], exported),
            ):
                gr.Button().click(
                    with_workspace(service, function),
                    inputs,
                    output,
                    api_name=function.__name__,
                    concurrency_limit=None,
                )

    def load_sample(self, workspace: Workspace, name: str) -> dict[str, Any]:
        """Add a bundled set to the session's images; return classes and counts."""
        return _summarize(workspace, workspace.add_data(name))

    def load_archive(self, workspace: Workspace, file: str) -> dict[str, Any]:
        """Add a zip of class folders; return classes, counts and what was skipped."""
        return _summarize(workspace, workspace.add_data(Path(file)))

    def train(
        self, workspace: Workspace, model: str, method: str, shots: int, seed: int, preset: str
    ) -> Iterator[dict[str, Any]]:
        """Train on the session's images; stream the progress, end with the metrics."""
        settings = {"method": method, "shots": shots or None, "seed": seed}
        job = self.service.start(workspace, model, preset, settings)
        try:
            while job.is_running:
                row: dict[str, Any] = {"state": job.state}
                if job.state == "waiting":
                    row["place"] = self.service.queue.place(job)
                if job.history:
                    last = asdict(job.history[-1])
                    shown = ("step", "steps", "loss", "accuracy", "seconds_left")
                    row |= {name: last[name] for name in shown}
                yield row
                time.sleep(_SECONDS_BETWEEN_REPORTS)
        finally:
            if job.is_learning:  # the client is gone: others may train
                self.service.queue.stop(job)
        if job.state == "failed":
            raise cr.UserError(job.error)
        yield read_metrics(job.folder) if job.state == "done" else {"state": job.state}

    def predict(self, workspace: Workspace, image: str, strength: float) -> dict[str, Any]:
        """Classify an image with the session's run: ``{"zero_shot": {...}, "tuned": {...}}``."""
        return self.service.classify(workspace, Path(image), strength)

    def evaluate(self, workspace: Workspace) -> dict[str, Any]:
        """Return the metrics of the session's run on its held-out images."""
        return read_metrics(workspace.finished_run())

    def export(
        self, workspace: Workspace, format: str, strength: float, precision: str, share: float
    ) -> str:
        """Return a file of the session's run, in one of the formats of the page."""
        return str(export(workspace, format, strength, precision, share))


def _summarize(workspace: Workspace, added: Added) -> dict[str, Any]:
    tests = {
        name: [picture.is_test for picture in workspace.pictures(name)]
        for name in workspace.classes
    }
    return {
        "classes": list(tests),
        "counts": {
            name: {"train": of_class.count(False), "test": of_class.count(True)}
            for name, of_class in tests.items()
        },
        "added": added.images,
        "known": added.known,
        "skipped": [asdict(entry) for entry in added.skipped],
        "warnings": workspace.warnings(),
    }
