"""YAML from outside: settings, descriptions of data sets, the settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clip_randlora.errors import UserError

MAX_CHARACTERS = 4 * 2**20


def read_mapping(path: Path, expected: str, called: str | None = None) -> dict[str, Any]:
    """Read ``name: value`` lines; no tag in them can build an object.

    Args:
        path: the file.
        expected: what the file should hold, for the message if it does not.
        called: what messages call it; by default its path.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds something else.
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
    fields = {} if fields is None else fields  # nothing but comments
    if not isinstance(fields, dict):
        raise UserError(f"{called}: expected {expected}")
    for name in fields:
        if not isinstance(name, str):
            raise UserError(f"{called}: {str(name)[:40]!r} is no name; expected {expected}")
    return fields
