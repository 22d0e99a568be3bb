"""Replace the forward passes of modules for the time of a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Replacement = Callable[..., Any]
"""Called as ``replacement(inner, *inputs)``, where ``inner`` is the pass that it replaces."""

# Held while a module's stack changes, never while a forward pass runs.
_lock = threading.Lock()


class _Stack:
    """A module's own forward pass and its replacements; set as the module's ``forward``."""

    def __init__(self, module: nn.Module):
        self.instance_forward: Callable[..., Any] | None = vars(module).get("forward")
        self.usual = module.forward
        self.entries: list[_Entry] = []
        self.outermost = self.usual

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.outermost(*args, **kwargs)

    def rebuild(self) -> None:
        """Nest the replacements again, the newest outermost."""
        forward = self.usual
        for entry in self.entries:
            forward = partial(entry.replacement, forward)
        self.outermost = forward

    def remove_from(self, module: nn.Module) -> None:
        """Give the module back the forward pass that it had."""
        if self.instance_forward is None:
            del module.forward
        else:
            module.forward = self.instance_forward


class _Entry:
    """One replacement of one block; compared by identity, as two blocks may use the same one."""

    def __init__(self, replacement: Replacement):
        self.replacement = replacement


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Replacement]) -> Iterator[None]:
    """Replace the modules' forward passes inside the block; their hooks still run.

    Blocks may be nested, and may end in any order. All threads share a module and so see the
    replacement. Code that answers in several threads uses a network of its own
    (`clip_randlora.forward.inference`).
    """
    added = [(module, _add(module, replacement)) for module, replacement in replacements.items()]
    try:
        yield
    finally:
        for module, entry in added:
            _remove(module, entry)


def present_forwards(modules: Iterable[nn.Module]) -> dict[nn.Module, Replacement]:
    """Return replacements that bring the present ones of these modules back after their block."""
    stacks = {module: vars(module).get("forward") for module in modules}
    return {
        module: partial(_ignore_inner, stack.outermost)
        for module, stack in stacks.items()
        if isinstance(stack, _Stack)
    }


def _ignore_inner(forward: Callable[..., Any], _: Any, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


def remove_replacements(module: nn.Module) -> None:
    """Give a copy of a module its usual forward pass, whatever replaces the original's now."""
    stack = vars(module).get("forward")
    if isinstance(stack, _Stack):
        stack.remove_from(module)


def _add(module: nn.Module, replacement: Replacement) -> _Entry:
    entry = _Entry(replacement)
    with _lock:
        stack = vars(module).get("forward")
        if not isinstance(stack, _Stack):
            stack = _Stack(module)
            module.forward = stack
        stack.entries.append(entry)
        stack.rebuild()
    return entry


def _remove(module: nn.Module, entry: _Entry) -> None:
    with _lock:
        stack: _Stack = vars(module)["forward"]
        stack.entries.remove(entry)
        stack.rebuild()
        if not stack.entries:
            stack.remove_from(module)
