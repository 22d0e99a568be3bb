"""The few-shot recipe: draw shots, train the adapter, compare, save."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from clip_randlora import runs
from clip_randlora.adapters import Adapter, attach
from clip_randlora.adapters.config import Method, RandLoRA, one_line, parse_method
from clip_randlora.data import Data, Decoded, Skipped, augment, decode_shots
from clip_randlora.errors import UserError
from clip_randlora.evaluation import Predictions, SideBySide, predict_split, score
from clip_randlora.models import Model
from clip_randlora.templates import DEFAULT_TEMPLATES, check_templates
from clip_randlora.text import TextClassifier, clean_class_name, make_prompts

# RandLoRA's from its authors' recipe for CLIP, LoRA's from CLIP-LoRA (arXiv 2405.18541)
_LEARNING_RATES = {"randlora": 1e-3, "lora": 2e-4}
# lite0's batch-normalised convolutions are far less easily upset: found on its own data
_LITE0_LEARNING_RATES = {"randlora": 2.5e-2, "lora": 3e-3}
_STORED_SCALE = 1.15  # training images are kept this much larger than the crops made of them
_SECONDS_BETWEEN_CHECKPOINTS = 15.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_WATCH_BATCH = 64
_WATCHES = 8  # times that the watched test images are classified during a training
_FINAL_LEARNING_RATE = 0.01  # the cosine ends at this share, as in the reference's recipe


class TrainConfig(BaseModel):
    """How to train.

    Attributes:
        method: `RandLoRA`, `LoRA`, their names, or a mapping with ``method`` and settings.
        shots: training images per class; None for all.
        seed: of the draw of shots, the order of the images and the augmentation.
        steps: optimiser steps; None: `default_steps` of ``epochs`` and ``min_steps``.
        epochs: passes over the training images, where ``steps`` is None.
        min_steps: fewest steps, where ``steps`` is None.
        batch_size: images a step; all of them if there are fewer.
        learning_rate: peak; None: `default_learning_rate`.
        weight_decay: AdamW's.
        warmup: share of the steps in which the learning rate rises.
        label_smoothing: 0 to 1.
        clip_norm: bound on the gradient's norm.
        precision: ``bf16`` and ``fp16`` are mixed precision; ``auto`` takes bf16 where the
            hardware is fast in it.
        templates: prompt templates with one ``{}`` each; None: the data set's, if it has any,
            else "a photo of a {}."
        prompts: ``{class: [name or whole prompt, ...]}`` in place of the class's name in the data
            set.
        crop_scale: range of the share of an image's area that a random crop keeps.
        crop_size: side of the crops, pixels; None: `default_crop_size`.
        flip: mirror half of the images.
        prompts_per_step: with more prompts than these, a step's text batch holds one prompt of
            each of the batch's classes and of random others up to this many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = RandLoRA()
    shots: int | None = Field(16, ge=1)
    seed: int = Field(1, ge=0, lt=2**31)
    steps: int | None = Field(None, ge=1)
    epochs: float = Field(12, gt=0)
    min_steps: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    templates: tuple[str, ...] | None = None
    prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_size: int | None = Field(None, ge=32)
    flip: bool = True
    prompts_per_step: int = Field(256, ge=2)

    @field_validator("method", mode="before")
    @classmethod
    def _parse_method(cls, value: Any) -> Any:
        return parse_method(value)

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
            return cls(**settings)
        except ValidationError as error:
            raise UserError(one_line(error)) from error


@dataclass(frozen=True)
class Step:
    """What one step of training showed: means since the last report.

    ``test_accuracy`` is that of the watched test images, at the steps that measure it.
    """

    step: int
    steps: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds_left: float
    test_accuracy: float | None = None


@dataclass
class Run:
    """A finished training: the metrics, the test predictions and what was trained."""

    model: Model
    adapter: Adapter
    text: TextClassifier
    config: TrainConfig
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    predictions: Predictions
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    folder: Path | None = None


class Interrupted(KeyboardInterrupt):
    """Training was stopped with Ctrl-C; ``folder`` holds what is needed to go on, if any."""

    def __init__(self, step: int, folder: Path | None):
        super().__init__(f"stopped after step {step}")
        self.step, self.folder = step, folder


def default_steps(images: int, batch_size: int, epochs: float = 12, min_steps: int = 60) -> int:
    """Return how many steps to train on a number of images: the epochs' steps, 2,000 at most.

    ``min_steps``, not epochs, decides at very low shots, where an epoch is one batch or less.
    """
    return max(min(math.ceil(epochs * math.ceil(images / batch_size)), 2000), min_steps)


def default_crop_size(model: Model) -> int:
    """Return the side of the training crops: 5/6 of the model's, where it takes any size.

    Random crops show things larger than the test images do; smaller crops even that out, and
    cost less (Touvron et al., arXiv 1906.06423). Rounded to a multiple of 32.
    """
    return round(model.image_size * 5 / 6 / 32) * 32 if model.takes_any_size else model.image_size


def default_learning_rate(model_name: str, method: str, images_per_class: float) -> float:
    """Return the peak learning rate that a method gets on a model.

    Below 16 images a class it falls with them: the fewer images, the more alike the steps'
    gradients are, and the further the same number of steps would go from zero-shot.
    """
    rates = _LITE0_LEARNING_RATES if model_name == "lite0" else _LEARNING_RATES
    return rates[method] * min(1.0, images_per_class / 16)


def fit(
    model: Model,
    data: Data,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    source: Mapping[str, Any] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_start: Callable[[Adapter, list[str]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    watch: int = 0,
) -> Run:
    """Teach a model the classes of a data set, and compare it with its zero-shot self.

    Args:
        model: without an adapter; the trained adapter is attached to it on return.
        data: training and test images.
        config: settings; the defaults need no tuning.
        out: folder to write the run to; None to keep it in memory.
        resume: go on with the interrupted run in ``out``; the weights come out the same.
        source: what to record about where the data came from, such as ``{"data": PATH}``.
        on_step: called now and then during training.
        on_start: called before training with the adapter and the notes about the data.
        should_stop: asked after every step; if it says so, training ends early, and the run is
            finished with what was learned by then. The adapter file is written before the test
            images are classified.
        watch: classify this many test images now and then during training, for a curve.

    Raises:
        UserError: the settings do not fit the model or the data, or ``out`` is taken.
        Interrupted: Ctrl-C; what was trained is saved in ``out``.
    """
    config = _with_prompts_of(data, config or TrainConfig())
    settings = _settings(model, data, config, source)
    folder = runs.prepare(out, settings, resume) if out is not None else None
    adapter = loop = None
    try:
        crop_size = config.crop_size or default_crop_size(model)
        stored = model.square(round(crop_size * _STORED_SCALE))
        shots = decode_shots(data.train, config.shots, config.seed, stored)
        prompts = make_prompts(data.classes, config.templates, config.prompts)
        text = TextClassifier(model, data.classes, prompts)
        adapter = attach(model.net, config.method)
        notes = [*data.notes, *shots.notes]
        if on_start:
            on_start(adapter, notes)
        loop = _Loop(model, adapter, text, shots, crop_size, config, folder)
        if watch:
            loop.watched = _decode_watched(model, data, watch)
        if resume and folder is not None:
            loop.restore()
        loop.run(on_step, should_stop or (lambda: False))
        if loop.step < loop.steps:
            notes.append(f"Stopped at step {loop.step} of {loop.steps}.")
        if folder is not None:
            adapter.save(folder / runs.ADAPTER, _task(model, data, config))
        predictions = predict_split(SideBySide(model, adapter, text), data.test)
        run = Run(
            model=model,
            adapter=adapter,
            text=text,
            config=config,
            metrics=score(predictions) | _facts(loop, config, len(predictions.names)),
            history=loop.history,
            predictions=predictions,
            notes=notes,
            skipped=[*data.skipped, *shots.skipped, *predictions.skipped],
            folder=folder,
        )
        if folder is not None:
            runs.write(run, settings, data)
        return run
    except BaseException as error:
        if adapter is not None:
            adapter.detach()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(loop.step if loop else 0, folder) from None
        raise


def _decode_watched(model: Model, data: Data, watch: int) -> Decoded:
    """Decode about ``watch`` test images, as many of each class as the others have."""
    per_class = math.ceil(watch / len(data.classes))
    drawn = decode_shots(data.test, per_class, 0, model.square())
    rows = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:watch]
    return Decoded(drawn.images[rows], drawn.labels[rows], [drawn.names[row] for row in rows])


def _with_prompts_of(data: Data, config: TrainConfig) -> TrainConfig:
    """Fill in the data set's templates and names, so that ``config.yaml`` records what is used."""
    named = {
        name: words for name, words in data.prompts.items() if words != (clean_class_name(name),)
    }
    templates = config.templates or data.templates or DEFAULT_TEMPLATES
    return config.model_copy(update={"templates": templates, "prompts": named | config.prompts})


def _facts(loop: _Loop, config: TrainConfig, test_images: int) -> dict[str, Any]:
    """Gather what ``metrics.json`` says of the training itself."""
    model = loop.model
    return {
        "trainable_parameters": loop.adapter.num_parameters(),
        "train_seconds": round(loop.seconds, 3),
        "step_seconds_median": round(median(loop.step_seconds), 4),
        "peak_memory_bytes": _peak_memory(model.device),
        "images": {"train": len(loop.labels), "test": test_images},
        "shots": config.shots,
        "seed": config.seed,
        "method": config.method.method,
        "model": model.name,
        "pretrained": model.pretrained,
        "steps": loop.step,
        "precision": loop.precision,
        "device": str(model.device),
    }


class _Loop:
    """The training loop: everything random is a function of the seed and the step."""

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        shots: Decoded,
        crop_size: int,
        config: TrainConfig,
        folder: Path | None,
    ):
        self.model, self.adapter, self.text, self.config = model, adapter, text, config
        self.folder, self.crop_size = folder, crop_size
        self.images = shots.images.to(model.device)
        self.labels = shots.labels.to(model.device)
        self.drawn = hashlib.sha256("\n".join(shots.names).encode()).hexdigest()
        self.batch_size = min(config.batch_size, len(shots))
        self.steps = config.steps or default_steps(
            len(shots), config.batch_size, config.epochs, config.min_steps
        )
        self.precision = choose_precision(config.precision, model.device)
        self.step, self.seconds = 0, 0.0
        self.step_seconds: list[float] = []
        self.history: list[dict[str, float]] = []
        self.accelerator = _accelerator(self.precision, model.device)
        rate = config.learning_rate or default_learning_rate(
            model.name, config.method.method, len(shots) / len(text.classes)
        )
        optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=rate, weight_decay=config.weight_decay
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self.watched: Decoded | None = None
        self.frozen_text = None
        if "text" not in adapter.config.towers:
            with torch.no_grad():
                self.frozen_text = text.features()

    def run(self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool]) -> None:
        """Train from the present step to the last, or until ``should_stop`` says so."""
        self.model.net.eval()  # frozen batch norm statistics stay as they are
        if self.model.device.type == "cpu":
            _keep_freed_memory()
        report = _Report(self, on_step)
        saved = time.perf_counter()
        with _CtrlCBetweenSteps() as ctrl_c:
            while self.step < self.steps and not (self.step and should_stop()):
                start = time.perf_counter()
                loss, correct = self._train_step()
                self.step += 1
                self.step_seconds.append(time.perf_counter() - start)
                self.seconds += self.step_seconds[-1]
                try:
                    report.add(loss, correct)
                    ctrl_c.check()
                except KeyboardInterrupt:
                    self.save()
                    raise
                if time.perf_counter() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    self.save()
                    saved = time.perf_counter()
        self.save()  # should the evaluation be interrupted, the training need not be done again

    def _train_step(self) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return its loss and the share of images that it got right."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        rows = self._batch_rows().to(self.images.device)
        images = augment(
            self.images[rows],
            self.crop_size,
            generator,
            scale=self.config.crop_scale,
            flip=self.config.flip,
        )
        labels = self.labels[rows]
        with self.adapter.formed_once(), self.accelerator.autocast():
            features = self.model.encode_image(images)
            classes, labels = self._class_features(labels, generator)
            logits = (self.model.logit_scale() * features @ classes.T).float()
            loss = torch.nn.functional.cross_entropy(
                logits, labels, label_smoothing=self.config.label_smoothing
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.adapter.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), (logits.detach().argmax(dim=-1) == labels).float().mean()

    def watched_accuracy(self) -> float | None:
        """Return the share of the watched images that the model gets right now, if any are."""
        if self.watched is None:
            return None
        labels = self.watched.labels.to(self.model.device)
        with torch.inference_mode(), self.adapter.formed_once(), self.accelerator.autocast():
            batches = self.watched.images.split(_WATCH_BATCH)
            features = torch.cat([self.model.encode_image(batch) for batch in batches])
            answers = (features @ self.text.features().T).argmax(dim=-1)
        return float((answers == labels).float().mean())

    def _batch_rows(self) -> Tensor:
        """Return the step's images, int64 (B,): epochs of permutations, laid end to end."""
        count, size = len(self.labels), self.batch_size
        positions = range(self.step * size, (self.step + 1) * size)
        order: dict[int, Tensor] = {}
        for epoch in {position // count for position in positions}:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 - 1 - epoch)
            order[epoch] = torch.randperm(count, generator=generator)
        return torch.stack([order[position // count][position % count] for position in positions])

    def _class_features(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return class features (R, E) for this step, and the labels as rows of them."""
        if self.frozen_text is not None:
            return self.frozen_text, labels
        if len(self.text.owners) <= self.config.prompts_per_step:
            return self.text.features(), labels
        owners = self.text.owners.cpu()
        shuffled = torch.randperm(len(owners), generator=generator)
        in_batch = torch.isin(owners[shuffled], labels.cpu())
        # prompts of the batch's classes first; the first prompt of each class is the one used
        candidates = torch.cat([shuffled[in_batch], shuffled[~in_batch]]).tolist()
        first: dict[int, int] = {}
        for row in candidates:
            first.setdefault(int(owners[row]), row)
        chosen = list(first.items())[: max(self.config.prompts_per_step, len(labels.unique()))]
        position = torch.full((len(self.text.classes),), -1, dtype=torch.int64)
        position[[label for label, _ in chosen]] = torch.arange(len(chosen))
        rows = torch.tensor([row for _, row in chosen], device=labels.device)
        return self.text.features(rows), position.to(labels.device)[labels]

    def _rate(self, step: int) -> float:
        """Return the learning rate's factor: linear warm-up, then a cosine to 1 %."""
        warmup = self.config.warmup * self.steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(self.steps - warmup, 1)
        return (
            _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2
        )

    def save(self) -> None:
        """Write what `restore` needs to the run folder, if there is one."""
        if self.folder is None:
            return
        runs.save_checkpoint(
            self.folder,
            {
                "step": self.step,
                "seconds": self.seconds,
                "step_seconds": self.step_seconds,
                "history": self.history,
                "drawn": self.drawn,
                "adapter": {key: value.detach() for key, value in self.adapter.named_parameters()},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            },
        )

    def restore(self) -> None:
        """Go back to the run folder's checkpoint, if there is one."""
        state = runs.load_checkpoint(self.folder, self.model.device)
        if state is None:
            return
        if state["drawn"] != self.drawn:
            raise UserError(
                f"{self.folder}: cannot resume, the training images are not those that the run "
                f"began with; restore them or start again with another --out"
            )
        with torch.no_grad():
            for key, parameter in self.adapter.named_parameters():
                parameter.copy_(state["adapter"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.step_seconds, self.history = state["step_seconds"], state["history"]


class _CtrlCBetweenSteps:
    """Holds Ctrl-C back until a step is done, so that what is saved is whole; a second one stops.

    Signals reach the main thread only; elsewhere, in an app say, this does nothing.
    """

    def __enter__(self) -> _CtrlCBetweenSteps:
        self.pressed = False
        self.is_main = threading.current_thread() is threading.main_thread()
        if self.is_main:
            self.before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            signal.signal(signal.SIGINT, self.before)

    def _press(self, *_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        """Raise the interrupt that was held back."""
        if self.pressed:
            raise KeyboardInterrupt


class _Report:
    """Gathers the loss on the device and hands it on now and then, so that a GPU need not wait."""

    def __init__(self, loop: _Loop, on_step: Callable[[Step], None] | None):
        self.loop, self.on_step = loop, on_step
        self.every = max(1, loop.steps // 100)
        self.watch_every = max(1, loop.steps // _WATCHES)
        self.next_watch = loop.step + 1
        self.first_step, self.started = loop.step, time.perf_counter()
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []

    def add(self, loss: Tensor, correct: Tensor) -> None:
        loop = self.loop
        self.losses.append(loss)
        self.correct.append(correct)
        if loop.step % self.every and loop.step != loop.steps:
            return
        mean_loss = float(torch.stack(self.losses).mean())
        accuracy = float(torch.stack(self.correct).mean())
        self.losses, self.correct = [], []
        if not math.isfinite(mean_loss):
            raise UserError(
                f"training diverged at step {loop.step} (the loss is not a number): set a lower "
                f"learning_rate than {loop.config.learning_rate or 'the default'}"
            )
        rate = loop.schedule.get_last_lr()[0]
        row = {"step": loop.step, "loss": mean_loss, "accuracy": accuracy, "learning_rate": rate}
        if loop.watched is not None:
            row["test_accuracy"] = loop.watched_accuracy() if self._is_time_to_watch() else None
        loop.history.append(row)
        if self.on_step:
            elapsed = time.perf_counter() - self.started
            left = elapsed / (loop.step - self.first_step) * (loop.steps - loop.step)
            self.on_step(
                Step(
                    loop.step,
                    loop.steps,
                    mean_loss,
                    accuracy,
                    rate,
                    left,
                    row.get("test_accuracy"),
                )
            )

    def _is_time_to_watch(self) -> bool:
        if self.loop.step < self.next_watch and self.loop.step != self.loop.steps:
            return False
        self.next_watch = self.loop.step + self.watch_every
        return True


def choose_precision(precision: str, device: torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``: what was asked for, or what the hardware is fast in.

    Raises:
        UserError: fp16 was asked for on a device that has no use for it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16: not for CPUs; use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        has = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
        return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else "fp32"
    return "fp32"


def _keep_freed_memory() -> None:
    """Let glibc reuse a step's memory in the next, which takes 40 % off lite0's step on a CPU.

    It would give every large tensor back to the system, and have it zeroed page by page again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _accelerator(precision: str, device: torch.device) -> Accelerator:
    # accelerate keeps one precision and device for the process; each fit may want another
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")


def _task(model: Model, data: Data, config: TrainConfig) -> dict[str, Any]:
    """Gather what a classifier needs beside the adapter's numbers."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "classes": list(data.classes),
        "templates": list(config.templates),
        "prompts": {name: list(words) for name, words in config.prompts.items()},
    }


def _settings(
    model: Model, data: Data, config: TrainConfig, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Gather what a run folder's ``config.yaml`` records."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "data": dict(source or {"data": data.name}),
        "classes": list(data.classes),
        "train": config.model_dump(mode="json"),
    }


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes held: on a CUDA device by torch, otherwise by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


__all__ = ["Interrupted", "Run", "Step", "TrainConfig", "choose_precision", "default_steps", "fit"]
