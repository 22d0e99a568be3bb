"""The page: five tabs over one service, and what one tab tells the others."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from clip_randlora.app.data_tab import DataTab
from clip_randlora.app.endpoints import Endpoints
from clip_randlora.app.export_tab import ExportTab
from clip_randlora.app.results_tab import ResultsTab
from clip_randlora.app.service import Service
from clip_randlora.app.train_tab import TrainTab
from clip_randlora.app.try_tab import TryTab
from clip_randlora.app.view import Update, View
from clip_randlora.app.workspace import Workspace

CSS = Path(__file__).with_name("style.css")
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from a network
_MONO = ["ui-monospace", "Consolas", "monospace"]
_TITLE = """# clip-randlora

Teach CLIP your own classes from a handful of images, and compare it with its untrained self."""


def theme() -> gr.themes.Base:
    """Return the look of the page, light and dark."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO)


class Page(View):
    """The page of one service; ``blocks`` is what Gradio launches."""

    def __init__(self, service: Service):
        super().__init__(service)
        with gr.Blocks(title="clip-randlora", analytics_enabled=False) as self.blocks:
            gr.Markdown(_TITLE, elem_classes="title")
            with gr.Tabs():
                with gr.Tab("1 Gather", id="gather"):
                    self.data = DataTab(service)
                with gr.Tab("2 Train", id="train"):
                    self.train = TrainTab(service)
                with gr.Tab("3 Try", id="try"):
                    self.trial = TryTab(service)
                with gr.Tab("4 Under the hood", id="hood"):
                    self.results = ResultsTab(service)
                with gr.Tab("5 Take away", id="take"):
                    self.export = ExportTab(service)
            Endpoints(service)
            self._bind()

    def _bind(self) -> None:
        shown = [*self.data.outputs, *self.train.outputs]
        self.on(self.blocks.load, self._show, outputs=shown)
        self.blocks.unload(self.service.leave)
        self.on(
            self.train.shown_run.change,
            self._show_run,
            [self.trial.image, self.trial.strength],
            [*self.trial.outputs, *self.results.outputs],
            show_progress="hidden",
        )
        self.on(self.export.loaded.then, self.train.show, outputs=self.train.outputs)
        self.on(self.export.delete.click, self._delete, outputs=[*shown, self.trial.image])

    def _show(self, workspace: Workspace) -> Update:
        """Show the images and the training; the run in use follows when ``shown_run`` changes."""
        return {**self.data.show(workspace), **self.train.show(workspace)}

    def _show_run(self, workspace: Workspace, image: str | None, strength: float) -> Update:
        return {**self.trial.show(workspace, image, strength), **self.results.show(workspace)}

    def _delete(self, workspace: Workspace, request: gr.Request) -> Update:
        """Delete everything of this person's, and begin anew."""
        self.service.delete(workspace)
        return {**self._show(self.service.workspace(request)), self.trial.image: None}
