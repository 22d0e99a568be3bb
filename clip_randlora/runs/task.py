"""What a trained classifier is: its base model, classes, prompts and adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from clip_randlora.adapters.config import one_line
from clip_randlora.adapters.io import adapter_files
from clip_randlora.clip.prompts import AS_IT_IS, recorded_prompts
from clip_randlora.errors import UserError
from clip_randlora.runs.run_config import read_config, read_prompts
from clip_randlora.runs.run_source import local_run


@dataclass(frozen=True)
class Task:
    """What a trained classifier is.

    Attributes:
        model: name of the base model, as `load_model` takes it.
        pretrained: tag or file of its weights; None for random weights.
        classes: the class names.
        templates: prompt templates; `read_task` gives ``{}`` alone, with ``prompts`` in full.
        prompts: the prompts of each class.
        adapter: path of the adapter file.
    """

    model: str
    pretrained: str | None
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    templates: tuple[str, ...]
    prompts: dict[str, tuple[str, ...]]
    adapter: Path


def read_task(path: str | Path) -> Task:
    """Read the task of a run folder, of the adapter file of one, or of a run on the hub.

    Raises:
        UserError: the path is neither, or the run is not finished.
    """
    path = local_run(path)
    if not path.exists():
        raise UserError(f"{path}: not a run folder, nor the adapter file of one: no such path")
    if not path.is_dir():
        return _parse_task(path, adapter_files.read(path).task)
    config = read_config(path)
    adapter = path / adapter_files.FILE_NAME
    if not adapter.exists():
        raise UserError(f"{path}: the run is not finished; go on with it by --resume")
    prompts = {name: tuple(own) for name, own in read_prompts(path, config).items()}
    classes = tuple(config["classes"])
    return Task(config["model"], config["pretrained"], classes, AS_IT_IS, prompts, adapter)


def _parse_task(path: Path, task: Mapping[str, Any] | None) -> Task:
    if task is None:
        raise UserError(f"{path}: names no classes; load the run folder that it belongs to")
    if not isinstance(task, Mapping):
        raise UserError(f"{path}: damaged, its task is not a mapping; use another copy")
    try:
        read = TypeAdapter(Task).validate_python({**task, "adapter": path})
        prompts = recorded_prompts(read.classes, read.templates, read.prompts)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, task {one_line(error)}; use another copy") from error
    except UserError as error:
        raise UserError(f"{path}: damaged, task {error}; use another copy") from error
    in_full = {name: tuple(own) for name, own in prompts.items()}
    return replace(read, templates=AS_IT_IS, prompts=in_full)
