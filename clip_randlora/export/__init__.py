"""Tuned encoders for other libraries: each export is a folder, checked by loading it back."""

from clip_randlora.export.exporter import (
    export_formats,
    export_obstacles,
    export_precisions,
    export_run,
    loading_snippet,
)
from clip_randlora.export.upload import push, require_token

__all__ = [
    "export_formats",
    "export_obstacles",
    "export_precisions",
    "export_run",
    "loading_snippet",
    "push",
    "require_token",
]
