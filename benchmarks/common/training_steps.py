"""One training step of this project and of its peers, on random images and weights.

A step is the forward pass of a batch of images and of one prompt for each class, the cross
entropy of their scaled cosine similarities, the backward pass and AdamW. The images are on the
device, and nothing is decoded or augmented, except in `measure_fit`.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clip_randlora as cr
from benchmarks.common.images import class_names, write_images
from clip_randlora.clip.models import find_device
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier, encode_tokens, trim
from clip_randlora.forward.batch_norm import find_conv_bn_pairs, folded_conv_bn
from clip_randlora.forward.training import training_forward
from clip_randlora.training.allocator import keep_freed_memory
from clip_randlora.training.cuda_graph import CUDAGraphStep
from clip_randlora.training.optimizer import make_adamw


@dataclass(frozen=True)
class StepRow:
    """A way to train.

    Attributes:
        label: its name in tables.
        owner: ``ours``, ``peer`` or ``bound``. On CPUs, rows of ours and bounds keep freed memory
            for the next step, as `fit` does; peers run as their users run them.
        build: makes a `Setup` of a `Workload` and the settings.
        settings: of ``build``.
    """

    label: str
    owner: str
    build: Callable[..., Setup]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Setup:
    """A model ready to be trained.

    Attributes:
        logits: the forward pass: scaled similarities (N, C).
        parameters: what AdamW trains; empty for the bound.
        text_tokens: length of the prompts that pass through the text tower.
        context: entered around all steps.
        forward_context: entered around the forward pass, beside autocast.
        autocasts: whether bf16 is autocast; the bounds' weights are bf16 themselves.
        after_step: called after each step.
    """

    logits: Callable[[], Tensor]
    parameters: list[Tensor]
    text_tokens: int
    context: Callable[[], AbstractContextManager] = nullcontext
    forward_context: Callable[[], AbstractContextManager] = nullcontext
    autocasts: bool = True
    after_step: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Workload:
    """What all rows are measured on: an open_clip model, a batch, a precision, a device."""

    model: str
    images: int
    classes: int
    precision: str
    device: str | None

    def load(self) -> cr.Model:
        """Load the model with random weights, the same each time."""
        torch.manual_seed(0)
        return cr.load_model(self.model, None, self.device)

    def pixels(self, model: cr.Model) -> Tensor:
        """Return random images, float32 (N, 3, S, S) in [0, 1], on the device."""
        side = model.image_size
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.images, 3, side, side, generator=generator).to(model.device)

    def text(self, model: cr.Model) -> TextClassifier:
        """Return the prompts "a photo of a {}." of the classes, trimmed where that is exact."""
        names = class_names(self.classes)
        return TextClassifier(model, names, make_prompts(names))

    def whole_tokens(self, model: cr.Model) -> Tensor:
        """Return the same prompts as int64 (C, context length)."""
        prompts = [prompt for (prompt,) in make_prompts(class_names(self.classes))]
        return model.tokenizer(prompts).to(model.device)


def adapted(workload: Workload, config: dict[str, Any]) -> Setup:
    """Set this project up as `clip_randlora.fit` does, with all blocks adapted."""
    model = workload.load()
    text = workload.text(model)
    model.net.eval()
    adapter = cr.attach(model.net, cr.TrainConfig.parse({"method": config}).method)
    images = workload.pixels(model)
    return Setup(
        logits=lambda: model.logit_scale() * model.encode_image(images) @ text.features().T,
        parameters=adapter.parameters(),
        text_tokens=text.tokens.shape[1],
        context=lambda: folded_conv_bn(find_conv_bn_pairs(model)),
        forward_context=lambda: training_forward(model.net, adapter),
    )


def full_fine_tuning(workload: Workload) -> Setup:
    """Set open_clip's model up to train every parameter, with trimmed prompts."""
    model = workload.load()
    text = workload.text(model)
    images = workload.pixels(model)
    return Setup(
        logits=lambda: _plain_logits(model, images, text),
        parameters=list(model.net.requires_grad_(True).parameters()),
        text_tokens=text.tokens.shape[1],
    )


def _plain_logits(model: cr.Model, images: Tensor, text: TextClassifier) -> Tensor:
    """Return (N, C) by open_clip's own forward pass, on trimmed prompts."""
    image = model.net.encode_image(model.normalize(images), normalize=True)
    return model.logit_scale() * image @ encode_tokens(model.net, text.tokens).T


def lower_bound(workload: Workload) -> Setup:
    """Set up a frozen model with gradients to its inputs, which bounds every update from below.

    Images and token embeddings require gradients, so that the backward pass reaches every layer.
    """
    model, text, embedded = _frozen(workload)
    images = workload.pixels(model).to(model.net.visual.conv1.weight.dtype).requires_grad_()

    def after_step() -> None:
        if images.grad is None or embedded[0].grad is None:
            raise RuntimeError("the backward pass did not reach the inputs")
        images.grad = None

    return Setup(
        logits=lambda: _plain_logits(model, images, text),
        parameters=[],
        text_tokens=text.tokens.shape[1],
        autocasts=False,
        after_step=after_step,
    )


def tight_lower_bound(workload: Workload) -> Setup:
    """Set up the same bound for this project's own forward pass, from the first block on.

    The prompts' common prefix is encoded once, the last block computes the class token alone, and
    no gradient passes through the patch embedding, below which nothing is trained.
    """
    model, text, embedded = _frozen(workload)
    images = workload.pixels(model).to(model.net.visual.conv1.weight.dtype)
    entered = _ask_for_gradients(model.net.visual.ln_pre)

    def after_step() -> None:
        if entered[0].grad is None or embedded[0].grad is None:
            raise RuntimeError("the backward pass did not reach the first blocks")

    return Setup(
        logits=lambda: model.logit_scale() * model.encode_image(images) @ text.features().T,
        parameters=[],
        text_tokens=text.tokens.shape[1],
        autocasts=False,
        after_step=after_step,
    )


def _frozen(workload: Workload) -> tuple[cr.Model, TextClassifier, list[Tensor]]:
    """Return a frozen model in the workload's precision, its prompts and its token embeddings.

    The list of token embeddings is filled by each forward pass.
    """
    model = workload.load()
    text = workload.text(model)
    dtype = torch.bfloat16 if workload.precision == "bf16" else torch.float32
    model.net.requires_grad_(False).to(dtype)
    for module in model.net.modules():
        if isinstance(module, nn.MultiheadAttention):
            _take_contiguous(module)
    tower = getattr(model.net, "text", model.net)
    return model, text, _ask_for_gradients(tower.token_embedding)


def _ask_for_gradients(module: nn.Module) -> list[Tensor]:
    """Let a module's output require gradients; return a list that will hold the output."""
    held: list[Tensor] = []

    def ask(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        held[:] = [output.detach().requires_grad_()]
        return held[0]

    module.register_forward_hook(ask)
    return held


def _take_contiguous(attention: nn.MultiheadAttention) -> None:
    """Give an attention its sequences as (tokens, batch, width), contiguous in memory.

    It would view them so; torch then copies a frozen weight and multiplies each token with it.
    """
    attention.batch_first = False

    def turn(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        turned = {id(one): one.transpose(0, 1).contiguous() for one in inputs}
        return tuple(turned[id(one)] for one in inputs)  # q, k and v may be one tensor

    attention.register_forward_pre_hook(turn)
    attention.register_forward_hook(lambda _, __, output: (output[0].transpose(0, 1), output[1]))


def peft_on_transformers(
    workload: Workload,
    method: str,
    rank: int,
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    dropout: float = 0.0,
    trims: bool = False,
) -> Setup:
    """Set peft up on a ``CLIPModel`` of the same sizes and activation, with random weights.

    Prompts are padded to the context length, as CLIP's users pad them, or with ``trims`` to the
    longest prompt. No padding mask is needed, as attention is causal.
    """
    import peft
    import transformers

    from clip_randlora.export.transformers_format import clip_config

    model = workload.load()
    tokens = workload.whole_tokens(model)
    if trims:
        tokens = trim(model.net, tokens)
    images, device = workload.pixels(model), model.device
    config = clip_config(model.net)
    del model
    kinds = {
        "randlora": lambda: peft.RandLoraConfig(
            r=rank, target_modules=list(targets), randlora_dropout=dropout, save_projection=False
        ),
        "lora": lambda: peft.LoraConfig(r=rank, target_modules=list(targets), lora_dropout=dropout),
    }
    torch.manual_seed(0)
    net = peft.get_peft_model(transformers.CLIPModel(config).to(device), kinds[method]()).train()

    def logits() -> Tensor:
        image = net.get_image_features(pixel_values=images).pooler_output
        text = net.get_text_features(input_ids=tokens).pooler_output
        image, text = (nn.functional.normalize(features, dim=-1) for features in (image, text))
        return net.logit_scale.exp() * image @ text.T

    return Setup(
        logits=logits,
        parameters=[parameter for parameter in net.parameters() if parameter.requires_grad],
        text_tokens=tokens.shape[1],
    )


def _ours(label: str, method: str, rank: int, **settings: Any) -> StepRow:
    config = {"method": method, "rank": rank, **settings}
    return StepRow(label, "ours", adapted, {"config": config})


def _peft(label: str, method: str, rank: int, **settings: Any) -> StepRow:
    settings = {"method": method, "rank": rank, **settings}
    return StepRow(label, "peer", peft_on_transformers, settings)


_CLIP_LORA = {"targets": ("q_proj", "k_proj", "v_proj"), "dropout": 0.25}

ROWS: dict[str, StepRow] = {
    "randlora": _ours("RandLoRA r=6, dense bases", "randlora", 6),
    "randlora-sparse": _ours("RandLoRA r=6, sparse bases", "randlora", 6, bases="sparse"),
    "randlora-very-sparse": _ours(
        "RandLoRA r=6, very sparse bases", "randlora", 6, bases="very_sparse"
    ),
    "randlora-r2": _ours("RandLoRA r=2, dense bases", "randlora", 2),
    "randlora-r32": _ours("RandLoRA r=32, dense bases", "randlora", 32),
    "lora": _ours("LoRA r=32", "lora", 32),
    "peft-randlora": _peft("peft RandLoRA r=6", "randlora", 6),
    "peft-randlora-r2": _peft("peft RandLoRA r=2", "randlora", 2),
    "peft-randlora-r32": _peft("peft RandLoRA r=32", "randlora", 32),
    "peft-randlora-trimmed": _peft("peft RandLoRA r=6, trimmed text", "randlora", 6, trims=True),
    "peft-lora": _peft("peft LoRA r=32", "lora", 32),
    "peft-lora-trimmed": _peft("peft LoRA r=32, trimmed text", "lora", 32, trims=True),
    "clip-lora": _peft("CLIP-LoRA's recipe: LoRA r=2 on q k v", "lora", 2, **_CLIP_LORA),
    "full": StepRow("full fine-tuning, trimmed text", "peer", full_fine_tuning),
    "bound": StepRow("lower bound: gradients to the inputs only", "bound", lower_bound),
    "bound-tight": StepRow(
        "tight bound: the same by this project's forward pass", "bound", tight_lower_bound
    ),
}
"""The rows of `measure_step` by name."""

GPU_WARMUP = 5
"""Fewest warm-up steps on a GPU: the first ones load kernels, the fourth is recorded."""

FIT = "randlora-fit"
FIT_LABEL = "RandLoRA r=6 in `fit`, augmentation included"


def measure_step(
    row: str,
    model: str,
    images: int,
    classes: int,
    precision: str,
    warmup: int,
    steps: int,
    device: str | None = None,
    plain_malloc: bool = False,
    recorded: bool = True,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time training steps of one row, in this process.

    Args:
        row: a name in `ROWS`.
        model: an open_clip name or folder, taken with random weights.
        images, classes: in a step.
        precision: fp32, or bf16 mixed precision by autocast.
        warmup: steps that are not timed; on a GPU at least `GPU_WARMUP`.
        steps: steps that are timed.
        device: as `clip_randlora.load_model` takes it.
        plain_malloc: leave the C library's allocator as it is.
        recorded: on a GPU, take the steps of rows of ours as a CUDA graph, as `fit` does.
        changes: adapter settings that replace the row's, as ``{"rank": 2}``, for rows of ours.

    Returns:
        ``seconds`` of every timed step, ``losses`` of all steps, ``trained`` (the number of
        trainable parameters), ``text_tokens`` and ``device``.
    """
    chosen = ROWS[row]
    settings = dict(chosen.settings)
    if changes:
        settings["config"] = settings["config"] | changes
    used = find_device(device)
    keeps = chosen.owner != "peer" and not plain_malloc
    workload = Workload(model, images, classes, precision, device)
    setup = chosen.build(workload, **settings)
    labels = (torch.arange(images) % classes).to(used)
    optimizer_of = torch.optim.AdamW if chosen.owner == "peer" else make_adamw
    optimizer = optimizer_of(setup.parameters, lr=1e-4) if setup.parameters else None
    take_step = partial(_take_step, setup, optimizer, labels, precision, used)
    if used.type == "cuda":
        warmup = max(warmup, GPU_WARMUP)
        if chosen.owner == "ours" and recorded:
            optimizer.param_groups[0]["capturable"] = True
            take_step = CUDAGraphStep(take_step, used)
    times: list[float] = []
    losses: list[float] = []
    with keep_freed_memory(used) if keeps else nullcontext(), setup.context():
        for _ in range(warmup + steps):
            _wait_for(used)
            start = time.perf_counter()
            (loss,) = take_step()
            _wait_for(used)
            times.append(time.perf_counter() - start)
            losses.append(float(loss))
    if isinstance(take_step, CUDAGraphStep) and take_step.failure:
        raise RuntimeError(f"the step could not be recorded: {take_step.failure}")
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"a loss is NaN or infinite: {losses}")
    return {
        "seconds": times[warmup:],
        "losses": losses,
        "trained": sum(parameter.numel() for parameter in setup.parameters),
        "text_tokens": setup.text_tokens,
        "device": str(used),
    }


def measure_fit(
    model: str,
    images: int,
    classes: int,
    precision: str,
    warmup: int,
    steps: int,
    device: str | None = None,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time the steps of `clip_randlora.fit` itself, on images from files, with augmentation.

    Arguments and result as `measure_step`'s; ``warmup`` is at least 1.
    """
    torch.manual_seed(0)
    loaded = cr.load_model(model, None, device)
    config = cr.TrainConfig.parse(
        {
            "method": {"method": "randlora", "rank": 6, **(changes or {})},
            "shots": None,
            "steps": warmup + steps,
            "batch_size": images,
            "precision": precision,
        }
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        per_class = math.ceil(images / classes)
        write_images(Path(folder), class_names(classes), per_class, tests=1)
        data = cr.load_data(folder)
        run = cr.fit(loaded, data, config, on_step=lambda _: ends.append(time.perf_counter()))
    if len(ends) != warmup + steps:
        raise RuntimeError(f"fit reported {len(ends)} of {warmup + steps} steps; ask for fewer")
    times = [after - before for before, after in itertools.pairwise(ends)]
    return {
        "seconds": times[-steps:],
        "losses": [row["loss"] for row in run.history],
        "trained": run.metrics["trainable_parameters"],
        "text_tokens": run.text.tokens.shape[1],
        "device": run.metrics["device"],
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _take_step(
    setup: Setup,
    optimizer: torch.optim.Optimizer | None,
    labels: Tensor,
    precision: str,
    device: torch.device,
) -> tuple[Tensor]:
    autocasts = precision == "bf16" and setup.autocasts
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=autocasts)
    with setup.forward_context(), autocast:
        logits = setup.logits().float()
        loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    setup.after_step()
    return (loss.detach(),)
