"""Versions of the files that this package writes, and how it reads older ones.

Every file records its version; a ``config.yaml`` without one has version 1. `TRAIN` and `METHODS`
list what each version changed in the settings, with the values that were in effect before. So an
older file keeps its meaning even if a default changes. To add, rename or remove a setting, raise
the version and list the change under it. A new entry at the top level of ``config.yaml`` needs no
new version: older files do not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clip_randlora.errors import UserError

RUN = 3  # of config.yaml and sweep.json; version 1 did not record the seed of a method's start
ADAPTER = 3  # version 1 split the bases' columns in another way, so its files mean other updates
OLDEST_ADAPTER = 2
CHECKPOINT = 2  # version 1 belongs to adapter files of version 1


@dataclass(frozen=True)
class Change:
    """What a version changed in the settings of the version before it.

    Attributes:
        added: new settings, each with the value that was in effect before.
        renamed: old name -> new name.
        removed: settings that no longer exist.
    """

    added: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def upgrade(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Convert settings of the version before to this version."""
        kept = {
            self.renamed.get(name, name): value
            for name, value in settings.items()
            if name not in self.removed
        }
        return dict(self.added) | kept

    def names_before(self, names: list[str]) -> list[str]:
        """Convert the names of this version's settings to those of the version before."""
        old_names = {new: old for old, new in self.renamed.items()}
        kept = [old_names.get(name, name) for name in names if name not in self.added]
        return kept + sorted(self.removed)


TRAIN: dict[int, Change] = {
    2: Change(added={"beta2": 0.999}),
    3: Change(
        added={
            "max_steps": 2000,
            "accumulate": 1,
            "checkpoint_blocks": False,
            "logit_scale": None,
            "strength": 1.0,
            "stream": False,
            "calibrate": False,
        },
    ),
}
"""Changes of the training settings, by the version of ``config.yaml``.

Some files of version 1 have beta2 already.
"""

METHODS: dict[int, dict[str, Change]] = {
    3: {
        "randlora": Change(added={"as_released": False}),
        "vera": Change(added={"as_released": False}),
    },
}
"""Changes of each method's settings, by the version of adapter files and the method's name."""

_ADAPTER_OF_RUN = {1: 2, 2: 2, 3: 3}  # version of config.yaml -> version of its method's settings


def check_version(where: str, version: object, newest: int, oldest: int = 1) -> int:
    """Return a file's version as a number.

    Args:
        where: names the file and the field, for messages.
        version: a number, or its digits.
        newest, oldest: the versions that can be read.

    Raises:
        UserError: the version is not a number, or it cannot be read.
    """
    if isinstance(version, str) and version.isdecimal() and len(version) < 10:
        version = int(version)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{where} {str(version)[:40]!r}: damaged, not the number of a format")
    if oldest <= version <= newest:
        return version
    known = f"format {newest}" if oldest == newest else f"formats {oldest} to {newest}"
    advice = (
        "use a newer clip-randlora"
        if version > newest
        else "use the version that wrote it, or train again"
    )
    raise UserError(f"{where} {version}, this version of clip-randlora reads {known}; {advice}")


def train_settings_of(version: int, now: list[str]) -> list[str]:
    """Convert the names of today's training settings to those of a version of ``config.yaml``."""
    for later in range(RUN, version, -1):
        now = TRAIN.get(later, Change()).names_before(now)
    return now


def upgrade_train(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Convert training settings of a version of ``config.yaml`` to today's."""
    settings = dict(settings)
    for later in range(version + 1, RUN + 1):
        settings = TRAIN.get(later, Change()).upgrade(settings)
    if isinstance(settings.get("method"), Mapping):
        settings["method"] = upgrade_run_method(settings["method"], version)
    return settings


def upgrade_run_method(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Convert a method's settings of a version of ``config.yaml`` to today's."""
    return upgrade_method(settings, _ADAPTER_OF_RUN.get(version, ADAPTER))


def upgrade_method(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Convert a method's settings of a version of adapter files to today's."""
    settings = dict(settings)
    for later in range(version + 1, ADAPTER + 1):
        change = METHODS.get(later, {}).get(str(settings.get("method")), Change())
        settings = change.upgrade(settings)
    if isinstance(settings.get("terms"), list):  # the adapters of a sum
        settings["terms"] = [
            upgrade_method(term, version) if isinstance(term, Mapping) else term
            for term in settings["terms"]
        ]
    return settings
