"""Other forward passes for some modules of a network, for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Replacement = Callable[..., Any]
"""Called in place of a module's forward pass: with the pass that it replaces, then its inputs."""

# Held while a module's list of passes is changed, never while a pass runs: two blocks that begin
# or end at once must not lose each other's.
_changing = threading.Lock()


class _Passes:
    """The forward passes of one module, one upon another; set as its ``forward``."""

    def __init__(self, module: nn.Module):
        self.own: Callable[..., Any] | None = vars(module).get("forward")
        self.usual = module.forward
        self.replacements: list[_Replaced] = []
        self.outermost = self.usual

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.outermost(*args, **kwargs)

    def stack(self) -> None:
        """Lay the replacements upon the module's usual pass again, in the order of their blocks."""
        forward = self.usual
        for replaced in self.replacements:
            forward = partial(replaced.replacement, forward)
        self.outermost = forward


class _Replaced:
    """One replacement of one block; compared by identity, as two blocks may use the same one."""

    def __init__(self, replacement: Replacement):
        self.replacement = replacement


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Replacement]) -> Iterator[None]:
    """Give modules other forward passes inside the block; their hooks still run.

    Blocks may lie in one another, and may end in any order: a replacement is called as
    ``replacement(inner, *args, **kwargs)``, where ``inner`` is the pass below it at that time. The
    module is shared by all threads, so all of them get the replacement; what answers in several
    threads uses a network of its own (`clip_randlora.forward.inference`).
    """
    added = [(module, _add(module, replacement)) for module, replacement in replacements.items()]
    try:
        yield
    finally:
        for module, replaced in added:
            _remove(module, replaced)


def without_replacements(module: nn.Module) -> None:
    """Give a copy of a module its usual forward pass back, whatever the original has just now."""
    passes = vars(module).get("forward")
    if isinstance(passes, _Passes):
        _restore(module, passes)


def _add(module: nn.Module, replacement: Replacement) -> _Replaced:
    replaced = _Replaced(replacement)
    with _changing:
        passes = vars(module).get("forward")
        if not isinstance(passes, _Passes):
            passes = _Passes(module)
            module.forward = passes
        passes.replacements.append(replaced)
        passes.stack()
    return replaced


def _remove(module: nn.Module, replaced: _Replaced) -> None:
    with _changing:
        passes = module.forward
        passes.replacements.remove(replaced)
        passes.stack()
        if not passes.replacements:
            _restore(module, passes)


def _restore(module: nn.Module, passes: _Passes) -> None:
    if passes.own is None:
        del module.forward
    else:
        module.forward = passes.own
