"""YAML files that a user may have written: settings, data set specs, sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clip_randlora.errors import UserError

MAX_CHARACTERS = 4 * 2**20


def read_mapping(path: Path, expected: str, called: str | None = None) -> dict[str, Any]:
    """Read a mapping of ``name: value`` lines; tags that build Python objects are refused.

    Args:
        path: the file.
        expected: what the file should hold, for error messages.
        called: what error messages call the file; by default its path.

    Raises:
        UserError: the file cannot be read, is not YAML, or is not a mapping.
    """
    called = called or str(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{called}: {error.strerror}; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{called}: not text in UTF-8 ({error.reason}); save it as UTF-8") from None
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{called}: more than {MAX_CHARACTERS} characters; expected {expected}")
    try:
        fields = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{called}: nested too deeply; expected {expected}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # dates and numbers out of range
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{called}: not YAML ({reason}); expected {expected}") from None
    if fields is None:  # empty, or only comments
        return {}
    if not isinstance(fields, dict):
        raise UserError(f"{called}: expected {expected}")
    for name in fields:
        if not isinstance(name, str):
            raise UserError(f"{called}: {str(name)[:40]!r} is not a name; expected {expected}")
    return fields
