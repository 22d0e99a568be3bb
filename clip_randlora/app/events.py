"""How the page's events are bound: errors of the person become sentences in the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

import clip_randlora as cr

PRIVATE = {"api_visibility": "private"}
"""For events of the page alone: no endpoint for clients."""


def as_sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a ``UserError`` show as a sentence in the page, or reach a client as one."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _sentences():
            return function(*args, **kwargs)

    @wraps(function)
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with _sentences():
            yield from function(*args, **kwargs)

    return stream if isgeneratorfunction(function) else call


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except cr.UserError as error:
        # the page would take what looks like HTML for HTML
        raise gr.Error(sentence(error).replace("<", "‹"), print_exception=False) from error


def sentence(error: cr.UserError) -> str:
    """Return an error with a capital and a full stop."""
    line = str(error)
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")
