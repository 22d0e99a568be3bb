"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import ImageBatch, TrainingImages
from clip_randlora.errors import UserError, is_out_of_memory
from clip_randlora.forward.batch_norm import find_conv_bn_pairs, folded_conv_bn
from clip_randlora.forward.training import training_forward
from clip_randlora.training.checkpoint import Checkpoint
from clip_randlora.training.config import (
    TrainConfig,
    choose_crop_size,
    choose_precision,
    default_steps,
)
from clip_randlora.training.ctrl_c import DeferredCtrlC
from clip_randlora.training.cuda_graph import CUDAGraphStep
from clip_randlora.training.distributed import (
    DistributedStep,
    from_main_process,
    is_main_process,
    local_processes,
)
from clip_randlora.training.image_inputs import ImageInputs, draw_batch
from clip_randlora.training.logger import Diverged, TrainLogger
from clip_randlora.training.memory_plan import Plan, certainly_fits, choose_plan
from clip_randlora.training.optimizer import make_optimizer
from clip_randlora.training.state import OnStep, TrainState
from clip_randlora.training.text_inputs import TextInputs
from clip_randlora.training.zero_shot_error import zero_shot_error
from clip_randlora.utils.devices import Stopwatch, send
from clip_randlora.utils.memory import free_memory
from clip_randlora.utils.progress import OnProgress, one_stage
from clip_randlora.utils.tensor_memory import TensorMemory

SECONDS_BETWEEN_CHECKPOINTS = 15.0

_EVAL_BATCH = 64
_LOWER = 1 / 3  # the rate after a training diverged, as a share of the one before


class Trainer:
    """Trains an adapter on labelled images; everything random is a function of seed and step."""

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        train_images: TrainingImages,
        config: TrainConfig,
        state: TrainState,
        folder: Path | None = None,
        *,
        resume: bool = False,
        eval_images: ImageBatch | None = None,
        on_progress: OnProgress | None = None,
        restarts: int = 0,
    ):
        """Set up a training.

        Args:
            model: the model, to which the adapter is attached.
            adapter: what is trained.
            text: the classes and their prompts.
            train_images: the images to train on.
            config: the settings.
            state: kept up to date.
            folder: run folder for the checkpoints; None for no checkpoints.
            resume: go on from the folder's checkpoint, if it has one.
            eval_images: test images to classify now and then, for a curve.
            on_progress: told the step, and how many images are encoded before the first.
            restarts: how often to start again at a third of the rate if the training diverges.

        Raises:
            UserError: the settings do not fit the model, the device or the number of processes, or
                the checkpoint cannot be used.
        """
        self.model, self.adapter, self.config, self.state = model, adapter, config, state
        self.text, self.eval_images, self.on_progress = text, eval_images, on_progress
        self.restarts = restarts
        self.labels = train_images.labels.cpu()  # batches are drawn on the CPU
        self.batch_size = min(config.batch_size, len(train_images))
        state.steps = config.steps or default_steps(
            len(train_images), config.batch_size, config.epochs, config.min_steps, config.max_steps
        )
        state.precision = choose_precision(config.precision, model.device)
        self.distributed = DistributedStep(self.batch_size, model.device)
        self.plan = Plan(config.accumulate or 1, bool(config.checkpoint_blocks))
        self.image_inputs = ImageInputs(
            train_images.to(model.device),
            choose_crop_size(model, config.crop_size),
            config,
            model.encode_checked,
            self.distributed.part,
        )
        self.text_inputs = TextInputs(text, adapter, config.prompts_per_step)
        self.images_per_class, self.error = len(train_images) / len(text.classes), 1.0
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=state.precision == "fp16")
        self.checkpoint = Checkpoint(folder, train_images, state, adapter) if folder else None
        if config.learning_rate is None:
            start, size = time.perf_counter(), self.image_inputs.crop_size
            self.error = zero_shot_error(model, adapter, text, train_images, size, on_progress)
            state.seconds += time.perf_counter() - start
        self._set_up_optimizer(config.learning_rate)
        if self.checkpoint and resume:
            self.checkpoint.restore(model.device)
            self.plan = replace(self.plan, parts=state.accumulate or self.plan.parts)
            state.learning_rate = float(self.schedule.base_lrs[0])
        self.stopwatch = Stopwatch(model.device)
        self._update: Callable[..., tuple[Tensor, ...]] = self.update
        self._is_updating = False

    @property
    def parts(self) -> list[slice]:
        """The parts of a batch that this process encodes, one after the other."""
        return _split(self.distributed.part, self.plan.parts)

    def _set_up_optimizer(self, learning_rate: float | None) -> None:
        """Make the optimiser and its schedule; the rate is the default if it is None."""
        self.optimizer, self.schedule = make_optimizer(
            self.adapter.parameters(),
            self.config.model_copy(update={"learning_rate": learning_rate}),
            self.state.steps,
            self.model.name,
            self.images_per_class,
            self.error,
        )
        self.state.learning_rate = self.optimizer.defaults["lr"]
        if self.checkpoint:
            self.checkpoint.follow(self.optimizer, self.schedule)

    def train_step(self) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return its loss and accuracy, scalars on the device."""
        step, seed = self.state.step, self.config.seed
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows, epochs = draw_batch(step, self.batch_size, len(self.labels), seed)
        images = self.image_inputs.draw(rows, epochs, generator)
        prompts, targets = self.text_inputs.draw(self.labels[rows], generator, self.parts)
        targets = send(targets[self.distributed.part], self.model.device)
        if prompts is not None and self.text_inputs.is_per_image:
            prompts = prompts[self.distributed.part]
        loss, accuracy = self._update(images, prompts, targets)
        self.schedule.step()
        self._is_updating = False
        return loss, accuracy

    def update(
        self, images: Sequence[Tensor], prompts: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do the part of a step that runs on the device, and that a CUDA graph records.

        Args:
            images: from `ImageInputs.draw`.
            prompts: from `TextInputs.draw`.
            targets: the images' labels among the prompts, int64 (B,).
        """
        losses, accuracies = self._add_all_gradients(images, prompts, targets, self.parts)
        loss, accuracy = torch.stack(losses).sum(), torch.stack(accuracies).sum()
        parameters = self.adapter.parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.distributed.average([*gradients, loss, accuracy])
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self._is_updating = True  # an error from here on leaves the state between two steps
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, accuracy

    def _add_all_gradients(
        self,
        images: Sequence[Tensor],
        prompts: Tensor | None,
        targets: Tensor,
        parts: Sequence[slice],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Add the gradients of the parts of a batch; return each one's share of both figures."""
        is_per_image = prompts is not None and self.text_inputs.is_per_image
        encoded = shared = None
        if len(parts) > 1 and not is_per_image:  # classes are encoded once, for all parts
            with self._forward():
                encoded = self.text_inputs.features(prompts)
            shared = encoded.detach().float().requires_grad_(encoded.requires_grad)
        losses, accuracies = [], []
        for part in parts:
            own = slice(part.start - parts[0].start, part.stop - parts[0].start)
            of_part = prompts[own] if prompts is not None and is_per_image else prompts
            share = self.distributed.share * (own.stop - own.start) / len(targets)
            pieces = [tensor[own] for tensor in images]
            loss, accuracy = self._add_gradients(pieces, of_part, shared, targets[own], share)
            losses.append(loss)
            accuracies.append(accuracy)
        if encoded is not None and shared is not None and shared.grad is not None:
            encoded.backward(shared.grad.to(encoded.dtype))
        return losses, accuracies

    def _add_gradients(
        self,
        images: Sequence[Tensor],
        prompts: Tensor | None,
        class_features: Tensor | None,
        targets: Tensor,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of a batch; return ``share`` of its loss and accuracy."""
        with self._forward():
            image_features = self.image_inputs.features(images)
            if class_features is None:
                class_features = self.text_inputs.features(prompts)
            scale = self.config.logit_scale or self.model.logit_scale()
            logits = scale * image_features @ class_features.T
            loss = nn.functional.cross_entropy(
                logits.float(), targets, label_smoothing=self.config.label_smoothing
            )
            loss = loss * share
        self.scaler.scale(loss).backward()
        accuracy = (logits.detach().argmax(dim=-1) == targets).float().mean()
        return loss.detach(), accuracy * share

    def run(
        self, on_step: OnStep | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Train from the present step to the last, or until ``should_stop`` returns True.

        Args:
            on_step: called about a hundred times.
            should_stop: asked after every step.

        Raises:
            Diverged: the loss or a parameter is NaN or infinite, or the loss rose to that of
                guessing.
            KeyboardInterrupt: Ctrl-C was pressed; the last whole step is saved.
            UserError: the checkpoint cannot be written.
        """
        self.model.net.eval()  # batch norms use their stored statistics
        # folded once for the whole training: finding the pairs takes a forward pass
        with folded_conv_bn(find_conv_bn_pairs(self.model)):
            start = time.perf_counter()
            self._fill_caches()
            self._choose_plan()
            self.state.seconds += time.perf_counter() - start
            for restarts_left in reversed(range(self.restarts + 1)):
                try:
                    with self._cuda_graph():
                        return self._take_steps(on_step, should_stop)
                except Diverged:
                    if not restarts_left:
                        raise
                    self._restart()

    def _restart(self) -> None:
        """Go back to the start, with a lower learning rate."""
        before = float(self.schedule.base_lrs[0])
        rate = before * _LOWER
        self.state.notes.append(
            f"Training diverged at a learning rate of {before:.3g}; it started again at {rate:.3g}."
        )
        self.adapter.reset()
        self.state.step, self.state.history = 0, []
        self._set_up_optimizer(rate)
        self.save()

    def _fill_caches(self) -> None:
        """Run what is frozen once, in the forward pass that the steps will use."""
        epochs = math.ceil(self.state.steps * self.batch_size / len(self.labels))
        with self._forward():
            self.state.notes += self.image_inputs.fill_cache(self.adapter, epochs, self.on_progress)
            with one_stage("encoding prompts", self.on_progress):
                self.state.notes += self.text_inputs.fill_cache()

    def _choose_plan(self) -> None:
        """Choose what the settings leave open, by the free memory."""
        asked, state = self.config, self.state
        parts, checkpoints = asked.accumulate or state.accumulate, asked.checkpoint_blocks
        if self.text_inputs.is_per_image:  # the loss is over a part's classes
            parts = parts or 1
        # the same numbers in every process, so that all choose the same
        images = math.ceil(self.batch_size / self.distributed.count)
        device = self.model.device
        free = from_main_process(lambda: free_memory(device) // local_processes(device), device)
        is_open = parts is None or checkpoints is None
        if is_open and not self._certainly_fits(images, free):
            with one_stage("measuring the memory of a step", self.on_progress):
                self.plan, notes = choose_plan(
                    images, free, parts, checkpoints, self._take_dry_step
                )
            state.notes += notes
        state.accumulate = self.plan.parts

    @torch.no_grad()
    def _certainly_fits(self, images: int, free: int) -> bool:
        """Return whether a whole step fits, by forward passes of an image and of a few prompts."""
        prompts, share = self.text_inputs.few(8)
        strength, self.adapter.strength = self.adapter.strength, 0.0  # no update is computed
        try:
            with self._forward(), TensorMemory() as of_image:
                self.image_inputs.features(self.image_inputs.blank(1))
            with self._forward(), TensorMemory() as of_prompts:
                self.text_inputs.features(prompts)
        finally:
            self.adapter.strength = strength
        weights = sum(weight.base.nbytes for weight in self.adapter.weights.values())
        of_classes = math.ceil(of_prompts.allocated / share)
        return certainly_fits(images, of_image.allocated, of_classes, weights, free)

    def _take_dry_step(self, plan: Plan, images: int) -> None:
        """Compute the gradients of parts of so many blank images, and forget them."""
        usual, self.plan = self.plan, plan
        parts = _split(slice(0, images * plan.parts), plan.parts)
        labels = self.labels[torch.arange(images * plan.parts) % len(self.labels)]
        try:
            prompts, targets = self.text_inputs.draw(labels, torch.Generator(), parts)
            blank = self.image_inputs.blank(len(labels))
            self._add_all_gradients(blank, prompts, targets.to(self.model.device), parts)
        finally:
            self.plan = usual
            self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _cuda_graph(self) -> Iterator[None]:
        """Record the steps as a CUDA graph, on a GPU and if every step has the same shapes."""
        device = self.model.device
        shapes_vary = self.text_inputs.number_varies(self.batch_size)
        if device.type != "cuda" or self.distributed.count > 1 or shapes_vary:
            yield
            return
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
        graph = self._update = CUDAGraphStep(self.update, device)
        try:
            yield
        finally:
            self._update = self.update
            graph.reset()
            if graph.failure:
                self.state.notes.append(f"Steps were not recorded as a CUDA graph: {graph.failure}")

    def _take_steps(self, on_step: OnStep | None, should_stop: Callable[[], bool]) -> None:
        state = self.state
        logger = TrainLogger(
            state,
            self.adapter,
            self.optimizer.defaults["lr"],
            on_step,
            self.on_progress,
            partial(self.accuracy, self.eval_images) if self.eval_images else None,
        )
        saved = time.perf_counter()
        reading = self.image_inputs.reading(state.step, state.steps, self.batch_size)
        with reading, DeferredCtrlC() as ctrl_c:
            while state.step < state.steps:
                if state.step and self.distributed.any(should_stop()):
                    break
                self.stopwatch.start()
                with self._saved_if_out_of_memory():
                    loss, accuracy = self.train_step()
                self.stopwatch.stop()
                state.step += 1
                try:
                    logger.log(loss, accuracy, self.schedule.get_last_lr()[0])
                    ctrl_c.pressed = self.distributed.any(ctrl_c.pressed)
                    ctrl_c.check()
                except KeyboardInterrupt:
                    self.save()
                    raise
                if time.perf_counter() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.save()
                    saved = time.perf_counter()
            if state.step == state.steps:
                logger.check_end(len(self.text.classes))
            self.save()  # an interrupted evaluation need not train again

    def save(self) -> None:
        """Bring the times up to date, and write the checkpoint if there is a run folder."""
        took = self.stopwatch.read()
        self.state.step_seconds += took
        self.state.seconds += sum(took)
        if self.checkpoint and is_main_process():
            self.checkpoint.save()

    @contextmanager
    def _saved_if_out_of_memory(self) -> Iterator[None]:
        """Save the state of the last step if there is no memory for the next."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and self.state.step and not self._is_updating:
                with suppress(UserError, MemoryError):  # an older checkpoint may be there
                    self.save()
            raise

    @torch.inference_mode()
    def accuracy(self, images: ImageBatch) -> float:
        """Return the share of test images that the model classifies correctly at this step."""
        labels = images.labels.to(self.model.device)
        with self._forward():
            batches = images.images.split(_EVAL_BATCH)
            features = torch.cat([self.model.encode_image(batch) for batch in batches])
            answers = (features @ self.text.features().T).argmax(dim=-1)
        return float((answers == labels).float().mean())

    @contextmanager
    def _forward(self) -> Iterator[None]:
        """Make forward passes those of a step, in its precision."""
        checkpoints = self.plan.checkpoints_blocks
        step = training_forward(self.model.net, self.adapter, checkpoints_blocks=checkpoints)
        with step, self._autocast():
            yield

    def _autocast(self) -> torch.autocast:
        """Return the context that computes in the training's precision."""
        dtype = torch.float16 if self.state.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.model.device.type, dtype, enabled=self.state.precision != "fp32")


def _split(whole: slice, count: int) -> list[slice]:
    """Return a slice in ``count`` parts of about equal size; fewer if it is shorter than that."""
    length = whole.stop - whole.start
    count = min(count, length)
    edges = [whole.start + length * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]
