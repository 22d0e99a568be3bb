"""open_clip models, with timm or other towers inside, and the bundled ``lite0``."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import ToTensor
from torchvision.transforms.functional import pil_to_tensor

from clip_randlora.errors import UserError, is_out_of_memory
from clip_randlora.utils.quiet import quiet

BUNDLED = {"lite0": Path(__file__).parent.parent / "bundled" / "lite0"}

DEFAULT_TAG = "default"
"""Stands for the tag that `default_pretrained` names, so that None can mean random weights."""

ROUNDING = 1e-3
"""How far beyond 0 and 1 the floats of an image may lie, as resizing and rounding leave them."""

RANDOM = re.compile(r"random:(\d+)")
"""Random weights and the seed that makes them again, as `load_model` records them."""

# Random weights are drawn from the process's one generator, for whose state to be put back two
# threads must not draw them at once.
_drawing = threading.Lock()

_TALKATIVE = ("huggingface_hub",)  # random weights are stated, failures are raised


@dataclass(frozen=True)
class Suggestion:
    """A model that is often chosen: its name, its default weights, how many numbers it has."""

    name: str
    pretrained: str
    parameters: int

    @property
    def is_downloaded(self) -> bool:
        """Whether the weights are on this machine already."""
        if self.name in BUNDLED:
            return True
        hub = open_clip.get_pretrained_cfg(self.name, self.pretrained).get("hf_hub", "")
        names = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
        return any(isinstance(try_to_load_from_cache(hub.rstrip("/"), name), str) for name in names)


SUGGESTIONS = (
    Suggestion("lite0", DEFAULT_TAG, 26_775_425),
    Suggestion("ViT-B-32", "openai", 151_277_313),
    Suggestion("ViT-B-16", "openai", 149_620_737),
    Suggestion("ViT-L-14", "openai", 427_616_513),
    Suggestion("RN50", "openai", 102_007_137),
    Suggestion("convnext_base", "laion400m_s13b_b51k", 151_518_849),
    Suggestion("ViT-B-16-SigLIP", "webli", 203_155_970),
    Suggestion("MobileCLIP-S1", "datacompdr", 84_969_729),
)
_DEFAULT_PRETRAINED = {model.name: model.pretrained for model in SUGGESTIONS}


@dataclass
class Model:
    """A CLIP model ready for use, in evaluation mode.

    Attributes:
        net: the open_clip module.
        name: as given to `load_model`, and ``pretrained``: the tag or file, ``default`` for a
            model that comes with its weights, or ``random:SEED``; both load the same model again.
        device: where ``net`` is.
    """

    net: nn.Module
    name: str
    pretrained: str
    device: torch.device

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """List of N prompts -> int64 (N, context length); some models fetch theirs from the hub."""
        try:
            with quiet(*_TALKATIVE):
                return open_clip.get_tokenizer(_open_clip_name(self.name))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(_not_available(f"the tokenizer of {self.name}", error)) from error

    @property
    def architecture(self) -> dict[str, Any]:
        """open_clip's configuration of the network, as its model folders state it."""
        return open_clip.get_model_config(_open_clip_name(self.name))

    @cached_property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> float32 (3, S, S), normalised: open_clip's own evaluation transform."""
        return image_transform_v2(self._preprocess_cfg, is_train=False)

    @property
    def image_size(self) -> int:
        """Side S of the input images, pixels."""
        size = self._preprocess_cfg.size
        return size if isinstance(size, int) else size[0]

    @property
    def _preprocess_cfg(self) -> PreprocessCfg:
        return PreprocessCfg(**self.net.visual.preprocess_cfg)

    def square(self, size: int | None = None) -> Callable[[Image.Image], Tensor]:
        """Return what turns a PIL image into uint8 (3, size, size), as ``preprocess`` would.

        With the default size, `normalize` of the result over 255 equals ``preprocess`` exactly:
        images can be kept as bytes.
        """
        size = size or self.image_size
        transform = image_transform_v2(
            PreprocessCfg(**{**self.net.visual.preprocess_cfg, "size": size}), is_train=False
        )
        steps = transform.transforms
        on_pil = steps[: [isinstance(step, ToTensor) for step in steps].index(True)]

        def to_square(image: Image.Image) -> Tensor:
            for step in on_pil:
                image = step(image)
            return pil_to_tensor(image)

        return to_square

    @property
    def takes_any_size(self) -> bool:
        """Whether images of another size than ``image_size`` can be encoded: no positions in it."""
        names = (name for name, _ in self.net.visual.named_parameters())
        return not any("pos_embed" in name or "positional" in name for name in names)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise float images (N, 3, S, S) in [0, 1] with the model's mean and deviation."""
        mean, std = (numbers.to(images) for numbers in self._mean_and_std)
        return (images - mean).div_(std)

    @cached_property
    @torch.inference_mode(False)
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        """(3, 1, 1) each, made once: torchvision's transform copies them to a GPU at each call."""
        mean, std = self._preprocess_cfg.mean, self._preprocess_cfg.std
        return tuple(torch.tensor(of, device=self.device).view(-1, 1, 1) for of in (mean, std))

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 or float [0, 1] images (N, 3, S, S) -> unit features (N, E), on the device.

        Raises:
            UserError: floats outside [0, 1], such as those that ``preprocess`` returns: they would
                be normalised a second time.
        """
        _check_not_normalised(images)
        return self.encode_checked(images)

    def encode_checked(self, images: Tensor) -> Tensor:
        """Encode images as `encode_image` does; they are not looked at, as a GPU would wait."""
        images = images.to(self.device)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = self.normalize(images).to(next(self.net.visual.parameters()).dtype)
        # convolutions on CPUs are faster in this layout; transformers do not mind
        images = images.contiguous(memory_format=torch.channels_last)
        return self.net.encode_image(images, normalize=True)

    def logit_scale(self) -> Tensor:
        """The factor between cosine similarity and logits, a scalar."""
        return self.net.logit_scale.exp()


def _check_not_normalised(images: Tensor) -> None:
    if images.dtype == torch.uint8 or not images.numel():
        return
    low, high = map(float, images.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise UserError(
            f"images: floats from {low:.3g} to {high:.3g}; give floats from 0 to 1, or uint8, and "
            f"do not normalise them: that is done here"
        )


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the best there is: cuda, mps, cpu.

    Raises:
        UserError: the device asked for is not on this machine.
    """
    if device is None:
        if torch.cuda.is_available():
            process = os.environ.get("LOCAL_RANK")  # set by `accelerate launch`
            return torch.device(f"cuda:{process}" if process else "cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: {reason}; use cpu, or leave it out") from error
    return found


def default_pretrained(name: str) -> str | None:
    """Return the weights that an open_clip name gets when none are asked for.

    The original weights for OpenAI's architectures, otherwise the last that open_clip lists.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    return _DEFAULT_PRETRAINED.get(name, tags[-1] if tags else None)


def load_model(
    name: str = "lite0",
    pretrained: str | Path | None = DEFAULT_TAG,
    device: str | torch.device | None = None,
) -> Model:
    """Load a model.

    Args:
        name: ``lite0`` (bundled, offline), an open_clip architecture, ``hf-hub:ORG/REPO``,
            ``local-dir:FOLDER`` or the path of a folder with an ``open_clip_config.json``.
        pretrained: a tag of open_clip's, a checkpoint file, None for random weights, or
            ``random:SEED`` for those of a seed (None draws it from torch's generator); by default
            the tag that `default_pretrained` states. Tags and files are for architectures: the
            other names come with their weights.
        device: where to put it; by default `find_device`'s choice.

    Raises:
        UserError: the name, tag or file is unknown, or cannot be had without a network; the line
            says what was wanted.
    """
    device = find_device(device)
    if name not in BUNDLED and Path(name).is_dir():
        name = f"local-dir:{Path(name).resolve()}"
    if pretrained is None:
        pretrained = f"random:{int(torch.randint(2**31, ()))}"
    seed = RANDOM.fullmatch(str(pretrained))
    if _brings_own_weights(name):
        if not seed and pretrained != DEFAULT_TAG:
            raise UserError(f"--pretrained {pretrained}: {name} comes with its own weights")
        arguments = {"load_weights": not seed}
        wanted = f"the weights of {name}"
    else:
        arguments = _architecture_arguments(name, None if seed else pretrained)
        pretrained = pretrained if seed else arguments["pretrained"]
        wanted = f"weights {pretrained} of {name}"
    with _drawing if seed else nullcontext(), torch.random.fork_rng([], enabled=bool(seed)):
        if seed:
            torch.default_generator.manual_seed(int(seed[1]))
        net = _create(_open_clip_name(name), arguments, wanted)
    described = "random" if seed else {DEFAULT_TAG: "its own"}.get(pretrained, pretrained)
    net.model_name = f"{name}, {described} weights"
    return Model(net.to(device).eval(), name, pretrained, device)


def _brings_own_weights(name: str) -> bool:
    return name in BUNDLED or name.startswith(("hf-hub:", "local-dir:"))


def _open_clip_name(name: str) -> str:
    return f"local-dir:{BUNDLED[name]}" if name in BUNDLED else name


def _architecture_arguments(name: str, pretrained: str | Path | None) -> dict[str, Any]:
    """Turn an architecture and its weights into open_clip's arguments, or name what is wrong."""
    if name not in open_clip.list_models():
        raise UserError(
            f"model {name}: not a name that open_clip knows, nor a folder; "
            f"`clip-randlora models` lists them"
        )
    if pretrained is None:
        return {"pretrained": None}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained == DEFAULT_TAG:
        pretrained = default_pretrained(name)
        if pretrained is None:
            raise UserError(
                f"model {name}: open_clip has no weights for it; give a checkpoint file with "
                f"--pretrained, or `--pretrained none` for random weights"
            )
    if pretrained not in tags and Path(pretrained).is_file():
        pretrained = Path(pretrained).resolve()
    elif pretrained not in tags:
        raise UserError(
            f"pretrained {pretrained}: neither a file nor a tag of {name}, which has "
            f"{', '.join(tags) or 'none'}"
        )
    tag = open_clip.get_pretrained_cfg(name, str(pretrained)) or {}
    # OpenAI's weights were trained with QuickGELU, which the plain architecture names do not say
    return {"pretrained": str(pretrained), "force_quick_gelu": bool(tag.get("quick_gelu"))}


def _create(open_clip_name: str, arguments: dict[str, Any], wanted: str) -> nn.Module:
    try:
        with quiet(*_TALKATIVE):
            return open_clip.create_model(open_clip_name, weights_only=True, **arguments)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(_not_available(wanted, error)) from error


def _not_available(wanted: str, error: Exception) -> str:
    sentences = " ".join(str(error).split()).split(". ")
    reason = sentences[0].rstrip(".") or type(error).__name__
    return (
        f"could not load {wanted} ({reason}); without a network, give a local file with "
        f"--pretrained or use lite0, which is bundled"
    )
