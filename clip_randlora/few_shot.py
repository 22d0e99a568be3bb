"""The few-shot recipe: draw shots, train the adapter, compare, save."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clip_randlora.adapters import Adapter, AdapterConfig, LinearProbe, ZeroShot, attach
from clip_randlora.clip.class_names import clean_class_names
from clip_randlora.clip.models import Model
from clip_randlora.clip.prompts import check_prompts, class_words, make_prompts, record_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import Data, ImageBatch, decode_shots
from clip_randlora.errors import OutOfMemory, is_out_of_memory
from clip_randlora.evaluation import PairedPredictor, predict_split, score
from clip_randlora.runs import run_config, run_folder
from clip_randlora.runs.image_record import ImageRecord, read_images, record_images
from clip_randlora.runs.run import Run
from clip_randlora.training.cache import Cache
from clip_randlora.training.config import TrainConfig, choose_crop_size
from clip_randlora.training.distributed import (
    from_main_process,
    is_main_process,
    launch_notes,
    process_count,
)
from clip_randlora.training.linear_probe import ProbeTraining
from clip_randlora.training.logger import Diverged, Step
from clip_randlora.training.trainer import Loop, freed_memory_kept
from clip_randlora.utils.progress import OnProgress

_STORED_SCALE = 1.15  # training images are kept this much larger than the crops made of them


class Interrupted(KeyboardInterrupt):
    """Training was stopped with Ctrl-C; ``folder`` holds what is needed to go on, if any."""

    def __init__(self, step: int, folder: Path | None):
        super().__init__(f"stopped after step {step}")
        self.step, self.folder = step, folder


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
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    watch: int = 0,
    cache: Cache | None = None,
) -> Run:
    """Teach a model the classes of a data set, and compare it with its zero-shot self.

    Under torchrun or `accelerate launch` every process takes part of each batch; the result is that
    of one process with the same batches, to rounding. The main process alone evaluates and writes.

    Args:
        model: without an adapter; the trained adapter is attached to it on return.
        data: training and test images.
        config: settings; the defaults need no tuning.
        out: folder to write the run to; None to keep it in memory.
        resume: go on with the interrupted run in ``out``, on the training and held-out images that
            it began with; the weights come out the same.
        source: what to record about where the data came from, such as ``{"data": PATH}``.
        on_step: called now and then during training.
        on_start: called before training with the adapter and the notes about the data.
        on_progress: told how far every stage is, those before and after the steps too, see
            `clip_randlora.utils.progress.OnProgress`.
        should_stop: asked after every step; if it says so, training ends early, and the run is
            finished with what was learned by then. The adapter file is written before the test
            images are classified.
        watch: classify this many test images now and then during training, for a curve.
        cache: of this model and data, given to several trainings so that they share what is the
            same in all of them; the numbers are the same without it.

    Raises:
        UserError: the settings do not fit the model or the data, ``out`` is taken or cannot be
            written, the training diverged (`training.logger.Diverged`), or memory did not
            suffice (`clip_randlora.errors.OutOfMemory`).
        Interrupted: Ctrl-C; what was trained is saved in ``out``.
    """
    if cache and (cache.model is not model or cache.data is not data):
        raise ValueError("the cache is that of another model or data set")
    config = _with_prompts_of(data, config or TrainConfig())
    if resume and out is not None:
        config = _as_begun(config, run_config.read_train_settings(out))
    config = config.model_copy(update={"method": config.method.with_seed(config.seed)})
    prompts = class_prompts(data, config, out if resume else None)
    asked = record_prompts(prompts, config.templates, config.prompts)
    settings = _settings(model, data, config, source, asked)
    with _exclusive_run_folder(out, settings, resume) as folder, freed_memory_kept(model.device):
        writes = folder is not None and is_main_process()
        adapter = training = None
        try:
            record = read_images(folder) if resume and folder is not None else None
            if record is not None:
                data, cache = record.restore(data), None  # the cache may be of other images
            text = TextClassifier(model, data.classes, list(prompts.values()))
            words = class_words(data.classes, config.prompts)
            notes = check_prompts(model, text.tokens, prompts, words)
            adapter = attach(model.net, config.method)
            training, shots = _prepare(
                model, data, config, adapter, text, folder, cache, record, on_progress
            )
            notes += [*data.notes, *shots.notes, *_missing_towers(adapter), *launch_notes()]
            if on_start:
                on_start(adapter, notes)
            if isinstance(training, Loop):
                if watch:
                    training.watched = _decode_watched(model, data, watch)
                if resume and folder is not None:
                    training.restore()
            if writes:
                known = cache.digests if cache else None
                run_folder.begin(
                    folder, settings, record or record_images(data, shots, known, on_progress)
                )
            try:
                training.run(_told(on_step, on_progress), should_stop or (lambda: False))
            except Diverged:
                if writes and training.step:
                    adapter.save(folder / run_folder.ADAPTER, _task(model, data, asked))
                raise
            notes += training.notes
            if training.step < training.steps:
                notes.append(f"Stopped at step {training.step} of {training.steps}.")
            if writes:
                adapter.save(folder / run_folder.ADAPTER, _task(model, data, asked))
            predictions = from_main_process(
                lambda: predict_split(
                    PairedPredictor(model, adapter, text), data.test, on_progress, cache
                ),
                model.device,
            )
            run = Run(
                model=model,
                adapter=adapter,
                text=text,
                config=config,
                metrics=score(predictions)
                | _facts(model, adapter, training, config, len(predictions.names)),
                history=training.history,
                predictions=predictions,
                notes=notes,
                skipped=[*data.skipped, *shots.skipped, *predictions.skipped],
                folder=folder,
            )
            if writes:
                run_folder.write(run, folder, settings, data)
            return run
        except BaseException as error:
            if adapter is not None:
                adapter.detach()
            if isinstance(error, KeyboardInterrupt):
                begun = folder if folder is not None and run_config.has_config(folder) else None
                raise Interrupted(training.step if training else 0, begun) from None
            if is_out_of_memory(error):
                raise _out_of_memory(config, training, folder) from error
            raise


def _told(
    on_step: Callable[[Step], None] | None, on_progress: OnProgress | None
) -> Callable[[Step], None] | None:
    """Return an ``on_step`` that tells both."""
    if on_progress is None:
        return on_step

    def tell(step: Step) -> None:
        on_progress("training", step.step, step.steps)
        if on_step:
            on_step(step)

    return tell


def _out_of_memory(
    config: TrainConfig, training: Loop | ProbeTraining | _NoTraining | None, folder: Path | None
) -> OutOfMemory:
    """Say what takes less memory, and how to go on with what is saved."""
    step = training.step if training else 0
    saved = ""
    if folder is not None and run_folder.has_checkpoint(folder):
        saved = f"; {folder} has the last saved state, to go on from with the same settings"
    return OutOfMemory(
        f"out of memory after step {step}: end other programs, or set a batch_size below "
        f"{config.batch_size}, a smaller crop_size or fewer blocks{saved}"
    )


def _exclusive_run_folder(
    out: str | Path | None, settings: Mapping[str, Any], resume: bool
) -> AbstractContextManager[Path | None]:
    """Hold the run folder, if there is one: the main process does for all."""
    if out is None:
        return nullcontext()
    return (
        run_folder.exclusive_run_folder(out, settings, resume)
        if is_main_process()
        else nullcontext(Path(out))
    )


@dataclass
class _NoTraining:
    """In place of `clip_randlora.training.trainer.Loop`, where nothing is trained."""

    image_count: int = 0
    precision: str = "fp32"
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool]) -> None:
        """Do nothing."""


def _prepare(
    model: Model,
    data: Data,
    config: TrainConfig,
    adapter: Adapter,
    text: TextClassifier,
    folder: Path | None,
    cache: Cache | None,
    record: ImageRecord | None,
    on_progress: OnProgress | None,
) -> tuple[Loop | ProbeTraining | _NoTraining, ImageBatch]:
    """Decode the training images, in the size that the method needs, and make what trains."""
    if isinstance(config.method, ZeroShot):
        nothing = torch.empty(0, dtype=torch.uint8)
        return _NoTraining(), ImageBatch(nothing, nothing.long(), [])
    is_probe = isinstance(config.method, LinearProbe)
    crop_size = model.image_size if is_probe else choose_crop_size(model, config.crop_size)
    size = crop_size if is_probe else round(crop_size * _STORED_SCALE)
    kept = cache.train_images(size) if cache else None
    shots = decode_shots(
        data.train,
        config.shots,
        config.seed,
        model.square(size),
        kept,
        on_progress,
        is_drawn=record is not None,
    )
    if is_probe:
        return ProbeTraining(model, adapter, text, shots, on_progress), shots
    return Loop(model, adapter, text, shots, crop_size, config, folder, on_progress), shots


def _missing_towers(adapter: Adapter) -> list[str]:
    """Note the towers that are to be adapted and have none of the targets, or not those chosen."""
    config, notes = adapter.config, []
    for tower in getattr(config, "towers", ()):
        if tower not in adapter.towers:
            notes.append(
                f"The {tower} tower has none of {', '.join(config.targets)} and stays as it is."
            )
        elif isinstance(config, AdapterConfig) and config.has_chosen_targets:
            found = [row.target for row in adapter.summary() if row.tower == tower]
            missing = [target for target in config.targets if target not in found]
            if missing:
                notes.append(
                    f"The {tower} tower has no {', '.join(missing)}; {', '.join(found)} is adapted."
                )
    return notes


def _decode_watched(model: Model, data: Data, watch: int) -> ImageBatch:
    """Decode about ``watch`` test images, as many of each class as the others have."""
    per_class = math.ceil(watch / len(data.classes))
    drawn = decode_shots(data.test, per_class, 0, model.square())
    rows = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:watch]
    return ImageBatch(drawn.images[rows], drawn.labels[rows], [drawn.names[row] for row in rows])


def class_prompts(
    data: Data, config: TrainConfig, resumed: str | Path | None = None
) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` of a training.

    Args:
        data: the classes, and what their data set says of prompts.
        config: the settings, which come before the data set's.
        resumed: folder of the run that it goes on with, whose prompts stay as they were.

    Raises:
        UserError: the settings do not fit the classes, or the run's file is damaged.
    """
    if resumed is not None and run_config.has_config(Path(resumed)):
        recorded = run_config.read_prompts(resumed, run_config.read_config(resumed))
        if tuple(recorded) == data.classes:
            return recorded
    config = _with_prompts_of(data, config)
    prompts = make_prompts(data.classes, config.templates, config.prompts)
    return dict(zip(data.classes, prompts, strict=True))


def _with_prompts_of(data: Data, config: TrainConfig) -> TrainConfig:
    """Fill in the data set's templates and names, so that ``config.yaml`` records what is used."""
    cleaned = dict(zip(data.classes, clean_class_names(data.classes), strict=True))
    named = {name: own for name, own in data.prompts.items() if own != (cleaned.get(name),)}
    templates = config.templates or data.templates or DEFAULT_TEMPLATES
    return config.model_copy(update={"templates": templates, "prompts": named | config.prompts})


def _as_begun(config: TrainConfig, begun: Mapping[str, Any]) -> TrainConfig:
    """Fill in what is left open with what the run began with: its version's defaults, it may be."""
    method, recorded = config.method, begun.get("method")
    changes: dict[str, Any] = {}
    if config.beta2 is None:
        changes["beta2"] = begun.get("beta2")
    if isinstance(recorded, Mapping) and isinstance(recorded.get("seed"), int):
        changes["method"] = method.with_seed(recorded["seed"])
    return config.model_copy(update=changes)


def _facts(
    model: Model,
    adapter: Adapter,
    training: Loop | ProbeTraining | _NoTraining,
    config: TrainConfig,
    test_images: int,
) -> dict[str, Any]:
    """Gather what ``metrics.json`` says of the training itself.

    Of methods without optimiser steps, ``step_seconds_median`` is None; the ``steps`` of a linear
    probe are L-BFGS's iterations.
    """
    took = training.step_seconds
    return {
        "trainable_parameters": adapter.num_parameters(),
        "train_seconds": round(training.seconds, 3),
        "step_seconds_median": round(median(took), 4) if took else None,
        "peak_memory_bytes": _peak_memory(model.device),
        "images": {"train": training.image_count, "test": test_images},
        "shots": config.shots,
        "seed": config.seed,
        "method": config.method.method,
        "model": model.name,
        "pretrained": model.pretrained,
        "steps": training.step,
        "precision": training.precision,
        "device": str(model.device),
        "processes": process_count(),
    }


def _task(model: Model, data: Data, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what a classifier needs beside the adapter's numbers."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "classes": list(data.classes),
        **asked,
    }


def _settings(
    model: Model,
    data: Data,
    config: TrainConfig,
    source: Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Gather what a run folder's ``config.yaml`` records."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "data": dict(source or {"data": data.name, "class_folders": data.class_folders}),
        "classes": list(data.classes),
        **asked,
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


__all__ = ["Interrupted", "Run", "Step", "TrainConfig", "fit"]
