"""A finished run, loaded again to classify images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from clip_randlora import runs
from clip_randlora.adapters import Adapter, load_adapter
from clip_randlora.data import decode_image
from clip_randlora.errors import UserError
from clip_randlora.evaluation import SideBySide, as_mapping
from clip_randlora.models import Model, load_model
from clip_randlora.text import TextClassifier, make_prompts
from clip_randlora.training import TrainConfig

_IMAGES_AT_ONCE = 256


class Classifier:
    """A tuned model that answers zero-shot and tuned side by side.

    Attributes:
        model, adapter: what was loaded; ``classes``: the class names, as the folders spelt them.
    """

    def __init__(self, model: Model, adapter: Adapter, text: TextClassifier):
        self.model, self.adapter, self.text = model, adapter, text
        self.classes = text.classes

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        strength: float = 1.0,
        device: str | torch.device | None = None,
    ) -> Classifier:
        """Load a run folder.

        Args:
            folder: as `fit` or ``clip-randlora train`` wrote it.
            strength: 0 (zero-shot) to 1 (tuned), see `Adapter.strength`.
            device: by default the best there is.

        Raises:
            UserError: not a run folder, an unfinished run, or its base model cannot be had.
        """
        config = runs.read_config(folder)
        path = Path(folder) / runs.ADAPTER
        if not path.exists():
            raise UserError(f"{folder}: the run is not finished; go on with it by --resume")
        train = TrainConfig.parse(config["train"])
        model = load_model(config["model"], config["pretrained"], device)
        prompts = make_prompts(config["classes"], train.templates, train.prompts)
        adapter = load_adapter(model.net, path)
        adapter.strength = strength
        return cls(model, adapter, TextClassifier(model, config["classes"], prompts))

    def side_by_side(self) -> SideBySide:
        """Return what answers for batches, at the adapter's present strength."""
        return SideBySide(self.model, self.adapter, self.text)

    def predict(
        self, images: Sequence[Image.Image | str | Path]
    ) -> list[dict[str, dict[str, float]]]:
        """Classify images.

        Args:
            images: PIL images or paths.

        Returns:
            For each image ``{"zero_shot": {class: p}, "tuned": {class: p}}``, the most probable
            class first.

        Raises:
            UserError: an image cannot be read, named.
        """
        both, square = self.side_by_side(), self.model.square()
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
