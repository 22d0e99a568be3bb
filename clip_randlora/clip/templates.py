"""Prompt templates: the default, and a check of others."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

from clip_randlora.errors import UserError

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates, each with exactly one ``{}`` for the class name.

    Raises:
        UserError: there is no template, or one has no or several places for the name.
    """
    if not templates:
        raise UserError("templates: at least one is needed, such as 'a photo of a {}.'")
    for template in templates:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError:
            fields = []
        if fields != [""]:
            raise UserError(f"template {template!r}: write {{}} once, where the class name goes")
    return tuple(templates)
