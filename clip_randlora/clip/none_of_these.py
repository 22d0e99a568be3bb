"""The class of images that are of none of the other classes, known by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAMES = re.compile(
    r"[\W_]+background[\W_]*|[\W_]*none[\W_]*of[\W_]*(these|them|the[\W_]*above)[\W_]*",
    re.IGNORECASE,
)
GENERIC_NAMES = ("thing", "scene", "texture", "pattern", "place", "background")
"""Names in the prompts of that class, whose own name describes no picture."""


def is_none_of_these(name: str) -> bool:
    """Return whether a class is that of images of none of the others.

    For example ``_background``, ``none of these`` or ``None_of_the_above``. A class that is called
    just ``background`` is one like others.
    """
    return _NAMES.fullmatch(name) is not None


def none_labels(classes: Sequence[str]) -> list[int]:
    """Return the labels of such classes."""
    return [label for label, name in enumerate(classes) if is_none_of_these(name)]
