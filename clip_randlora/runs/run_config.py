"""A run's ``config.yaml``: the settings of its training, its classes and their prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from clip_randlora.adapters.config import one_line
from clip_randlora.clip.prompts import recorded_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.data.folders import ClassFolders
from clip_randlora.errors import UserError
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import write_text
from clip_randlora.utils.yaml_files import read_mapping

CONFIG = "config.yaml"
_COMPLETE = "complete"  # the last line; without it the file was cut short


class _Required(BaseModel):
    """What every version of the file has."""

    model: str
    pretrained: str | None
    data: dict[str, Any] = {}
    classes: list[str] = Field(min_length=1)
    train: dict[str, Any]


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``config.yaml``: from now on a run can be resumed in the folder."""
    recorded = {"format": formats.RUN, **settings, _COMPLETE: True}
    write_text(folder / CONFIG, yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))


def has_config(folder: str | Path) -> bool:
    """Return whether a run was begun in the folder."""
    try:
        return (Path(folder) / CONFIG).exists()
    except (OSError, ValueError):  # not a valid path
        return False


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a run's settings.

    Raises:
        UserError: the folder holds no run, or its settings cannot be read.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (it has no {CONFIG})")
    return check_config(path, read_mapping(path, "the settings of a run"))


def check_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Check the content of a ``config.yaml``, and convert its training settings to today's.

    Returns:
        The content, with ``data`` if it had none. ``format`` stays the file's version.

    Raises:
        UserError: it is damaged, cut short, or of an unknown version.
    """
    version = formats.check_version(f"{path}: format", config.setdefault("format", 1), formats.RUN)
    try:
        _Required.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, {one_line(error)}; copy the run again") from None
    fields, train = TrainConfig.model_fields, config["train"]
    recorded = formats.train_settings_of(version, list(fields))
    missing = [name for name in recorded if name not in train]
    train = formats.upgrade_train(train, version)
    if missing and train.keys() <= fields.keys():  # unknown settings are named by the parser
        raise UserError(f"{path}: damaged, train has no {missing[0]}; copy the run again")
    if version > 1 and config.get(_COMPLETE) is not True:
        raise UserError(f"{path}: damaged, cut short; copy the run again")
    return {"data": {}, **config, "train": train}


def read_prompts(folder: str | Path, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` of a run.

    Args:
        folder: the run folder, for messages.
        config: what `read_config` returned. If it records no prompts, they are those that the
            version of that time made of the class names.

    Raises:
        UserError: the recorded prompts or settings are damaged.
    """
    path = Path(folder) / CONFIG
    try:
        if "prompts" in config:
            templates, names = config.get("templates"), config["prompts"]
        else:
            train = TrainConfig.parse(config["train"])
            templates, names = train.templates or DEFAULT_TEMPLATES, train.prompts
        templates = TypeAdapter(tuple[str, ...]).validate_python(templates)
        names = TypeAdapter(dict[str, tuple[str, ...]]).validate_python(names)
        return recorded_prompts(config["classes"], templates, names)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, prompts: {one_line(error)}; copy it again") from error
    except UserError as error:
        raise UserError(f"{path}: damaged settings: {error}") from error


def read_train_settings(folder: str | Path) -> dict[str, Any]:
    """Return the training settings that a run in the folder began with; empty if there is no run.

    Raises:
        UserError: they cannot be read.
    """
    return read_config(folder)["train"] if has_config(folder) else {}


def read_class_folders(folder: str | Path) -> ClassFolders | None:
    """Return the ``class_folders`` that a run in the folder was given; see `load_data`."""
    return read_config(folder)["data"].get("class_folders") if has_config(folder) else None


def read_columns(folder: str | Path, source: object) -> str | None:
    """Return the ``columns`` that a run in the folder was given for the same source.

    Args:
        folder: of the run.
        source: absolute, as the run records it.
    """
    data = read_config(folder)["data"] if has_config(folder) else {}
    return data.get("columns") if str(data.get("data")) == str(source) else None


def check_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than it began with.

    Only the entries that the run recorded are compared, as older versions recorded fewer.

    Raises:
        UserError: it names the first setting that differs.
    """
    before, now = read_config(folder), json.loads(json.dumps(settings))
    known = [key for key in now if key in before]
    difference = first_difference(*({key: of[key] for key in known} for of in (before, now)))
    if difference:
        name, old, new = difference
        raise UserError(
            f"--resume: {folder} was begun with {name} = {old}, now it is {new}; resume with the "
            f"same settings (--config {folder / CONFIG} has those of the training), or choose "
            f"another --out"
        )


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Return the dotted name of a setting that differs, its old and its new value."""
    keys = dict.fromkeys([*before, *now])
    for key in sorted(keys, key=lambda key: isinstance(now.get(key), Mapping)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = first_difference(old, new)
            if inner:
                return f"{key}.{inner[0]}", inner[1], inner[2]
        elif old != new:
            return key, old, new
    return None
