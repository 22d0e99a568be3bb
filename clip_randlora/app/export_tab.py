"""The last tab: download what was trained, load it again, delete what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.events import PRIVATE, as_sentences
from clip_randlora.app.service import Service

Update = dict[gr.components.Component, Any]


class TakeTab:
    """Downloads with the lines that load them, and uploads of earlier ones."""

    def __init__(self, service: Service):
        self.service = service
        with gr.Row():
            with gr.Column():
                gr.Markdown("### Download")
                self.format = gr.Radio(
                    [(text, name) for name, text in service.formats().items()],
                    value="adapter",
                    label="What",
                    elem_id="format",
                )
                self.as_trained = gr.Markdown(
                    "Given as trained: its strength is chosen where it is loaded.",
                    elem_classes="hint",
                    elem_id="as-trained",
                )
                self.strength = gr.Slider(
                    0,
                    1,
                    value=1,
                    step=0.05,
                    label="Strength",
                    info="How much of the update goes into it: 0 is zero-shot, 1 tuned.",
                    elem_id="export-strength",
                    visible=False,
                )
                self.share = gr.Slider(
                    0,
                    1,
                    value=0,
                    step=0.05,
                    label="Share of the run before",
                    info="0: the latest run alone. 0.5: the average of your last two runs.",
                    elem_id="export-share",
                )
                self.precision = gr.Radio(
                    list(service.precisions("adapter")),
                    value="fp32",
                    label="Precision",
                    info="fp16: half the size, answers a little off.",
                    elem_id="export-precision",
                    visible=False,
                )
                self.prepare = gr.Button("Prepare", variant="primary", elem_id="prepare")
                self.file = gr.File(label="Download", interactive=False, elem_id="download")
                self.snippet = gr.Code(
                    language="python", label="Load it with", interactive=False, elem_id="snippet"
                )
            with gr.Column():
                gr.Markdown("### Load an adapter or a run, and go on from Try")
                self.upload = gr.File(
                    label="adapter.safetensors, or the zip of a run",
                    file_types=[".safetensors", ".zip"],
                    height=150,
                    elem_id="load-run",
                )
                self.message = gr.HTML(elem_id="load-message")
                gr.Markdown("### Delete")
                hours = service.settings.keep_hours
                gr.Markdown(
                    f"Your images and runs are kept for {hours:g} hours after their last use.",
                    elem_classes="hint",
                )
                self.delete = gr.Button(
                    "Delete all my images and runs now", variant="stop", elem_id="delete"
                )

    def bind(self, after_loading: Any) -> None:
        """Bind the events; ``after_loading`` binds what follows on a loaded run."""
        self.format.change(
            self._show_options,
            [self.format],
            [self.as_trained, self.strength, self.share, self.precision],
            **PRIVATE,
        )
        self.prepare.click(
            as_sentences(self._prepare),
            [self.format, self.strength, self.precision, self.share],
            [self.file, self.snippet],
            **PRIVATE,
        )
        loaded = self.upload.upload(
            as_sentences(self._load), [self.upload], [self.upload, self.message], **PRIVATE
        )
        after_loading(loaded)

    def _show_options(self, name: str) -> Update:
        """Show what can be chosen for a format."""
        takes_strength, precisions = (
            self.service.takes_strength(name),
            self.service.precisions(name),
        )
        return {
            self.as_trained: gr.update(visible=not takes_strength),
            self.strength: gr.update(visible=takes_strength),
            self.share: gr.update(visible=self.service.takes_sums(name)),
            self.precision: gr.update(
                choices=list(precisions), value=precisions[0], visible=len(precisions) > 1
            ),
        }

    def _prepare(
        self, name: str, strength: float, precision: str, share: float, request: gr.Request
    ) -> tuple[str, str]:
        workspace = self.service.workspace(request)
        # sliders keep their values while they are hidden
        strength = strength if self.service.takes_strength(name) else 1.0
        share = share if self.service.takes_sums(name) else 0.0
        path = self.service.export(workspace, name, strength, precision, share)
        return str(path), self.service.snippet(workspace, name, share)

    def _load(self, upload: str, request: gr.Request) -> Update:
        workspace, path = self.service.workspace(request), Path(upload)
        try:
            workspace.load_run(path, path.name)
        except cr.UserError as error:
            return {self.upload: None, self.message: rendering.messages([str(error)], "warning")}
        classes = ", ".join(cr.read_task(workspace.run).classes)
        return {
            self.upload: None,
            self.message: rendering.messages([f"Loaded {path.name}: {classes}. Go on at Try."]),
        }
