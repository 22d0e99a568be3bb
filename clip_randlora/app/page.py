"""The page: five tabs over one service, and what one tab tells the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from clip_randlora.app.data_tab import GatherTab
from clip_randlora.app.endpoints import Endpoints
from clip_randlora.app.events import PRIVATE
from clip_randlora.app.export_tab import TakeTab
from clip_randlora.app.results_tab import HoodTab
from clip_randlora.app.service import Service
from clip_randlora.app.train_tab import TrainTab
from clip_randlora.app.try_tab import CompareTab

CSS = Path(__file__).with_name("style.css")
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from a network
_MONO = ["ui-monospace", "Consolas", "monospace"]
_STORAGE_KEY = "clip-randlora"
_TITLE = """# clip-randlora

Teach CLIP your own classes from a handful of images, and compare it with its untrained self."""

Update = dict[gr.components.Component, Any]


def theme() -> gr.themes.Base:
    """Return the look of the page, light and dark."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO)


class Page:
    """The page of one service; ``blocks`` is what Gradio launches."""

    def __init__(self, service: Service):
        self.service = service
        with gr.Blocks(title="clip-randlora", analytics_enabled=False) as self.blocks:
            self.token = gr.BrowserState(None, storage_key=_STORAGE_KEY, secret=_STORAGE_KEY)
            gr.Markdown(_TITLE, elem_classes="title")
            with gr.Tabs():
                with gr.Tab("1 Gather", id="gather"):
                    self.gather = GatherTab(service)
                with gr.Tab("2 Train", id="train"):
                    self.train = TrainTab(service)
                with gr.Tab("3 Try", id="try"):
                    self.compare = CompareTab(service)
                with gr.Tab("4 Under the hood", id="hood"):
                    self.hood = HoodTab(service)
                with gr.Tab("5 Take away", id="take"):
                    self.take = TakeTab(service)
            Endpoints(service)
            self._bind()

    def _bind(self) -> None:
        everything = [
            *self.gather.outputs,
            *self.train.outputs,
            *self.compare.outputs,
            *self.hood.outputs,
        ]
        tried = [self.compare.image, self.compare.strength]
        about_run = [*self.compare.outputs, *self.hood.outputs]
        self.blocks.load(self._enter, [self.token, *tried], [self.token, *everything], **PRIVATE)
        self.blocks.unload(self.service.leave)
        self.train.shown_run.change(
            self._show_run, tried, about_run, show_progress="hidden", **PRIVATE
        )
        self.take.bind(
            lambda loaded: loaded.then(
                self._show_loaded, tried, [*self.train.outputs, *about_run], **PRIVATE
            )
        )
        self.take.delete.click(
            self._delete, None, [self.token, *everything, self.compare.image], **PRIVATE
        )

    def _enter(
        self, token: str | None, image: str | None, strength: float, request: gr.Request
    ) -> Update:
        """Find the person's workspace again, and show what is in it."""
        _, token = self.service.workspaces.enter(request.session_hash, token)
        return {self.token: token, **self._show(image, strength, request)}

    def _show(self, image: str | None, strength: float, request: gr.Request) -> Update:
        workspace = self.service.workspace(request)
        return {
            **self.gather.show(workspace),
            **self.train.show(workspace),
            **self._show_run(image, strength, request),
        }

    def _show_run(self, image: str | None, strength: float, request: gr.Request) -> Update:
        workspace = self.service.workspace(request)
        return {
            **self.compare.show(workspace, image, strength),
            **self.hood.show(workspace),
        }

    def _show_loaded(self, image: str | None, strength: float, request: gr.Request) -> Update:
        workspace = self.service.workspace(request)
        return {
            **self.train.show(workspace),
            **self._show_run(image, strength, request),
        }

    def _delete(self, request: gr.Request) -> Update:
        """Delete everything of this person's, and begin anew under another token."""
        self.service.delete(request)
        return {self.compare.image: None, **self._enter(None, None, 1.0, request)}
