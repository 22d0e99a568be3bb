"""How a call reaches a function of the app: whose project it is about, and how errors are told."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, get_type_hints

import gradio as gr

import clip_randlora as cr
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import Upload, for_page, hidden_paths
from clip_randlora.app.workspace import Workspace


@dataclass(frozen=True)
class Caller:
    """Whoever calls an endpoint: their project, and the files that they uploaded."""

    service: Service
    workspace: Workspace
    request: gr.Request

    def uploads(self, files: Sequence[Any], names: Sequence[str] = ()) -> list[Upload]:
        """Return uploaded files with their names; see `Service.uploads`."""
        return self.service.uploads(self.request, files, names)


def as_endpoint(service: Service, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function(caller, *inputs)`` as Gradio calls it: with a request, and the inputs."""

    @wraps(function)
    def call(request: gr.Request, *inputs: Any) -> Any:
        with errors_told(), caller_of(service, request) as caller:
            return function(caller, *inputs)

    @wraps(function)
    def stream(request: gr.Request, *inputs: Any) -> Iterator[Any]:
        with errors_told(), caller_of(service, request) as caller:
            yield from function(caller, *inputs)

    adapted: Any = stream if inspect.isgeneratorfunction(function) else call
    # Gradio finds the argument that gets the request, and the types of the others, by annotations
    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    adapted.__annotations__ = get_type_hints(function) | {first.name: gr.Request}
    adapted.__signature__ = signature.replace(
        parameters=[
            parameter.replace(annotation=adapted.__annotations__[parameter.name])
            for parameter in (first, *others)
        ],
        return_annotation=adapted.__annotations__.get("return", inspect.Signature.empty),
    )
    return adapted


@contextmanager
def caller_of(service: Service, request: gr.Request) -> Iterator[Caller]:
    """Yield who calls; no path of their project's folder reaches them in an error."""
    workspace = service.workspace(request)
    with hidden_paths(workspace.folder):
        yield Caller(service, workspace, request)


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell an error as a sentence; of an error that is ours, only the log has the details."""
    try:
        yield
    except cr.UserError as error:
        # the page would take what looks like HTML for HTML
        raise gr.Error(sentence(error).replace("<", "‹"), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        traceback.print_exc()
        raise gr.Error(
            "This failed, and it is a fault of the app; its log says more.", print_exception=False
        ) from error


def sentence(error: Exception) -> str:
    """Return an error with a capital and a full stop."""
    line = for_page(str(error))
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")
