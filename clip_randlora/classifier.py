"""A finished run, loaded again to classify images."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from clip_randlora import runs
from clip_randlora.adapters import Adapter, files, load_adapter
from clip_randlora.adapters.config import one_line
from clip_randlora.data import decode_image
from clip_randlora.errors import UserError
from clip_randlora.evaluation import SideBySide, as_mapping
from clip_randlora.models import Model, load_model
from clip_randlora.prompts import AS_IT_IS, recorded_prompts
from clip_randlora.text import TextClassifier

_IMAGES_AT_ONCE = 256


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
        return _parse_task(path, files.read(path).task)
    config = runs.read_config(path)
    adapter = path / runs.ADAPTER
    if not adapter.exists():
        raise UserError(f"{path}: the run is not finished; go on with it by --resume")
    classes = tuple(config["classes"])
    prompts = {name: tuple(own) for name, own in runs.read_prompts(path, config).items()}
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


def _check_head(adapter: Adapter, text: TextClassifier, task: Task) -> None:
    """Refuse a linear probe of another number of classes or features than its task's."""
    with torch.inference_mode():
        expected = text.features().shape
    if adapter.head.weight.shape != expected:
        adapter.detach()
        raise UserError(
            f"{task.adapter}: damaged adapter file, its head is not that of {len(task.classes)} "
            f"classes on {task.model}; use another copy"
        )


class Classifier:
    """A tuned model that answers zero-shot and tuned side by side, in any number of threads.

    Attributes:
        model, adapter: what was loaded; ``classes``: the class names, as the folders spelt them.
    """

    def __init__(self, model: Model, adapter: Adapter, text: TextClassifier):
        self.model, self.adapter, self.text = model, adapter, text
        self.classes = text.classes
        self._both: SideBySide | None = None
        # Held while answers are made ready, so that threads that find them missing do it once.
        self._preparing = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        strength: float = 1.0,
        device: str | torch.device | None = None,
        model: Model | None = None,
    ) -> Classifier:
        """Load a run folder, or the adapter file of one alone.

        Args:
            path: a folder that `fit` or ``clip-randlora train`` wrote, or the
                ``adapter.safetensors`` in it.
            strength: 0 (zero-shot) to 1 (tuned), see `Adapter.strength`.
            device: by default the best there is.
            model: the base model, if it is in memory already; it must have no adapter.

        Raises:
            UserError: not a run folder nor its adapter, an unfinished run, or its base model
                cannot be had.
        """
        task = read_task(path)
        model = model or load_model(task.model, task.pretrained, device)
        text = TextClassifier(model, task.classes, [task.prompts[name] for name in task.classes])
        adapter = load_adapter(model.net, task.adapter)
        if adapter.head is not None:
            _check_head(adapter, text, task)
        adapter.strength = strength
        return cls(model, adapter, text)

    def close(self) -> None:
        """Take the adapter off, so that the model can serve another classifier; it answers no more.

        Answers that other threads are waiting for are given yet.
        """
        self._both = None
        self.adapter.detach()

    def side_by_side(self) -> SideBySide:
        """Return what answers for batches, at the adapter's present strength."""
        return SideBySide(self.model, self.adapter, self.text)

    def _current(self) -> SideBySide:
        """Return what answered before, unless the adapter's strength or numbers are others now."""
        both = self._both
        if both is not None and both.is_current and both.strength == self.adapter.strength:
            return both
        with self._preparing:
            both = self._both
            if both is None or not both.is_current:
                both = self._both = self.side_by_side()
            elif both.strength != self.adapter.strength:
                both.strength = self.adapter.strength
        return both

    def predict(
        self, images: Sequence[Image.Image | str | Path]
    ) -> list[dict[str, dict[str, float]]]:
        """Classify images, in one call or one after the other: what can be kept ready is kept.

        Args:
            images: PIL images or paths.

        Returns:
            For each image ``{"zero_shot": {class: p}, "tuned": {class: p}}``, the most probable
            class first.

        Raises:
            UserError: an image cannot be read, named; or the adapter was taken off the model.
        """
        both, square = self._current(), self.model.square()
        answers = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            some = images[start : start + _IMAGES_AT_ONCE]
            pixels = torch.stack([square(decode_image(image)) for image in some])
            for zero_shot, tuned in zip(*both.probabilities(pixels), strict=True):
                answers.append(
                    {
                        "zero_shot": as_mapping(self.classes, zero_shot),
                        "tuned": as_mapping(self.classes, tuned),
                    }
                )
        return answers
