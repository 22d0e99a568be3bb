"""What is exported: a run's model, adapter and classes, and the answers to compare with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clip_randlora.adapters import Adapter, LinearProbe, add_adapters, check_strength, load_adapter
from clip_randlora.clip.models import Model, load_model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.errors import UserError
from clip_randlora.runs import run_config, run_folder
from clip_randlora.training.config import TrainConfig

_IMAGES = 3
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


class Features(NamedTuple):
    """Inputs and the unit features (N, E) that this package gives for them.

    ``pixels`` float32 (N, 3, S, S), normalised; ``tokens`` int64 (P, L), untrimmed; ``classes``
    (C, E), the class embeddings.
    """

    pixels: Tensor
    images: Tensor
    tokens: Tensor
    texts: Tensor
    classes: Tensor

    def probabilities(self, scale: float) -> Tensor:
        """Return the classifier's answers for the images, (N, C)."""
        return (scale * self.images @ self.classes.T).softmax(dim=-1)


@dataclass(frozen=True)
class Description:
    """A run's files, read: settings and metrics, as `config.yaml` and `metrics.json` hold them."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def train(self) -> TrainConfig:
        """The training's settings."""
        try:
            return TrainConfig.parse(self.settings["train"])
        except UserError as error:
            raise UserError(f"{self.folder}: damaged settings in config.yaml: {error}") from error

    def prompts(self) -> dict[str, list[str]]:
        """Return ``{class: its prompts}``."""
        return run_config.read_prompts(self.folder, self.settings)


@dataclass
class Source:
    """A finished run, or several added up, loaded on the CPU.

    Attributes:
        trained: the runs; the first one's base model and settings lead.
        weights: a factor for each; strength comes on top.
        prompts: ``{class: prompts}`` of all runs.
    """

    trained: list[Description]
    weights: tuple[float, ...]
    strength: float
    model: Model
    adapter: Adapter
    prompts: dict[str, list[str]]

    @staticmethod
    def describe(run: str | Path) -> Description:
        """Read a finished run's files.

        Raises:
            UserError: not a run folder, or the run is not finished.
        """
        settings = run_config.read_config(run)
        if not (Path(run) / run_folder.ADAPTER).is_file():
            raise UserError(f"{run}: the run is not finished; go on with it by --resume")
        return Description(Path(run), settings, run_folder.read_metrics(run))

    @classmethod
    def load(
        cls,
        run: str | Path,
        strength: float = 1.0,
        add: Sequence[str | Path] = (),
        weights: Sequence[float] | None = None,
    ) -> Source:
        """Load runs; see `export_run` for the arguments.

        Raises:
            UserError: a run is incomplete, its base cannot be had, or the runs do not fit together.
        """
        strength = check_strength(strength)
        described = [cls.describe(folder) for folder in (run, *add)]
        weights = tuple(weights) if weights is not None else (1 / len(described),) * len(described)
        for one in described:
            if isinstance(one.train.method, LinearProbe):
                raise UserError(
                    f"{one.folder}: a linear probe leaves both encoders as they are, so there is "
                    f"nothing to export; clip_randlora.Classifier.load takes the folder"
                )
        settings = described[0].settings
        model = load_model(settings["model"], settings["pretrained"], "cpu")
        prompts: dict[str, list[str]] = {}
        for one in described:
            prompts |= {name: own for name, own in one.prompts().items() if name not in prompts}
        paths = [one.folder / run_folder.ADAPTER for one in described]
        if len(paths) > 1:
            adapter = add_adapters(model.net, paths, weights)
        else:
            adapter = load_adapter(model.net, paths[0])
        adapter.strength = strength
        return cls(described, weights, strength, model, adapter, prompts)

    @property
    def description(self) -> Description:
        """The first run."""
        return self.trained[0]

    @property
    def classes(self) -> list[str]:
        """Class names, the first run's first."""
        return list(self.prompts)

    @property
    def scale(self) -> float:
        """The factor between cosine similarity and logits."""
        return float(self.model.logit_scale().detach())

    def task(self) -> dict[str, Any]:
        """Return what `Classifier.load` needs beside the adapter, with whole prompts."""
        return {
            "model": self.model.name,
            "pretrained": self.model.pretrained,
            "classes": self.classes,
            "templates": ["{}"],
            "prompts": self.prompts,
        }

    def write_prompts(self, folder: Path) -> None:
        """Write ``prompts.json``, ``{class: [prompt, ...]}``, for formats whose files lack them."""
        text = json.dumps(self.prompts, indent=2, ensure_ascii=False) + "\n"
        (folder / "prompts.json").write_text(text, encoding="utf-8")

    def base_weights(self) -> dict[str, Tensor]:
        """Return the unadapted weights by their names in open_clip, while an adapter is on."""
        return {
            _PARAMETRIZED.sub(r"\1", key): tensor
            for key, tensor in self.model.net.state_dict().items()
            if "parametrizations." not in key or key.endswith(".original")
        }

    def features(self) -> Features:
        """Compute this package's answers at the strength, for random images and the prompts."""
        generator = torch.Generator().manual_seed(0)
        size = self.model.image_size
        images = torch.rand(_IMAGES, 3, size, size, generator=generator)
        pixels = self.model.normalize(images)
        flat = [prompt for of_class in self.prompts.values() for prompt in of_class]
        tokens = self.model.tokenizer(flat[:_IMAGES])
        text = TextClassifier(self.model, self.classes, list(self.prompts.values()))
        with torch.inference_mode(), self.adapter.cached_weights():
            return Features(
                pixels=pixels,
                images=self.model.net.encode_image(pixels, normalize=True),
                tokens=tokens,
                texts=self.model.net.encode_text(tokens, normalize=True),
                classes=text.features(),
            )

    def rescaled_adapter(self) -> Adapter:
        """Return an adapter that is at full strength what this one is at its strength."""
        if self.strength == 1:
            return self.adapter
        self.adapter.detach()
        paths = [one.folder / run_folder.ADAPTER for one in self.trained]
        return add_adapters(self.model.net, paths, [w * self.strength for w in self.weights])


def resampling(preprocess_cfg: dict[str, Any]) -> Image.Resampling:
    """Return the Pillow filter with which open_clip resizes images to classify."""
    name = preprocess_cfg.get("interpolation", "bicubic")
    # open_clip's evaluation takes bicubic for "random"
    return Image.Resampling["BICUBIC" if name == "random" else name.upper()]


def require_equal(what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise a UserError if what was loaded back differs by more than the tolerance."""
    difference = float((got - expected).abs().max()) if got.shape == expected.shape else torch.inf
    if not difference <= tolerance:  # so that nan fails too
        raise UserError(
            f"nothing written: {what} of the export differ by {difference:.2g} from this package's "
            f"(allowed: {tolerance:g}); the format cannot express this model, choose another"
        )
