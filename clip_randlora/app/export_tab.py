"""The last tab: download what was trained, load it again, delete what is here."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.downloads import DOWNLOADS, export, snippet
from clip_randlora.app.service import Service
from clip_randlora.app.view import Update, View, share_slider
from clip_randlora.app.workspace import Workspace


class ExportTab(View):
    """Downloads with the lines that load them, and uploads of earlier ones.

    ``loaded`` is the event of a run that was uploaded.
    """

    def __init__(self, service: Service):
        super().__init__(service)
        with gr.Row():
            with gr.Column():
                self._build_download()
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
                gr.Markdown(
                    f"Your images and runs are kept for {service.settings.keep_hours:g} hours "
                    f"after their last use.",
                    elem_classes="hint",
                )
                self.delete = gr.Button(
                    "Delete all my images and runs now", variant="stop", elem_id="delete"
                )
        self.on(
            self.format.change,
            self._show_options,
            [self.format],
            [self.as_trained, self.strength, self.share, self.precision],
        )
        self.on(
            self.prepare.click,
            self._prepare,
            [self.format, self.strength, self.precision, self.share],
            [self.file, self.snippet],
        )
        self.loaded = self.on(
            self.upload.upload, self._load, [self.upload], [self.upload, self.message]
        )

    def _build_download(self) -> None:
        gr.Markdown("### Download")
        self.format = gr.Radio(
            [(download.description, name) for name, download in DOWNLOADS.items()],
            value="adapter",
            label="What",
            elem_id="format",
        )
        self.as_trained = gr.Markdown(
            "Given as trained: its strength is chosen where it is loaded.",
            elem_classes="hint",
            elem_id="as-trained",
        )
        self.strength = share_slider(
            "Strength",
            "How much of the update goes into it: 0 is zero-shot, 1 tuned.",
            "export-strength",
            value=1,
            visible=False,
        )
        self.share = share_slider(
            "Share of the run before",
            "0: the latest run alone. 0.5: the average of your last two runs.",
            "export-share",
            value=0,
        )
        self.precision = gr.Radio(
            ["fp32"],
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

    def _show_options(self, workspace: Workspace, name: str) -> Update:
        """Show what can be chosen for a format."""
        download = DOWNLOADS[name]
        precisions = download.precisions
        return {
            self.as_trained: gr.update(visible=not download.takes_strength),
            self.strength: gr.update(visible=download.takes_strength),
            self.share: gr.update(visible=download.takes_share),
            self.precision: gr.update(
                choices=list(precisions), value=precisions[0], visible=len(precisions) > 1
            ),
        }

    def _prepare(
        self, workspace: Workspace, name: str, strength: float, precision: str, share: float
    ) -> tuple[str, str]:
        # sliders keep their values while they are hidden
        strength = strength if DOWNLOADS[name].takes_strength else 1.0
        share = share if DOWNLOADS[name].takes_share else 0.0
        path = export(workspace, name, strength, precision, share)
        return str(path), snippet(workspace, name, share)

    def _load(self, workspace: Workspace, upload: str) -> Update:
        path = Path(upload)
        try:
            task = workspace.load_run(path)
        except cr.UserError as error:
            return {self.upload: None, self.message: rendering.messages([str(error)], "warning")}
        said = f"Loaded {path.name}: {', '.join(task.classes)}. Go on at Try."
        return {self.upload: None, self.message: rendering.messages([said])}
