"""A run's ``metrics.json``, which marks it as finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_randlora.errors import UserError

METRICS = "metrics.json"


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of a finished run.

    Raises:
        UserError: the run is not finished, or the file is damaged.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        raise UserError(f"{folder}: the run is not finished; go on with it by --resume")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if {"zero_shot", "tuned", "per_class"} <= metrics.keys():
            return metrics
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: damaged, not the metrics of a run")
