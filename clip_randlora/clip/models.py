"""open_clip models, with timm or other towers inside, and the bundled ``lite0``."""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import ToTensor
from torchvision.transforms.functional import pil_to_tensor

from clip_randlora.errors import UserError, is_out_of_memory
from clip_randlora.utils.hub import HUB, explain
from clip_randlora.utils.quiet import quiet

CLIPNet: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP

BUNDLED = {"lite0": Path(__file__).parent.parent / "bundled" / "lite0"}

DEFAULT_TAG = "default"
"""Stands for the tag that `default_pretrained` returns, as None means random weights."""

RANDOM = re.compile(r"random:(\d+)")
"""Random weights and their seed, as `load_model` records them."""

_FAST = ("bicubic", "bilinear")  # what torch resizes bytes by
_FLOAT_TOLERANCE = 1e-3  # resizing and rounding leave floats that little beyond 0 and 1
_TALKATIVE = ("huggingface_hub",)  # its warnings are not needed: failures are raised

# Random weights are drawn from the process's generator, whose state is put back afterwards: two
# threads must not draw at once.
_drawing = threading.Lock()


@dataclass(frozen=True)
class Suggestion:
    """A model that is often chosen: its name, default weights, and number of parameters."""

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


class Tokenizer(Protocol):
    """A tokenizer of open_clip's, with the number of tokens L that the model reads."""

    context_length: int

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Turn N prompts into tokens, int64 ``(N, L)``, cut and padded."""
        ...


@dataclass
class Model:
    """A CLIP model in evaluation mode, with its tokenizer and preprocessing.

    Attributes:
        net: the open_clip module.
        name: as given to `load_model`.
        pretrained: the tag or file, ``default`` for a model that comes with its weights, or
            ``random:SEED``. With ``name`` it loads the same model again.
        device: the device of ``net``.
    """

    net: CLIPNet
    name: str
    pretrained: str
    device: torch.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Turns a list of N prompts into tokens, int64 ``(N, L)``.

        Some models download their tokenizer at first use.

        Raises:
            UserError: it cannot be downloaded.
        """
        try:
            with quiet(*_TALKATIVE):
                settings = (self.architecture or {}).get("text_cfg", {}).get("tokenizer_kwargs")
                if (settings or {}).get("trust_remote_code"):
                    raise UserError(
                        f"{self.name}: its tokenizer is a program of its author's, which is not "
                        f"run; take another model"
                    )
                return open_clip.get_tokenizer(_open_clip_name(self.name))
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            wanted = f"the tokenizer of {self.name}"
            raise UserError(_not_available(wanted, self.name, error)) from error

    def share_weights(self) -> Model:
        """Return a model with a network of its own that has the same tensors.

        Each of the two may have an adapter, while the base weights are in memory once. Only for a
        model without an adapter.
        """
        tensors = {id(t): t for t in (*self.net.parameters(), *self.net.buffers())}
        shared = replace(self, net=copy.deepcopy(self.net, tensors))
        shared.tokenizer = self.tokenizer
        return shared

    @property
    def architecture(self) -> dict[str, Any]:
        """open_clip's configuration of the network, as in an ``open_clip_config.json``."""
        return open_clip.get_model_config(_open_clip_name(self.name))

    @cached_property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """Turns a PIL image into a normalised float32 ``(3, S, S)``: open_clip's own transform."""
        return image_transform_v2(self._preprocess_cfg, is_train=False)

    @property
    def image_size(self) -> int:
        """Side S of the input images, in pixels."""
        size = self._preprocess_cfg.size
        return size if isinstance(size, int) else size[0]

    @property
    def _preprocess_cfg(self) -> PreprocessCfg:
        return PreprocessCfg(**self.net.visual.preprocess_cfg)

    def square(self, size: int | None = None) -> Callable[[Image.Image], Tensor]:
        """Return the steps of ``preprocess`` before the conversion to floats.

        Args:
            size: side of the result in pixels, by default ``image_size``.

        Returns:
            A function from a PIL image to uint8 ``(3, size, size)``. At the default size,
            `normalize` of its result over 255 equals ``preprocess`` exactly, so images can be kept
            as bytes. At others a few values differ by 1 from what Pillow would give, as torch
            resizes in half of the time.
        """
        settings = PreprocessCfg(
            **{**self.net.visual.preprocess_cfg, "size": size or self.image_size}
        )
        mode, way = settings.resize_mode, settings.interpolation
        if size not in (None, self.image_size) and way in _FAST and mode in ("shortest", "squash"):
            return partial(_resize_by_torch, size=size, keeps_shape=mode == "shortest", way=way)
        steps = image_transform_v2(settings, is_train=False).transforms
        on_pil = steps[: [isinstance(step, ToTensor) for step in steps].index(True)]

        def to_square(image: Image.Image) -> Tensor:
            for step in on_pil:
                image = step(image)
            return pil_to_tensor(image)

        return to_square

    @property
    def takes_any_size(self) -> bool:
        """Whether images of other sizes can be encoded: the image tower has no positions."""
        names = (name for name, _ in self.net.visual.named_parameters())
        return not any("pos_embed" in name or "positional" in name for name in names)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images with the model's mean and standard deviation.

        Args:
            images: float ``(N, 3, S, S)`` in [0, 1].

        Returns:
            A new tensor of the same shape, dtype and device.
        """
        mean, std = (numbers.to(images) for numbers in self._mean_and_std)
        return (images - mean).div_(std)

    @cached_property
    @torch.inference_mode(False)
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        """(3, 1, 1) each, made once: torchvision's transform copies them to a GPU at each call."""
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (self._preprocess_cfg.mean, self._preprocess_cfg.std)
        )
        return mean, std

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``(N, 3, S, S)``, uint8 or floats in [0, 1], on any device.

        Returns:
            Features ``(N, E)`` of length 1, in the dtype of the network and on its device.

        Raises:
            UserError: the floats are outside [0, 1], as ``preprocess`` returns them: they would be
                normalised a second time.
        """
        if images.dtype != torch.uint8 and images.numel():
            low, high = map(float, images.detach().aminmax())
            if problem := float_range_problem(low, high):
                raise UserError(f"images: {problem}")
        return self.encode_checked(images)

    def encode_checked(self, images: Tensor) -> Tensor:
        """Encode images as `encode_image` does, without a check, for which a GPU would wait."""
        images = images.to(self.device)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = self.normalize(images).to(next(self.net.visual.parameters()).dtype)
        # convolutions on CPUs are faster in this layout; transformers do not mind
        images = images.contiguous(memory_format=torch.channels_last)
        return self.net.encode_image(images, normalize=True)

    def logit_scale(self) -> Tensor:
        """Return the factor between cosine similarities and logits, a scalar."""
        return self.net.logit_scale.exp()


def _resize_by_torch(image: Image.Image, size: int, keeps_shape: bool, way: str) -> Tensor:
    """Return the middle square of an image, uint8 (3, size, size), or all of it in a square."""
    pixels = pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))[None]
    height, width = pixels.shape[-2:]
    short = min(height, width)
    # the long side is rounded down, and the middle to even, as torchvision does
    whole = [size * side // short if keeps_shape else size for side in (height, width)]
    resized = nn.functional.interpolate(pixels, whole, mode=way, antialias=True)[0]
    top, left = (round((side - size) / 2) for side in whole)
    return resized[:, top : top + size, left : left + size].contiguous()


def float_range_problem(low: float, high: float) -> str | None:
    """Return what is wrong with images of floats from ``low`` to ``high``; None if nothing is."""
    if low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE:  # False for NaN
        return None
    return (
        f"floats from {low:.3g} to {high:.3g}; give floats from 0 to 1, or uint8, and do not "
        f"normalise them: that is done here"
    )


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the best one of this machine: cuda, mps, cpu.

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
    """Return the tag of the weights that an architecture gets by default.

    OpenAI's weights for OpenAI's architectures, otherwise the last tag that open_clip lists; None
    if it lists none.
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
            ``random:SEED`` for random weights of a seed (None draws the seed from torch's
            generator); by default the tag of `default_pretrained`. Tags and files are for
            architectures: the other names come with their weights.
        device: where to put it; by default the choice of `find_device`.

    Raises:
        UserError: the name, tag or file is unknown, or cannot be downloaded.
    """
    device = find_device(device)
    if name not in BUNDLED and Path(name).is_dir():
        name = f"local-dir:{Path(name).resolve()}"
    if pretrained is None:
        pretrained = f"random:{int(torch.randint(2**31, ()))}"
    seed = RANDOM.fullmatch(str(pretrained))
    if name in BUNDLED or name.startswith((HUB, "local-dir:")):
        if not seed and pretrained != DEFAULT_TAG:
            raise UserError(f"--pretrained {pretrained}: {name} comes with its own weights")
        # required, as open_clip goes on with random weights if they cannot be downloaded
        arguments: dict[str, Any] = {"load_weights": not seed, "require_pretrained": not seed}
        wanted = f"the weights of {name}"
    else:
        arguments = _architecture_arguments(name, None if seed else pretrained)
        pretrained = pretrained if seed else arguments["pretrained"]
        wanted = f"weights {pretrained} of {name}"
    with _drawing if seed else nullcontext(), torch.random.fork_rng([], enabled=bool(seed)):
        if seed:
            torch.default_generator.manual_seed(int(seed[1]))
        net = _create(name, arguments, wanted)
    weights = "its own" if pretrained == DEFAULT_TAG else pretrained
    net.model_name = f"{name}, {'random' if seed else weights} weights"
    return Model(net.to(device).eval(), name, str(pretrained), device)


def _open_clip_name(name: str) -> str:
    return f"local-dir:{BUNDLED[name]}" if name in BUNDLED else name


def _architecture_arguments(name: str, pretrained: str | Path | None) -> dict[str, Any]:
    """Turn an architecture and its weights into open_clip's arguments, or say what is wrong."""
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


def _create(name: str, arguments: dict[str, Any], wanted: str) -> CLIPNet:
    try:
        with quiet(*_TALKATIVE):
            return open_clip.create_model(_open_clip_name(name), weights_only=True, **arguments)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(_not_available(wanted, name, error)) from error


def _not_available(wanted: str, name: str, error: Exception) -> str:
    if name.startswith(HUB) and (why := explain(error, name.removeprefix(HUB))):
        return f"could not load {wanted}: {why}"
    sentences = " ".join(str(error).split()).split(". ")
    reason = sentences[0].rstrip(".") or type(error).__name__
    return (
        f"could not load {wanted} ({reason}); without a network, give a local file with "
        f"--pretrained or use lite0, which is bundled"
    )
