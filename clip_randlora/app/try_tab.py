"""The third tab: zero-shot and tuned answers side by side, for one image or for many."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import hidden_paths
from clip_randlora.app.view import Update, View, gallery, sentence, share_slider
from clip_randlora.app.workspace import TRAIN_FIRST, Workspace
from clip_randlora.data import summarize_skipped

_EXAMPLES = 12
_COLUMNS = ["image", "zero-shot", "probability", "tuned", "probability "]


class TryTab(View):
    """Try the run in use, at any strength."""

    def __init__(self, service: Service):
        super().__init__(service)
        with gr.Row():
            with gr.Column(scale=2):
                self.image = gr.Image(
                    label="Image",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    image_mode=None,
                    height=300,
                    elem_id="try-image",
                )
                self.strength = share_slider(
                    "Strength",
                    "0 is zero-shot, 1 is tuned; between, the weights are interpolated.",
                    "strength",
                    value=1,
                )
            with gr.Column(scale=3), gr.Row():
                self.zero_shot = gr.HTML(elem_id="zero-shot", min_height=280)
                self.tuned = gr.HTML(elem_id="tuned", min_height=280)
        gr.Markdown("#### Held-out images to try: choose one")
        self.examples = gallery("Held-out images", 6, 190, "try-examples")
        self.example_files = gr.State([])
        with gr.Accordion("Many images at once", open=False, elem_id="many"):
            self.files = gr.File(
                label="Images, or zips of images",
                file_count="multiple",
                height=170,
                elem_id="many-files",
            )
            self.classify = gr.Button("Classify them", elem_id="classify-many")
            self.message = gr.HTML()
            self.table = gr.Dataframe(
                headers=_COLUMNS, interactive=False, wrap=True, elem_id="many-table"
            )
            self.csv = gr.File(label="Every probability, as CSV", interactive=False)
        self.outputs = [self.zero_shot, self.tuned, self.examples, self.example_files]
        self._bind()

    def show(self, workspace: Workspace, image: str | None, strength: float) -> Update:
        """Return the answers for the image that is there, and held-out images to try."""
        zero_shot, tuned = self._answer(workspace, image, strength)
        files = list(workspace.test_images().values())
        examples = files[:: max(1, len(files) // _EXAMPLES)][:_EXAMPLES]  # of all classes
        return {
            self.zero_shot: zero_shot,
            self.tuned: tuned,
            self.examples: [(str(workspace.thumbnail(path)), "") for path in examples],
            self.example_files: [str(path) for path in examples],
        }

    def _bind(self) -> None:
        self.on(
            partial(gr.on, [self.image.change, self.strength.change]),
            self._answer,
            [self.image, self.strength],
            [self.zero_shot, self.tuned],
            trigger_mode="always_last",
            show_progress="hidden",
        )
        self.on(self.examples.select, self._select, [self.example_files], [self.image])
        self.on(
            self.classify.click,
            self._classify,
            [self.files, self.strength],
            [self.table, self.csv, self.message],
        )

    def _answer(self, workspace: Workspace, image: str | None, strength: float) -> tuple[str, str]:
        if workspace.run is None:
            return rendering.no_answer(TRAIN_FIRST)
        if image is None:
            return rendering.no_answer("Choose an image.")
        try:
            with hidden_paths(workspace.folder):
                answer = self.service.classify(workspace, Path(image), strength)
        except cr.UserError as error:
            return rendering.no_answer(sentence(error))
        return rendering.side_by_side(answer, strength)

    def _select(self, workspace: Workspace, files: list[str], event: gr.SelectData) -> str:
        return files[event.index]

    def _classify(
        self,
        workspace: Workspace,
        files: list[str] | None,
        strength: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[list[str]], str, str]:
        if not files:
            raise cr.UserError("add images or a zip first")
        rows, table, skipped = self.service.classify_many(
            workspace,
            [Path(file) for file in files],
            strength,
            lambda done, images: progress((done, images), unit="images"),
        )
        return rows, str(table), rendering.messages([summarize_skipped(skipped)])
