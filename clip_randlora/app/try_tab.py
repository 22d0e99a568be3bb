"""The third tab: zero-shot and tuned answers side by side, for one image or for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.events import PRIVATE, as_sentences, sentence
from clip_randlora.app.service import TRAIN_FIRST, Service
from clip_randlora.app.workspace import Workspace
from clip_randlora.data import summarize_skipped

_EXAMPLES = 12
_COLUMNS = ["image", "zero-shot", "probability", "tuned", "probability "]

Update = dict[gr.components.Component, Any]


class CompareTab:
    """Try the run in use, at any strength."""

    def __init__(self, service: Service):
        self.service = service
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
                self.strength = gr.Slider(
                    0,
                    1,
                    value=1,
                    step=0.05,
                    label="Strength",
                    info="0 is zero-shot, 1 is tuned; between, the weights are interpolated.",
                    elem_id="strength",
                )
            with gr.Column(scale=3), gr.Row():
                self.zero_shot = gr.HTML(elem_id="zero-shot", min_height=280)
                self.tuned = gr.HTML(elem_id="tuned", min_height=280)
        gr.Markdown("#### Held-out images to try: choose one")
        self.examples = gr.Gallery(
            label="Held-out images",
            show_label=False,
            buttons=[],
            columns=6,
            height=190,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            elem_id="try-examples",
        )
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
        pictures = _held_out(workspace)
        zero_shot, tuned = self._answer(workspace, image, strength)
        return {
            self.zero_shot: zero_shot,
            self.tuned: tuned,
            self.examples: [(str(workspace.thumbnail(path)), "") for path in pictures],
            self.example_files: [str(path) for path in pictures],
        }

    def _bind(self) -> None:
        gr.on(
            [self.image.change, self.strength.change],
            self._predict,
            [self.image, self.strength],
            [self.zero_shot, self.tuned],
            trigger_mode="always_last",
            show_progress="hidden",
            **PRIVATE,
        )
        self.examples.select(_chosen, [self.example_files], [self.image], **PRIVATE)
        self.classify.click(
            as_sentences(self._classify),
            [self.files, self.strength],
            [self.table, self.csv, self.message],
            **PRIVATE,
        )

    def _predict(self, image: str | None, strength: float, request: gr.Request) -> tuple[str, str]:
        return self._answer(self.service.workspace(request), image, strength)

    def _answer(self, workspace: Workspace, image: str | None, strength: float) -> tuple[str, str]:
        if workspace.run is None:
            return rendering.no_answer(TRAIN_FIRST)
        if image is None:
            return rendering.no_answer("Choose an image.")
        try:
            (answers,) = self.service.classify(workspace, [Path(image)], strength)
        except cr.UserError as error:
            return rendering.no_answer(sentence(error))
        return rendering.side_by_side(answers, strength)

    def _classify(
        self,
        files: list[str] | None,
        strength: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[list[str]], str, str]:
        if not files:
            raise cr.UserError("add images or a zip first")
        rows, table, skipped = self.service.classify_many(
            self.service.workspace(request),
            [Path(file) for file in files],
            strength,
            lambda done, images: progress((done, images), unit="images"),
        )
        return rows, str(table), rendering.messages([summarize_skipped(skipped)])


def _chosen(files: list[str], event: gr.SelectData) -> str:
    return files[event.index]


def _held_out(workspace: Workspace) -> list[Path]:
    """Return some of the images that the run was not trained on, of every class in turn."""
    files = list(workspace.tested().values())
    return files[:: max(1, len(files) // _EXAMPLES)][:_EXAMPLES]
