"""The versions of the files that are written here, and how an older file is read.

Every file says its version; a ``config.yaml`` without one is of version 1. What a later version
changed of the settings stands in `TRAIN` and `METHODS`, with what held before it: an older file
keeps its meaning, whatever the defaults have become. To add, rename or remove a setting, raise the
version and describe the change there, under the new version. A record that is only added to the top
of ``config.yaml`` needs no new version: older files are those without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clip_randlora.errors import UserError

RUN = 2  # of config.yaml and sweep.json; 1 did not record what a method's random start came from
ADAPTER = 2  # 1 dealt the bases' columns otherwise, so its numbers mean other updates
OLDEST_ADAPTER = 2
CHECKPOINT = 2  # 1 went with adapters of version 1


@dataclass(frozen=True)
class Change:
    """What a version changed of the settings of the version before it.

    Attributes:
        added: each new setting, and the value that was in effect before there was one.
        renamed: old name -> new name.
        removed: what is no setting any more.
    """

    added: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def apply(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of the version before as those of this one."""
        kept = {
            self.renamed.get(name, name): value
            for name, value in settings.items()
            if name not in self.removed
        }
        return dict(self.added) | kept

    def names_before(self, names: list[str]) -> list[str]:
        """Return the settings of the version before, by those of this one."""
        old_names = {new: old for old, new in self.renamed.items()}
        kept = [old_names.get(name, name) for name in names if name not in self.added]
        return kept + sorted(self.removed)


TRAIN: dict[int, Change] = {2: Change(added={"beta2": 0.999})}
"""What versions of ``config.yaml`` changed of the training's settings.

Files of version 1 may have beta2, which was added before versions were recorded.
"""

METHODS: dict[int, dict[str, Change]] = {}
"""What versions of adapter files changed of the settings of each method, by its name."""

_ADAPTER_OF_RUN = {1: 2, 2: 2}  # version of config.yaml -> whose settings of the method it has


def check_version(where: str, version: object, newest: int, oldest: int = 1) -> int:
    """Return a file's version, a number or its digits; ``where`` names the file and the format.

    Raises:
        UserError: it is none, newer than ``newest``, or older than ``oldest``.
    """
    if isinstance(version, str) and version.isdecimal() and len(version) < 10:
        version = int(version)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{where} {str(version)[:40]!r}: damaged, this is no number of a format")
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
    """Return the names of the training's settings in a version, by those of ``now``."""
    for later in range(RUN, version, -1):
        now = TRAIN.get(later, Change()).names_before(now)
    return now


def upgrade_train(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return the training's settings in a ``config.yaml`` of a version as those of today."""
    settings = dict(settings)
    for later in range(version + 1, RUN + 1):
        settings = TRAIN.get(later, Change()).apply(settings)
    if isinstance(settings.get("method"), Mapping):
        settings["method"] = upgrade_run_method(settings["method"], version)
    return settings


def upgrade_run_method(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return a method's settings in a ``config.yaml`` of a version as those of today."""
    return upgrade_method(settings, _ADAPTER_OF_RUN.get(version, ADAPTER))


def upgrade_method(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return a method's settings in an adapter file of a version as those of today."""
    settings = dict(settings)
    for later in range(version + 1, ADAPTER + 1):
        changes = METHODS.get(later, {})
        settings = changes.get(str(settings.get("method")), Change()).apply(settings)
    if isinstance(settings.get("terms"), list):  # of a sum
        settings["terms"] = [
            upgrade_method(term, version) if isinstance(term, Mapping) else term
            for term in settings["terms"]
        ]
    return settings
