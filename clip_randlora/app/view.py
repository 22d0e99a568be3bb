"""What the parts of the page share: how events reach handlers, and components that look alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import hidden_paths

Update = dict[gr.components.Component, Any]


class View:
    """A part of the page.

    Its handlers take the workspace of the person who acts, then the values of the inputs.
    """

    def __init__(self, service: Service):
        self.service = service

    def on(
        self,
        trigger: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: Sequence[gr.components.Component] = (),
        outputs: Sequence[gr.components.Component] = (),
        **options: Any,
    ) -> Any:
        """Bind a handler to an event of the page, which is no endpoint for clients."""
        return trigger(
            with_workspace(self.service, handler),
            list(inputs),
            list(outputs),
            api_visibility="private",
            **options,
        )


def with_workspace(service: Service, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``handler(workspace, *inputs)`` as Gradio calls it: with a request, and the inputs."""

    @wraps(handler)
    def call(request: gr.Request, *inputs: Any) -> Any:
        with errors_shown():
            workspace = service.workspace(request)
            with hidden_paths(workspace.folder):
                return handler(workspace, *inputs)

    @wraps(handler)
    def stream(request: gr.Request, *inputs: Any) -> Iterator[Any]:
        with errors_shown():
            workspace = service.workspace(request)
            with hidden_paths(workspace.folder):
                yield from handler(workspace, *inputs)

    adapted = stream if isgeneratorfunction(handler) else call
    # Gradio finds the argument that gets the request by its annotation
    adapted.__annotations__ = {**handler.__annotations__, "workspace": gr.Request}
    return adapted


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show a `UserError` as a sentence in the page, or to a client."""
    try:
        yield
    except cr.UserError as error:
        # the page would take what looks like HTML for HTML
        raise gr.Error(sentence(error).replace("<", "‹"), print_exception=False) from error


def sentence(error: cr.UserError) -> str:
    """Return an error with a capital and a full stop."""
    line = str(error)
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")


def gallery(label: str, columns: int, height: int, elem_id: str) -> gr.Gallery:
    """Make a gallery of thumbnails that can be selected and nothing else."""
    return gr.Gallery(
        label=label,
        show_label=False,
        buttons=[],
        columns=columns,
        height=height,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        elem_id=elem_id,
    )


def share_slider(
    label: str, info: str, elem_id: str, value: float, visible: bool = True
) -> gr.Slider:
    """Make a slider from 0 to 1."""
    return gr.Slider(
        0, 1, value=value, step=0.05, label=label, info=info, elem_id=elem_id, visible=visible
    )
