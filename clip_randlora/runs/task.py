"""What a finished run is a classifier for."""

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
from clip_randlora.runs import run_folder


@dataclass(frozen=True)
class Task:
    """What a trained classifier is: its base model, its classes and prompts, its adapter file.

    `read_task` gives the prompts of every class in full; ``templates`` are then ``{}`` alone.
    """

    model: str
    pretrained: str | None
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    templates: tuple[str, ...]
    prompts: dict[str, tuple[str, ...]]
    adapter: Path


def read_task(path: str | Path) -> Task:
    """Read what a run folder, or the adapter file of one alone, is a classifier for.

    Raises:
        UserError: neither of the two, or an unfinished run.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: not a run folder, nor the adapter file of one: no such path")
    if not path.is_dir():
        return _parse_task(path, adapter_files.read(path).task)
    config = run_folder.read_config(path)
    adapter = path / run_folder.ADAPTER
    if not adapter.exists():
        raise UserError(f"{path}: the run is not finished; go on with it by --resume")
    classes = tuple(config["classes"])
    prompts = {name: tuple(own) for name, own in run_folder.read_prompts(path, config).items()}
    return Task(config["model"], config["pretrained"], classes, AS_IT_IS, prompts, adapter)


def _parse_task(path: Path, task: Mapping[str, Any] | None) -> Task:
    if task is None:
        raise UserError(f"{path}: names no classes; load the run folder that it belongs to")
    if not isinstance(task, Mapping):
        raise UserError(f"{path}: damaged, its task is none; use another copy")
    try:
        read = TypeAdapter(Task).validate_python({**task, "adapter": path})
        prompts = recorded_prompts(read.classes, read.templates, read.prompts)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, task {one_line(error)}; use another copy") from error
    except UserError as error:
        raise UserError(f"{path}: damaged, task {error}; use another copy") from error
    in_full = {name: tuple(own) for name, own in prompts.items()}
    return replace(read, templates=AS_IT_IS, prompts=in_full)
