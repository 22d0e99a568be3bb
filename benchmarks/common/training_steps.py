"""One training step, as this project and its peers take it, on random images and weights.

A step is the forward pass of a batch of images and of one prompt for each class, the cross
entropy of their scaled cosine similarities, the backward pass and AdamW. The images are on the
device already; nothing is decoded or augmented, except in the row that is `clip_randlora.fit`
itself.
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
from benchmarks.common.images import write_images
from clip_randlora.clip.models import find_device
from clip_randlora.clip.text import TextClassifier, encode_tokens, make_prompts, trim
from clip_randlora.training.trainer import adamw, freed_memory_kept, training_forward
from clip_randlora.utils.devices import RecordedStep

_COLOURS = (  # noqa: SIM905
    "amber black blue bronze brown copper coral crimson cyan gold gray green indigo ivory lime "
    "magenta maroon olive orange pink purple red silver teal turquoise violet white yellow"
).split()
_THINGS = (  # noqa: SIM905
    "airplane anchor apple basket bicycle boat bottle bridge bucket camera candle carpet chair "
    "clock coat cup desk dog door drum elephant flag flower fork fountain guitar hammer hat "
    "helmet horse house jacket kettle key kite ladder lamp lizard"
).split()


@dataclass(frozen=True)
class StepRow:
    """A way to train: what tables call it, who it belongs to, how it is set up.

    ``owner`` is ``ours``, ``peer`` or ``bound``; `fit` gives freed memory a second life on CPUs,
    and so do the rows of ``ours`` and ``bound``, while peers run as their users run them.
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
        forward_context: entered around the forward pass, beside autocast.
        autocasts: whether bf16 is autocast's; the bound's weights are bf16 themselves.
        after_step: called when a step is done.
    """

    logits: Callable[[], Tensor]
    parameters: list[Tensor]
    text_tokens: int
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


def class_names(count: int) -> tuple[str, ...]:
    """Return different names of two words each."""
    most = len(_COLOURS) * len(_THINGS)
    if count > most:
        raise cr.UserError(f"--classes {count}: at most {most}")
    pairs = itertools.product(_COLOURS, _THINGS)
    every = [f"{colour} {thing}" for colour, thing in pairs]
    # a stride that shares no factor with the number of names visits each of them once
    return tuple(every[place * 37 % most] for place in range(count))


def adapted(workload: Workload, config: dict[str, Any]) -> Setup:
    """Set this project up: `attach`, each updated weight formed once a step, trimmed prompts."""
    model = workload.load()
    text = workload.text(model)
    adapter = cr.attach(model.net, cr.TrainConfig.parse({"method": config}).method)
    images = workload.pixels(model)
    return Setup(
        logits=lambda: model.logit_scale() * model.encode_image(images) @ text.features().T,
        parameters=adapter.parameters(),
        text_tokens=text.tokens.shape[1],
        forward_context=lambda: training_forward(model.net, adapter),
    )


def full_fine_tuning(workload: Workload) -> Setup:
    """Set open_clip's model up to train every parameter, prompts trimmed."""
    model = workload.load()
    text = workload.text(model)
    images = workload.pixels(model)
    return Setup(
        logits=lambda: _plain_logits(model, images, text),
        parameters=list(model.net.requires_grad_(True).parameters()),
        text_tokens=text.tokens.shape[1],
    )


def _plain_logits(model: cr.Model, images: Tensor, text: TextClassifier) -> Tensor:
    """Return (N, C) by open_clip's own forward pass, which leaves out nothing but trimmed text."""
    image = model.net.encode_image(model.normalize(images), normalize=True)
    return model.logit_scale() * image @ encode_tokens(model.net, text.tokens).T


def lower_bound(workload: Workload) -> Setup:
    """Set up what no update of all the weights can undercut: only the inputs get gradients.

    The frozen weights are in the precision of the computation from the start; images and token
    embeddings require gradients, so that the backward pass goes through every layer.
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
    """Set up the same for this project's own forward pass, from the first block on.

    It runs the prompts' common prefix once and the class token alone in the last block, and no
    gradient passes through the patch embedding, below which nothing is trained.
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
    """Return a frozen model in the precision of the computation, and where embeddings appear."""
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
    """Let a module's output require gradients; return a list that will hold it."""
    held: list[Tensor] = []

    def ask(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        held[:] = [output.detach().requires_grad_()]
        return held[0]

    module.register_forward_hook(ask)
    return held


def _take_contiguous(attention: nn.MultiheadAttention) -> None:
    """Hand an attention its sequences as (tokens, batch, width), contiguous in memory.

    It would only view them so; torch then multiplies a frozen weight, copied, with each token.
    """
    attention.batch_first = False

    def turn(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        turned = {id(one): one.transpose(0, 1).contiguous() for one in inputs}
        return tuple(turned[id(one)] for one in inputs)  # q, k, v may be one and the same

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
    longest of them. No padding mask is passed: attention is causal, and it would only cost time.
    """
    import peft
    import transformers

    from clip_randlora.export.transformers_model import clip_config

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


def _randlora(**settings: Any) -> dict[str, Any]:
    return {"config": {"method": "randlora", "rank": 6, **settings}}


_QKV = ("q_proj", "k_proj", "v_proj")

ROWS: dict[str, StepRow] = {
    "randlora": StepRow("RandLoRA r=6, dense bases", "ours", adapted, _randlora()),
    "randlora-sparse": StepRow(
        "RandLoRA r=6, sparse bases", "ours", adapted, _randlora(bases="sparse")
    ),
    "randlora-very-sparse": StepRow(
        "RandLoRA r=6, very sparse bases", "ours", adapted, _randlora(bases="very_sparse")
    ),
    "randlora-r2": StepRow("RandLoRA r=2, dense bases", "ours", adapted, _randlora(rank=2)),
    "randlora-r32": StepRow("RandLoRA r=32, dense bases", "ours", adapted, _randlora(rank=32)),
    "lora": StepRow("LoRA r=32", "ours", adapted, {"config": {"method": "lora", "rank": 32}}),
    "peft-randlora": StepRow(
        "peft RandLoRA r=6", "peer", peft_on_transformers, {"method": "randlora", "rank": 6}
    ),
    "peft-randlora-r2": StepRow(
        "peft RandLoRA r=2", "peer", peft_on_transformers, {"method": "randlora", "rank": 2}
    ),
    "peft-randlora-r32": StepRow(
        "peft RandLoRA r=32", "peer", peft_on_transformers, {"method": "randlora", "rank": 32}
    ),
    "peft-randlora-trimmed": StepRow(
        "peft RandLoRA r=6, trimmed text",
        "peer",
        peft_on_transformers,
        {"method": "randlora", "rank": 6, "trims": True},
    ),
    "peft-lora": StepRow(
        "peft LoRA r=32", "peer", peft_on_transformers, {"method": "lora", "rank": 32}
    ),
    "peft-lora-trimmed": StepRow(
        "peft LoRA r=32, trimmed text",
        "peer",
        peft_on_transformers,
        {"method": "lora", "rank": 32, "trims": True},
    ),
    "clip-lora": StepRow(
        "CLIP-LoRA's recipe: LoRA r=2 on q k v",
        "peer",
        peft_on_transformers,
        {"method": "lora", "rank": 2, "targets": _QKV, "dropout": 0.25},
    ),
    "full": StepRow("full fine-tuning, trimmed text", "peer", full_fine_tuning),
    "bound": StepRow("lower bound: gradients to the inputs only", "bound", lower_bound),
    "bound-tight": StepRow(
        "tight bound: the same by this project's forward pass", "bound", tight_lower_bound
    ),
}
"""The rows by name; that of `clip_randlora.fit` itself is `measure_fit`."""

GPU_WARMUP = 5
"""Fewest steps that are not timed on a GPU: the first load kernels, the fourth is recorded."""

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
        warmup: steps that are not timed, on a GPU at least `GPU_WARMUP`; the first also allocate.
        steps: that are timed.
        device: as `clip_randlora.load_model` takes it.
        plain_malloc: leave the C library's allocator as it is.
        recorded: on a GPU, take the steps of rows of ours as a CUDA graph, as `fit` does.
        changes: adapter settings other than the row's, ``{"rank": 2}`` say, for rows of ours.

    Returns:
        ``seconds`` of every timed step, the ``losses`` of all steps, the ``trained`` numbers,
        ``text_tokens`` and the ``device``.
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
    optimizer_of = torch.optim.AdamW if chosen.owner == "peer" else adamw
    optimizer = optimizer_of(setup.parameters, lr=1e-4) if setup.parameters else None
    take_step = partial(_take_step, setup, optimizer, labels, precision, used)
    if used.type == "cuda":
        warmup = max(warmup, GPU_WARMUP)
        if chosen.owner == "ours" and recorded:
            optimizer.param_groups[0]["capturable"] = True
            take_step = RecordedStep(take_step, used)
    times: list[float] = []
    losses: list[float] = []
    with freed_memory_kept(used) if keeps else nullcontext():
        for _ in range(warmup + steps):
            _wait_for(used)
            start = time.perf_counter()
            (loss,) = take_step()
            _wait_for(used)
            times.append(time.perf_counter() - start)
            losses.append(float(loss))
    if isinstance(take_step, RecordedStep) and take_step.failure:
        raise RuntimeError(f"the step could not be recorded: {take_step.failure}")
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"a loss is not a number: {losses}")
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
