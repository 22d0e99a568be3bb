"""Ray clusters of the tests' own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def ray_folder(monkeypatch) -> Iterator[Path]:
    """Of Ray's own files; not below pytest's, whose name would be too long for a socket."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder) / "ray"
