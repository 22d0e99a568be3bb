"""Named training settings, from ``configs/presets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from clip_randlora.errors import UserError
from clip_randlora.utils.paths import configs_folder

PRESETS = ("fast", "balanced", "thorough")


def read_preset(name: str) -> Mapping[str, Any]:
    """Return the settings of a preset, for `TrainConfig.parse`.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name}: choose {', '.join(PRESETS)}")
    return yaml.safe_load(
        (configs_folder() / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    )
