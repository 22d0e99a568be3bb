"""Named training settings, from ``configs/presets``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clip_randlora.errors import UserError

_IN_WHEEL = Path(__file__).parent / "configs"
CONFIGS = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parent.parent / "configs"
"""The folder of the YAML files that come with the package."""

PRESETS = ("fast", "balanced", "thorough")


def read_preset(name: str) -> Mapping[str, Any]:
    """Return the settings of a preset, for `TrainConfig.parse`.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name}: choose {', '.join(PRESETS)}")
    return yaml.safe_load((CONFIGS / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
