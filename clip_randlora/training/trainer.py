"""The training loop: one optimiser step after another, and what is saved between them."""

from __future__ import annotations

import ctypes
import hashlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import AugmentedViews, ImageBatch, augment
from clip_randlora.errors import UserError, is_out_of_memory
from clip_randlora.forward.attention import direct_self_attention, pooled_token_only
from clip_randlora.forward.batch_norm import find_pairs, folded
from clip_randlora.forward.frozen_prefix import (
    DEFAULT_VIEWS,
    DoesNotFit,
    FrozenImages,
    FrozenText,
    has_frozen_blocks,
)
from clip_randlora.forward.recompute import recomputed_in_backward
from clip_randlora.training.checkpoint import damaged_checkpoint, load_checkpoint, save_checkpoint
from clip_randlora.training.config import (
    TrainConfig,
    choose_precision,
    default_beta2,
    default_learning_rate,
    default_steps,
)
from clip_randlora.training.distributed import Processes, is_main_process
from clip_randlora.training.logger import Report, Step, is_finite
from clip_randlora.utils import formats
from clip_randlora.utils.devices import RecordedStep, Stopwatch, send
from clip_randlora.utils.progress import OnProgress
from clip_randlora.utils.shared_settings import SharedSetting

_SECONDS_BETWEEN_CHECKPOINTS = 15.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_WATCH_BATCH = 64
_FINAL_LEARNING_RATE = 0.01  # the cosine ends at this share, as in the reference's recipe


@contextmanager
def training_forward(net: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Make the forward pass of a training step fast and small inside the block.

    Each updated weight is formed once, however often it is read; attention skips its copies; the
    last block computes the pooled token alone; and what is cheap to compute again is not kept for
    the backward pass. Losses and gradients are the same to rounding. Call ``backward`` outside::

        with cr.training_forward(net, adapter):
            loss = ...
        loss.backward()

    Args:
        net: an open_clip model, used by this thread alone.
        adapter: that is attached to it.
    """
    with (
        adapter.cached_weights(),
        direct_self_attention(net),
        pooled_token_only(net.visual),
        recomputed_in_backward(net),
    ):
        yield


class Loop:
    """The training loop: everything random is a function of the seed and the step.

    ``notes`` has a line for each thing that `run` had to do otherwise than usual.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        shots: ImageBatch,
        crop_size: int,
        config: TrainConfig,
        folder: Path | None,
        on_progress: OnProgress | None = None,
    ):
        self.model, self.adapter, self.text, self.config = model, adapter, text, config
        self.folder, self.crop_size, self.on_progress = folder, crop_size, on_progress
        self.images = shots.images.to(model.device)
        self.labels, self.owners = shots.labels.cpu(), text.owners.cpu()  # steps are drawn there
        self.image_count = len(shots)
        self.drawn = hashlib.sha256("\n".join(shots.names).encode()).hexdigest()
        self.batch_size = min(config.batch_size, len(shots))
        self.steps = config.steps or default_steps(
            len(shots), config.batch_size, config.epochs, config.min_steps
        )
        self.precision = choose_precision(config.precision, model.device)
        self.step, self.seconds = 0, 0.0
        self.step_seconds: list[float] = []
        self._stopwatch = Stopwatch(model.device)
        self._is_updating = False
        self.history: list[dict[str, float]] = []
        self.processes = Processes(self.batch_size, model.device)
        self.optimizer = self._make_optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=self.precision == "fp16")
        self._update: Callable[..., tuple[Tensor, Tensor]] = self._update_once
        self.watched: ImageBatch | None = None
        self.notes: list[str] = []
        self.views: AugmentedViews | None = None
        self.frozen_images: FrozenImages | None = None
        self.frozen_text: FrozenText | None = None
        self.fixed_text = None
        if "text" not in adapter.towers:
            with torch.no_grad():
                self.fixed_text = text.features()

    def run(self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool]) -> None:
        """Train from the present step to the last, or until ``should_stop`` says so."""
        self.model.net.eval()  # frozen batch norm statistics stay as they are
        with folded(find_pairs(self.model)), pooled_token_only(self.model.net.visual):
            start = time.perf_counter()
            with direct_self_attention(self.model.net):
                self._fix_views()
                self._freeze_text()
            self.seconds += time.perf_counter() - start
            with self._recorded():
                self._take_steps(on_step, should_stop)

    def _make_optimizer(self) -> torch.optim.AdamW:
        name, method = self.model.name, self.config.method.method
        rate, beta2 = self.config.learning_rate, self.config.beta2
        if rate is None:
            images_per_class = self.image_count / len(self.text.classes)
            rate = default_learning_rate(name, method, images_per_class)
        if beta2 is None:
            beta2 = default_beta2(name, method)
        return adamw(
            self.adapter.parameters(),
            lr=rate,
            betas=(0.9, beta2),
            weight_decay=self.config.weight_decay,
        )

    def _take_steps(
        self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool]
    ) -> None:
        report = Report(self, on_step)
        if self.on_progress and self.step < self.steps:
            self.on_progress("training", self.step, self.steps)
        saved = time.perf_counter()
        with _CtrlCBetweenSteps() as ctrl_c:
            while self.step < self.steps and not (self.step and self.processes.any(should_stop())):
                self._stopwatch.start()
                with self._saved_without_memory():
                    loss, correct = self._train_step()
                self.step += 1
                self._stopwatch.stop()
                try:
                    report.add(loss, correct)
                    ctrl_c.pressed = self.processes.any(ctrl_c.pressed)
                    ctrl_c.check()
                except KeyboardInterrupt:
                    self.save()
                    raise
                if time.perf_counter() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    self.save()
                    saved = time.perf_counter()
            self.save()  # should the evaluation be interrupted, this need not be done again

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record the steps as a CUDA graph, on a GPU and where all of them do the same."""
        device = self.model.device
        if device.type != "cuda" or not self._steps_are_alike:
            yield
            return
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
        recorded = self._update = RecordedStep(self._update_once, device)
        try:
            yield
        finally:
            self._update = self._update_once
            recorded.forget()
            if recorded.failure:
                self.notes.append(f"Steps were not recorded as a CUDA graph: {recorded.failure}")

    @property
    def _steps_are_alike(self) -> bool:
        """Whether every step does the same on the device, with tensors of the same shapes."""
        prompts_vary = self._draws_prompts and self.config.prompts_per_step < self.batch_size
        return self.processes.count == 1 and not prompts_vary

    def read_stopwatch(self) -> None:
        """Count the seconds of the steps since the last reading; a GPU is waited for."""
        took = self._stopwatch.read()
        self.step_seconds += took
        self.seconds += sum(took)

    @contextmanager
    def _saved_without_memory(self) -> Iterator[None]:
        """Save the state of the last step if there is no memory for the next."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and self.step and not self._is_updating:
                with suppress(UserError, MemoryError):  # an older state may be there
                    self.save()
            raise

    def _fix_views(self) -> None:
        """Draw the views of the images that training cycles through, and keep what is frozen."""
        is_frozen = has_frozen_blocks(self.adapter, "vision")
        wanted = self.config.views or (DEFAULT_VIEWS if is_frozen else None)
        if wanted is None:
            return
        epochs = math.ceil(self.steps * self.batch_size / len(self.labels))
        views = AugmentedViews(
            self.images,
            self.crop_size,
            min(wanted, epochs),
            self.config.seed,
            self.config.crop_scale,
            self.config.flip,
        )
        if self.config.views:
            self.views = views
        if not is_frozen:
            return
        try:
            self.frozen_images = FrozenImages(
                self.adapter, self._encode_image, views, self.on_progress
            )
        except DoesNotFit as reason:
            self.notes.append(f"Vision tower: its frozen blocks run at every step, as {reason}.")
            return
        self.views = views
        if self.frozen_images.views < views.count:
            self.notes.append(
                f"Training cycles through {self.frozen_images.views} augmented views of each "
                f"image, not {views.count}: the activations of more would take too much memory."
            )

    def _freeze_text(self) -> None:
        """Keep what the frozen blocks of the text tower make of the prompts."""
        is_adapted = "text" in self.adapter.towers
        if not is_adapted or self._draws_prompts or not has_frozen_blocks(self.adapter, "text"):
            return
        try:
            self.frozen_text = FrozenText(self.adapter, self._encode_text)
        except DoesNotFit as reason:
            self.notes.append(f"Text tower: its frozen blocks run at every step, as {reason}.")

    def _encode_image(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_checked(images)

    def _encode_text(self) -> Tensor:
        with self._autocast():
            return self.text.features()

    def _autocast(self) -> torch.autocast:
        """Compute in the training's precision inside the block."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.model.device.type, dtype, enabled=self.precision != "fp32")

    def _train_step(self) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return its loss and the share of images that it got right."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        rows, epochs = self._batch()
        labels = self.labels[rows]
        inputs = list(self._draw_images(rows, epochs, generator))
        if self._draws_prompts:
            prompts, labels = self._draw_prompts(labels, generator)
            inputs.append(send(prompts, self.model.device))
        labels = send(labels[self.processes.part], self.model.device)
        loss, correct = self._update(labels, *inputs)
        self.schedule.step()
        self._is_updating = False
        return loss, correct

    def _update_once(self, labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step on what `_draw_images` and, if it is used, `_draw_prompts` drew."""
        images, prompts = (inputs[:-1], inputs[-1]) if self._draws_prompts else (inputs, None)
        with training_forward(self.model.net, self.adapter), self._autocast():
            features = self._image_features(images)
            classes = self._class_features(prompts)
            logits = (self.model.logit_scale() * features @ classes.T).float()
            loss = torch.nn.functional.cross_entropy(
                logits, labels, label_smoothing=self.config.label_smoothing
            )
            loss = loss * self.processes.share
        self._scaler.scale(loss).backward()
        correct = (logits.detach().argmax(dim=-1) == labels).float().mean() * self.processes.share
        loss = loss.detach()
        gradients = [p.grad for p in self.adapter.parameters() if p.grad is not None]
        self.processes.average([*gradients, loss, correct])
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip_norm)
        self._is_updating = True  # an error from here on leaves a state between two steps
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, correct

    def _draw_images(
        self, rows: Tensor, epochs: Tensor, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """Augment a step's images: what `_image_features` takes for this process's part.

        ``rows`` and ``epochs`` are int64, of all processes' images.
        """
        part = self.processes.part
        rows, epochs, of_all = rows[part], epochs[part], rows
        if self.frozen_images:
            return self.frozen_images.kept(rows, epochs % self.frozen_images.views)
        if self.views:
            return [self.views.crops(rows, epochs % self.views.count)]
        crops = augment(
            self.images[send(of_all, self.images.device)],
            self.crop_size,
            generator,
            scale=self.config.crop_scale,
            flip=self.config.flip,
            part=part,
        )
        return [crops]

    def _image_features(self, images: Sequence[Tensor]) -> Tensor:
        """Return the features (B, E) of what `_draw_images` drew."""
        if self.frozen_images:
            return self.frozen_images.features(images)
        return self._encode_image(*images)

    def watched_accuracy(self) -> float | None:
        """Return the share of the watched images that the model gets right now, if any are."""
        if self.watched is None:
            return None
        labels = self.watched.labels.to(self.model.device)
        with torch.inference_mode(), self.adapter.cached_weights(), self._autocast():
            batches = self.watched.images.split(_WATCH_BATCH)
            features = torch.cat([self.model.encode_image(batch) for batch in batches])
            answers = (features @ self.text.features().T).argmax(dim=-1)
        return float((answers == labels).float().mean())

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return the step's images and the epoch of each, int64 (B,).

        Epochs are permutations of the images, laid end to end.
        """
        count, size = len(self.labels), self.batch_size
        positions = range(self.step * size, (self.step + 1) * size)
        order: dict[int, Tensor] = {}
        for epoch in {position // count for position in positions}:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 - 1 - epoch)
            order[epoch] = torch.randperm(count, generator=generator)
        rows = torch.stack([order[position // count][position % count] for position in positions])
        return rows, torch.tensor([position // count for position in positions])

    @property
    def _draws_prompts(self) -> bool:
        """Whether there are too many prompts to encode all of them at every step."""
        is_adapted = self.fixed_text is None
        return is_adapted and len(self.text.owners) > self.config.prompts_per_step

    def _draw_prompts(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a step's prompts, int64 (R,) rows, and the labels as positions among them."""
        shuffled = torch.randperm(len(self.owners), generator=generator)
        in_batch = torch.isin(self.owners[shuffled], labels)
        # prompts of the batch's classes first; the first prompt of each class is the one used
        candidates = torch.cat([shuffled[in_batch], shuffled[~in_batch]]).tolist()
        first: dict[int, int] = {}
        for row in candidates:
            first.setdefault(int(self.owners[row]), row)
        chosen = list(first.items())[: max(self.config.prompts_per_step, len(labels.unique()))]
        position = torch.full((len(self.text.classes),), -1, dtype=torch.int64)
        position[[label for label, _ in chosen]] = torch.arange(len(chosen))
        return torch.tensor([row for _, row in chosen]), position[labels]

    def _class_features(self, prompts: Tensor | None) -> Tensor:
        """Return class features (R, E): of the prompts that were drawn, or of all classes."""
        if self.fixed_text is not None:
            return self.fixed_text
        if self.frozen_text:
            return self.frozen_text.features()
        return self.text.features(prompts)

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
        self.read_stopwatch()
        if self.folder is None or not is_main_process() or not is_finite(self.adapter):
            return
        save_checkpoint(
            self.folder,
            {
                "format": formats.CHECKPOINT,
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
        state = load_checkpoint(self.folder, self.model.device)
        if state is None:
            return
        if state.get("format") != formats.CHECKPOINT:  # the bases were others, for the same numbers
            raise UserError(
                f"{self.folder}: cannot resume, its checkpoint was written by another version of "
                f"clip-randlora; resume with that version or start again with another --out"
            )
        if state.get("drawn") != self.drawn:
            raise UserError(
                f"{self.folder}: cannot resume, the training images are not those that the run "
                f"began with; restore them or start again with another --out"
            )
        try:
            with torch.no_grad():
                for key, parameter in self.adapter.named_parameters():
                    parameter.copy_(state["adapter"][key])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:  # what depends on the device it was saved on
                on_gpu = self.model.device.type == "cuda"
                group.update(lr=float(group["lr"]), capturable=False, fused=on_gpu or None)
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.step_seconds, self.history = state["step_seconds"], state["history"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise damaged_checkpoint(self.folder) from error


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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.is_main:
            signal.signal(signal.SIGINT, self.before)
        if kind is None:
            self.check()  # pressed after the last step

    def _press(self, *_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        """Raise the interrupt that was held back."""
        if self.pressed:
            raise KeyboardInterrupt


def adamw(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.AdamW:
    """Make an AdamW that has its moments already, as if resumed before its first step.

    Made in that step they would lie between its activations, and keep the C library from reusing
    their memory in one piece.

    Args:
        parameters: the trained tensors.
        settings: as `torch.optim.AdamW` takes them.
    """
    parameters = list(parameters)
    if any(parameter.is_cuda for parameter in parameters):
        settings["fused"] = True  # one kernel for all of them
    optimizer = torch.optim.AdamW(parameters, **settings)
    state = {
        number: {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for number, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return optimizer


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Let glibc reuse a step's memory in the next, which takes 40 % off lite0's step on a CPU.

    It would give every large tensor back to the system, and have it zeroed page by page again.
    """
    if device.type != "cpu" or sys.platform != "linux" or not hasattr(_c_library(), "mallopt"):
        yield  # other C libraries have no such settings
        return
    with _freed_memory.active():
        yield


def _keep_freed_memory() -> Callable[[], None]:
    _set_thresholds(mmap=2**30, trim=2**31 - 1)

    def give_back() -> None:
        # where glibc's own thresholds end, which grow as a process frees larger and larger tensors
        _set_thresholds(mmap=32 * 2**20, trim=64 * 2**20)
        _c_library().malloc_trim(0)

    return give_back


_freed_memory = SharedSetting(_keep_freed_memory)


def _set_thresholds(mmap: int, trim: int) -> None:
    _c_library().mallopt(_M_MMAP_THRESHOLD, mmap)
    _c_library().mallopt(_M_TRIM_THRESHOLD, trim)


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
