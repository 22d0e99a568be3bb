"""A finished run, loaded again to classify images."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_randlora.adapters import Adapter, load_adapter
from clip_randlora.clip.models import Model, load_model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import Skipped, UnreadableImage, summarize_skipped
from clip_randlora.data.inputs import Input, each_input
from clip_randlora.errors import UserError
from clip_randlora.evaluation import PairedPredictor, as_mapping
from clip_randlora.runs.task import Task, read_task
from clip_randlora.utils.parallel import parallel_map

_IMAGES_AT_ONCE = 256


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
        self._both: PairedPredictor | None = None
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

    def side_by_side(self) -> PairedPredictor:
        """Return what answers for batches, at the adapter's present strength."""
        return PairedPredictor(self.model, self.adapter, self.text)

    def _current(self) -> PairedPredictor:
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

    def predict(self, images: Any, *, on_error: str = "raise") -> list[dict[str, Any]]:
        """Classify images, in one call or one after the other: what can be kept ready is kept.

        Args:
            images: one of these, or an iterable that may mix them: a path, a folder or ``.zip``
                (all its images, naturally sorted), a glob, an http or https URL, a PIL image, the
                bytes of a file, an open binary file, a numpy array (H, W), (H, W, 1 | 3 | 4) or
                (N, H, W, 1 | 3 | 4), a tensor (H, W), (1 | 3 | 4, H, W) or (N, 1 | 3 | 4, H, W).
                Arrays and tensors are uint8, or floats in [0, 1]: not normalised.
            on_error: ``raise``, or ``return``: the answer for an image that cannot be used is
                then ``{"error": why}``, and the others are answered.

        Returns:
            A list, of a single image too: for each image
            ``{"zero_shot": {class: p}, "tuned": {class: p}}``, the most probable class first.

        Raises:
            UserError: an image cannot be used, named; or the adapter was taken off the model.
        """
        return [answer for _, answer in self.predict_each(images, on_error=on_error)]

    def predict_each(
        self, images: Any, *, on_error: str = "raise"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Classify images a batch at a time, and yield the name and the answer of each, in order.

        For folders, and for more images than fit into memory. The name is the path or the URL, or
        ``image 3`` of the third that has none; otherwise as `predict`. Files of a folder that are
        no images by their name are left out with a warning.
        """
        if on_error not in ("raise", "return"):
            raise UserError(f"on_error {on_error}: give raise or return")
        return self._answers(each_input(images, _warn_of), on_error)

    def _answers(
        self, entries: Iterable[Input], on_error: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        both = self._current()
        decoded = parallel_map(partial(_decode, self.model.square()), entries)
        while some := list(islice(decoded, _IMAGES_AT_ONCE)):
            errors = [pixels for _, pixels in some if isinstance(pixels, UnreadableImage)]
            if errors and on_error == "raise":
                raise errors[0]
            good = [pixels for _, pixels in some if isinstance(pixels, torch.Tensor)]
            rows = zip(*both.probabilities(torch.stack(good)), strict=True) if good else iter(())
            for name, pixels in some:
                if isinstance(pixels, UnreadableImage):
                    yield name, {"error": str(pixels)}
                    continue
                zero_shot, tuned = next(rows)
                yield (
                    name,
                    {
                        "zero_shot": as_mapping(self.classes, zero_shot),
                        "tuned": as_mapping(self.classes, tuned),
                    },
                )


def _decode(
    square: Callable[[Image.Image], Tensor], entry: Input
) -> tuple[str, Tensor | UnreadableImage]:
    try:
        return entry.name, square(entry.open())
    except UnreadableImage as error:
        return entry.name, error


def _warn_of(left_out: list[Skipped]) -> None:
    warnings.warn(summarize_skipped(left_out), stacklevel=2)
