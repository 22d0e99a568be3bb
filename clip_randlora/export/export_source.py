"""What is exported: a run's model, adapter and classes, and the features to compare with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clip_randlora.adapters import Adapter, add_adapters, check_strength, load_adapter
from clip_randlora.adapters.heads import LinearHead
from clip_randlora.clip.models import load_model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence import Confidence
from clip_randlora.errors import UserError
from clip_randlora.runs import run_config, run_folder
from clip_randlora.runs.confidence_file import read_confidence, read_known
from clip_randlora.runs.run_source import local_run
from clip_randlora.utils.hub import HubName, is_hub_name
from clip_randlora.utils.outputs import write_json
from clip_randlora.utils.progress import OnProgress, one_stage

_IMAGES = 3
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


class Features(NamedTuple):
    """Inputs, and the unit features that this package computes from them.

    Attributes:
        pixels: float32 (N, 3, S, S), normalised.
        images: (N, E), the features of the pixels.
        tokens: int64 (P, L), padded to the context length.
        texts: (P, E), the features of the tokens.
        classes: (C, E), the class embeddings: unit vectors but for a head, whose own they are.
        bias: (C,), added to the logits; None but for a head that has one.
    """

    pixels: Tensor
    images: Tensor
    tokens: Tensor
    texts: Tensor
    classes: Tensor
    bias: Tensor | None = None

    def probabilities(self, scale: float) -> Tensor:
        """Return the probability of each class for each image, (N, C)."""
        logits = scale * self.images @ self.classes.T
        return (logits if self.bias is None else logits + self.bias).softmax(dim=-1)

    def require_equal(self, images: Tensor, texts: Tensor, tolerance: float) -> None:
        """Raise a UserError if the features of an export differ by more than the tolerance."""
        require_equal("image features", images, self.images, tolerance)
        require_equal("text features", texts, self.texts, tolerance)


@dataclass(frozen=True)
class RunInfo:
    """The folder of a finished run, its settings (`config.yaml`) and metrics (`metrics.json`)."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    repository: str | None = None

    @classmethod
    def read(cls, run: str | Path) -> RunInfo:
        """Read a run folder, or ``hf-hub:ORG/NAME[@REVISION]``.

        Raises:
            UserError: it is not a run folder, or the run is not finished.
        """
        folder = local_run(run)
        settings = run_config.read_config(folder)
        if not (folder / run_folder.ADAPTER).is_file():
            raise UserError(f"{run}: the run is not finished; go on with it by --resume")
        name = HubName.parse(run).repository if is_hub_name(run) else None
        return cls(folder, settings, run_folder.read_metrics(folder), name)

    @property
    def name(self) -> str:
        """The name of the folder, or of the repository of the hub."""
        return self.repository or self.folder.resolve().name

    @property
    def base_name(self) -> str:
        """The base model's name; of a local folder, its last part."""
        name = self.settings["model"]
        return Path(name).name if name.startswith("local-dir:") else name


class ExportSource:
    """A finished run, or several with their updates added, loaded on the CPU.

    See `export_run` for the arguments.

    Attributes:
        runs: the runs; the base model is the first one's.
        weights: the factor of each run's update, without the strength.
        strength, precision: as given.
        model, adapter: the base model, with the adapter attached at the strength.
        prompts: ``{class: prompts}`` of all runs.
        confidence, known: of the run, see `Classifier`; of several runs nothing is known.
        expected: the features that the export has to reproduce.
        on_progress: told what the export does.

    Raises:
        UserError: a run is not finished, its base model is not available, or the runs do not fit
            together.
    """

    def __init__(
        self,
        run: str | Path,
        strength: float = 1.0,
        precision: str = "fp32",
        add: Sequence[str | Path] = (),
        weights: Sequence[float] | None = None,
        on_progress: OnProgress | None = None,
    ):
        self.strength, self.precision = check_strength(strength), precision
        self.on_progress = on_progress
        self.runs = [RunInfo.read(folder) for folder in (run, *add)]
        average = [1 / len(self.runs)] * len(self.runs)
        self.weights = average if weights is None else list(weights)
        self.prompts: dict[str, list[str]] = {}
        for info in self.runs:
            for name, texts in run_config.read_prompts(info.folder, info.settings).items():
                self.prompts.setdefault(name, texts)
        settings = self.runs[0].settings
        with self.step("loading the model"):
            self.model = load_model(settings["model"], settings["pretrained"], "cpu")
            if add:
                self.adapter = add_adapters(self.model.net, self._adapter_files, self.weights)
            else:
                self.adapter = load_adapter(self.model.net, self._adapter_files[0])
        self.adapter.strength = self.strength
        # of a sum of runs nothing was fitted
        self.confidence = Confidence() if add else read_confidence(self.runs[0].folder)
        self.known = None if add else read_known(self.runs[0].folder)
        with self.step("computing what the export has to give"):
            self.expected = self._features()

    def step(self, what: str) -> AbstractContextManager[None]:
        """Report the block as a stage of the export; such stages are not nested."""
        return one_stage(what, self.on_progress)

    @property
    def _adapter_files(self) -> list[Path]:
        return [run.folder / run_folder.ADAPTER for run in self.runs]

    @torch.no_grad()
    def _features(self) -> Features:
        """Compute the features of random images, of the first prompts and of the classes."""
        model, prompts = self.model, list(self.prompts.values())
        size, generator = model.image_size, torch.Generator().manual_seed(0)
        pixels = model.normalize(torch.rand(_IMAGES, 3, size, size, generator=generator))
        flat = [prompt for of_class in prompts for prompt in of_class]
        tokens = model.tokenizer(flat[:_IMAGES])
        with self.adapter.cached_weights():
            images, texts = encode(model.net, pixels, tokens)
            classes = TextClassifier(model, self.classes, prompts).features()
        head, bias = self.adapter.head, None
        if isinstance(head, LinearHead):
            scale = float(model.logit_scale().detach())
            classes = torch.lerp(classes, head.weight / scale, self.strength)
            bias = None if head.bias is None else self.strength * head.bias / self.temperature
        return Features(pixels, images, tokens, texts, classes, bias)

    @property
    def classes(self) -> list[str]:
        """The class names."""
        return list(self.prompts)

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's settings of the preprocessing."""
        visual: Any = self.model.net.visual
        return visual.preprocess_cfg

    @property
    def resampling(self) -> Image.Resampling:
        """The Pillow filter with which open_clip resizes test images."""
        name = self.preprocess_cfg.get("interpolation", "bicubic")
        # open_clip's evaluation uses bicubic for "random"
        return Image.Resampling["BICUBIC" if name == "random" else name.upper()]

    @property
    def temperature(self) -> float:
        """The temperature of the answers at the strength."""
        return self.confidence.temperature_at(self.strength)

    def unknown(self) -> dict[str, float] | None:
        """Return from where on an export's answer is none of the classes, if that is known.

        ``margin`` is by how much the largest of the logarithms of the probabilities must exceed
        their mean: an export has not the zero-shot features that this package asks beside it.
        """
        threshold = self.confidence.unknown
        if threshold is None:
            return None
        margin = threshold.margin_at(self.strength) / self.temperature
        return {"margin": margin, "kept": threshold.kept}

    @property
    def logit_scale(self) -> float:
        """The factor between cosine similarities and logits, of which the temperature is a part."""
        return float(self.model.logit_scale().detach()) / self.temperature

    def merged_weights(self) -> dict[str, Tensor]:
        """Return the weights after a merge, with the temperature in the logit scale."""
        state = dict(self.model.net.state_dict())
        if self.temperature != 1:
            state["logit_scale"] = state["logit_scale"] - math.log(self.temperature)
        return state

    def base_weights(self) -> dict[str, Tensor]:
        """Return the base model's weights by their open_clip names, while the adapter is on."""
        return {
            _PARAMETRIZED.sub(r"\1", key): tensor
            for key, tensor in self.model.net.state_dict().items()
            if "parametrizations." not in key or key.endswith(".original")
        }

    def adapter_at_strength(self) -> Adapter:
        """Return an adapter whose full update is this one's update at its strength."""
        if self.strength == 1:
            return self.adapter
        self.adapter.detach()
        factors = [weight * self.strength for weight in self.weights]
        return add_adapters(self.model.net, self._adapter_files, factors)

    def write_prompts(self, folder: Path) -> None:
        """Write ``prompts.json``, ``{class: [prompt, ...]}``."""
        write_json(folder / "prompts.json", self.prompts)


@torch.no_grad()
def encode(net: Any, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit features of images and texts, (N, E) and (P, E), by an open_clip model."""
    images = net.encode_image(pixels, normalize=True)
    return images, net.encode_text(tokens, normalize=True)


def require_equal(what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise a UserError if two tensors differ by more than the tolerance, in shape, or by NaN."""
    difference = float((got - expected).abs().max()) if got.shape == expected.shape else torch.inf
    if not difference <= tolerance:  # NaN fails too
        raise UserError(
            f"nothing written: {what} of the export differ by {difference:.2g} from this package's "
            f"(allowed: {tolerance:g}); the format cannot express this model, choose another"
        )


def require_scale(got: Tensor, expected: float) -> None:
    """Raise a UserError if the logarithm of an export's logit scale is not that of a number."""
    require_equal("logit scale", got.detach().exp() / expected, torch.ones_like(got), 1e-4)
