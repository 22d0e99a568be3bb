"""The settings of a training, and their defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clip_randlora.adapters import RandLoRA
from clip_randlora.adapters.config import one_line
from clip_randlora.adapters.methods import Method
from clip_randlora.clip.models import Model
from clip_randlora.clip.templates import check_templates
from clip_randlora.data.sampling import Shots, parse_shots
from clip_randlora.errors import UserError

# RandLoRA, VeRA and NoLA: the scripts of RandLoRA's authors for CLIP, and KRAdapter, of the same
# authors, like RandLoRA; full fine-tuning: their paper (arXiv 2502.00987); LoRA: CLIP-LoRA (arXiv
# 2405.18541), and DoRA like LoRA; norm tuning: RandLoRA's, as its sources name none for CLIP
_LEARNING_RATES = {
    "randlora": 1e-3,
    "lora": 2e-4,
    "clip_lora": 2e-4,
    "vera": 1e-2,
    "nola": 1e-3,
    "dora": 2e-4,
    "kradapter": 1e-3,
    "norm_tuning": 1e-3,
    "full": 1e-5,
}
# lite0's batch-normalised convolutions bear far higher rates. Found by
# scripts/search_learning_rates.py, with a search of equal size for each method (docs/results.md).
# LoRA's is the second best: the best was found with 8 images a class and fails with 16.
# DoRA, KRAdapter and norm tuning are not searched yet; DoRA has the rate of LoRA.
_LITE0_LEARNING_RATES = {
    "randlora": 2.5e-2,
    "lora": 3e-3,
    "clip_lora": 3e-2,
    "vera": 1e-1,
    "nola": 1.8e-4,
    "dora": 3e-3,
    "kradapter": 5e-3,
    "norm_tuning": 5e-3,
    "full": 3e-4,
}
_USUAL_LEARNING_RATE = 1e-3  # of a method that neither table has
_LITE0_BETA2 = {"nola": 0.98}  # no lasting gain for the other methods (docs/results.md)

_NUMBERS = (
    "seed", "steps", "epochs", "min_steps", "batch_size", "learning_rate", "weight_decay",
    "beta2", "warmup", "label_smoothing", "clip_norm", "crop_size", "strength", "views",
    "max_steps", "accumulate", "logit_scale",
)  # fmt: skip


class TrainConfig(BaseModel):
    """The settings of a training.

    Attributes:
        method: the configuration of one of the `METHODS`, its name, or a mapping with ``method``
            and its settings. A head and zero-shot ignore the settings about steps.
        shots: training images per class: a number, a share of the class's images such as ``50%``,
            or None or ``all`` for all. Of a share, every class has at least one.
        seed: of the draw of shots, the order of the images, the augmentation, and the method's
            random bases and initialisation unless ``method`` has its own seed.
        steps: optimiser steps; None: `default_steps` of ``epochs`` and ``min_steps``.
        epochs: passes over the training images, if ``steps`` is None.
        min_steps: lower bound on the steps, if ``steps`` is None.
        max_steps: upper bound on the steps of ``epochs``, if ``steps`` is None; None for no bound.
        batch_size: images per step; all images if there are fewer.
        accumulate: the images of a step are encoded in so many parts, one after the other, and
            their gradients are added. That takes the memory of one part. None: by the free memory,
            see `clip_randlora.training.memory_plan`; one if a step fits.
        checkpoint_blocks: keep only the input of each residual block for the backward pass, which
            computes the block again. The result is the same bit for bit; a step takes a third or
            less of the activations' memory and about a third more time. None: only if a step does
            not fit into the free memory otherwise.
        learning_rate: peak learning rate; None: `default_learning_rate`.
        weight_decay: AdamW's weight decay.
        beta2: AdamW's decay rate of the squared gradients' running mean; None: `default_beta2`.
        warmup: share of the steps in which the learning rate rises.
        label_smoothing: of the cross entropy, 0 to 1.
        logit_scale: factor of the cosine similarities in the loss; None: the model's.
        clip_norm: upper bound on the gradient's norm.
        strength: the trained update is multiplied by it at the end, 0 to 1: what is between
            zero-shot and the training's result is the run's full strength then (WiSE-FT,
            arXiv 2109.01903).
        precision: ``bf16`` and ``fp16`` are mixed precision; ``auto`` chooses bf16 on hardware
            that is fast in it.
        templates: prompt templates with one ``{}`` each; None: the data set's, if it has any,
            else "a photo of a {}."
        prompts: ``{class: [name or whole prompt, ...]}``, instead of the class's name in the data
            set.
        crop_scale: range of the share of an image's area that a random crop keeps.
        crop_size: side of the crops, in pixels; None: `default_crop_size`.
        flip: mirror half of the images. Not by default: a mirrored digit or hand sign is another
            picture (docs/results.md).
        views: augmented views of each image that training cycles through, epoch by epoch; frozen
            blocks encode each view once. Fewer if their activations take more than 2 GiB. None: 3
            if blocks of the vision tower are frozen, otherwise new crops at every step.
        stream: decode the training images when the steps need them, while the device computes,
            instead of keeping all in memory. The result is the same, unless an image cannot be
            decoded: then another of its class takes its place. None: `few_shot` decides by the
            free memory.
        prompts_per_step: if there are more prompts, a step takes one prompt of each class in the
            batch and of random other classes, up to this many. ``batch``: a step takes one prompt
            for each of its images, of the image's class, and no other. The loss is then over the
            classes of the images that are encoded together: with ``accumulate`` or several
            processes, those of a part.
        calibrate: fit the temperature of the answers after the training, see
            `clip_randlora.runs.calibration`. The answers keep their order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method = RandLoRA()
    shots: Shots = 16
    seed: int = Field(default=1, ge=0, lt=2**31)
    steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=16, gt=0)
    min_steps: int = Field(default=60, ge=1)
    max_steps: int | None = Field(default=2000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int | None = Field(default=None, ge=1)
    checkpoint_blocks: bool | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    logit_scale: float | None = Field(default=None, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)
    strength: float = Field(default=1.0, ge=0, le=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    templates: tuple[str, ...] | None = None
    prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_size: int | None = Field(default=None, ge=32, le=1024)
    flip: bool = False
    views: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    prompts_per_step: int | Literal["batch"] = 256
    calibrate: bool = True

    @field_validator("shots", mode="before")
    @classmethod
    def _parse_shots(cls, value: Any) -> Shots:
        return parse_shots(value)

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _refuse_yes_and_no(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML's yes and no, which would count as 1 and 0
            raise ValueError("give a number")
        return value

    @field_validator("prompts_per_step", mode="before")
    @classmethod
    def _check_prompts_per_step(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value != "batch" and not (is_number and value >= 2):
            raise ValueError("give a number of prompts from 2, or batch")
        return value

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value if value is None else check_templates(value)

    @field_validator("crop_scale")
    @classmethod
    def _check_crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("two numbers 0 < smallest <= largest <= 1")
        return value

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Read settings, from a YAML file, say.

        Raises:
            UserError: one is unknown or wrong; the line names it.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise UserError(one_line(error, cls.model_fields)) from error


def default_steps(
    images: int,
    batch_size: int,
    epochs: float = 16,
    min_steps: int = 60,
    max_steps: int | None = 2000,
) -> int:
    """Return the number of steps: those of the epochs, within the two bounds.

    ``min_steps`` decides with very few images, when an epoch is one batch or less.
    """
    steps = math.ceil(epochs * math.ceil(images / batch_size))
    return max(min(steps, max_steps or steps), min_steps)


def default_crop_size(model: Model) -> int:
    """Return the side of the training crops: 5/6 of the model's side if it takes any size.

    Random crops show objects larger than test images do. Smaller crops compensate for that, and
    cost less (Touvron et al., arXiv 1906.06423). The side is a multiple of 32.
    """
    return round(model.image_size * 5 / 6 / 32) * 32 if model.takes_any_size else model.image_size


def choose_crop_size(model: Model, asked: int | None) -> int:
    """Return the side of the training crops: ``asked``, or the default if it is None.

    Raises:
        UserError: the model takes images of one size only, and another was asked for.
    """
    if asked is None:
        return default_crop_size(model)
    if asked != model.image_size and not model.takes_any_size:
        raise UserError(
            f"crop_size: {asked}, but {model.name} takes images of {model.image_size} pixels only; "
            f"leave it out"
        )
    return asked


def default_learning_rate(
    model_name: str, method: str, images_per_class: float, error: float = 1.0
) -> float:
    """Return the default peak learning rate of a method on a model.

    It is the rate for 16 images per class and classes that the model does not know, times two
    factors. Below 16 images it falls with the square root of their number, as the gradients of the
    steps are more alike then. And it falls with the share of the training images that zero-shot
    answers wrongly: what the model knows needs little change, and can be lost. With one image of a
    class, it falls with that share's square (docs/results.md).

    Args:
        model_name: as `load_model` takes it.
        method: the method's name.
        images_per_class: training images per class.
        error: the share from `zero_shot_error`, 0 to 1; counts as 0.1 at least.
    """
    rates = _LITE0_LEARNING_RATES if model_name == "lite0" else _LEARNING_RATES
    few = math.sqrt(min(1.0, images_per_class / 16))
    unknown = max(error, 0.1) ** (2 if images_per_class < 2 else 1)
    return rates.get(method, _USUAL_LEARNING_RATE) * few * unknown


def default_beta2(model_name: str, method: str) -> float:
    """Return AdamW's default beta2 for a method on a model.

    0.999 is PyTorch's default, and the value in all papers whose learning rates are used here.
    """
    return _LITE0_BETA2.get(method, 0.999) if model_name == "lite0" else 0.999


def choose_precision(precision: str, device: torch.device) -> str:
    """Return ``precision``, or for ``auto`` what the hardware is fast in: fp32, bf16 or fp16.

    Raises:
        UserError: fp16 was asked for on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16: not for CPUs; use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        get_capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])  # torch 2.10
        has = get_capabilities()
        return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else "fp32"
    return "fp32"
