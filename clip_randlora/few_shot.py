"""Few-shot training: draw images, train the adapter, compare it with zero-shot, write the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from clip_randlora.adapters import (
    Adapter,
    AdapterConfig,
    HeadConfig,
    NormTuning,
    ZeroShot,
    attach,
)
from clip_randlora.clip.class_names import clean_class_names
from clip_randlora.clip.models import Model
from clip_randlora.clip.none_of_these import GENERIC_NAMES, is_none_of_these
from clip_randlora.clip.prompts import check_prompts, class_words, make_prompts, record_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence import Confidence
from clip_randlora.data import (
    Data,
    DiskCache,
    ImageBatch,
    StreamedImages,
    TrainingImages,
    decode_shots,
)
from clip_randlora.data.coop_draws import MOST_VALIDATION_SHOTS
from clip_randlora.data.decoding import DecodedImages
from clip_randlora.data.sampling import count_shots, draw_validation
from clip_randlora.data.streaming import reason_to_stream
from clip_randlora.errors import OutOfMemory, is_out_of_memory
from clip_randlora.evaluation import PairedPredictor, predict_split, score
from clip_randlora.runs import run_config, run_folder
from clip_randlora.runs.calibration import calibrate
from clip_randlora.runs.confidence_file import write_confidence
from clip_randlora.runs.further_tests import FurtherTest, prepare_test, refuse_head, run_tests
from clip_randlora.runs.image_record import read_images, record_images
from clip_randlora.runs.run import Run
from clip_randlora.runs.tracking import Tracking, check_trackers
from clip_randlora.training.allocator import keep_freed_memory
from clip_randlora.training.cache import Cache
from clip_randlora.training.config import TrainConfig, choose_crop_size, default_steps
from clip_randlora.training.distributed import (
    connect_processes,
    from_main_process,
    is_main_process,
    launch_notes,
    process_count,
)
from clip_randlora.training.head_trainer import HeadTrainer
from clip_randlora.training.logger import Diverged
from clip_randlora.training.state import OnStep, StepMetrics, Training, TrainState
from clip_randlora.training.trainer import Trainer
from clip_randlora.utils.devices import peak_memory
from clip_randlora.utils.memory import free_memory
from clip_randlora.utils.progress import OnProgress, one_stage

__all__ = ["Interrupted", "Run", "Step", "StepMetrics", "TrainConfig", "class_prompts", "fit"]

Step = StepMetrics
"""The older name of `StepMetrics`."""

_TRACKED_FIGURES = ("curves", "confusion")
_STORED_SCALE = 1.15  # training images are decoded this much larger than their crops


class Interrupted(KeyboardInterrupt):
    """Training was stopped with Ctrl-C; ``folder`` can be resumed, if there is one."""

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
    on_step: OnStep | None = None,
    on_start: Callable[[Adapter, list[str]], None] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    watch: int = 0,
    cache: Cache | None = None,
    image_cache: str | Path | None = None,
    also_test: Mapping[str, Data] | None = None,
    restarts: int = 3,
    track: str | Sequence[str] = (),
) -> Run:
    """Teach a model the classes of a data set, and compare it with its zero-shot self.

    Under torchrun or `accelerate launch` every process takes a part of each batch. The result is
    that of one process with the same batches, up to rounding. Only the main process evaluates and
    writes.

    Args:
        model: a model without an adapter; on return it has the trained one.
        data: training and test images.
        config: settings; the defaults need no tuning.
        out: folder to write the run to; None to keep it in memory.
        resume: continue the interrupted run in ``out``, with its training and held-out images; the
            weights are those of an uninterrupted run.
        source: where the data came from, to record it: ``{"data": PATH}`` for example.
        on_step: called now and then during training.
        on_start: called before training with the adapter and the notes about the data.
        on_progress: told how far every stage is, see `clip_randlora.utils.progress.OnProgress`.
        should_stop: asked after every step; if it returns True, training ends early and the run is
            finished with what was learned so far. The adapter file is written before the test
            images are classified.
        watch: classify this many test images now and then during training, for a curve.
        cache: a cache of this model and data, to share between trainings what is the same in all
            of them; it does not change the numbers.
        image_cache: folder for decoded training images, which later trainings read instead of
            decoding large photographs again; see `clip_randlora.data.DiskCache`.
        also_test: further data sets by the names of their results. Their test images are classified
            among their own classes, with the prompts that a training on them would have; nothing of
            them is trained on. ``metrics["also_test"]`` has the results, see
            `clip_randlora.runs.further_tests.run_tests`.
        restarts: how often a training that diverges starts again, each time at a third of the
            learning rate; the run's notes say so.
        track: names of `clip_randlora.runs.tracking.TRACKERS` that get the settings, the rows of
            ``history.csv`` as they come, the final metrics and the figures. One that fails during
            the training is left out, and a note says so. It is no setting of the run, so a resumed
            run has to be asked again.

    Raises:
        UserError: the settings do not fit the model or the data, the method has a head and cannot
            answer for ``also_test``, ``out`` is taken or cannot be written, a tracker is unknown,
            not installed or cannot be opened, the training diverged
            (`clip_randlora.training.logger.Diverged`), or memory did not suffice
            (`clip_randlora.errors.OutOfMemory`).
        Interrupted: Ctrl-C was pressed; what was trained is saved in ``out``.
    """
    if cache and (cache.model is not model or cache.data is not data):
        raise ValueError("the cache belongs to another model or data set")
    trackers = check_trackers(track)
    resumed = out if resume else None
    also_test, asked = also_test or {}, config or TrainConfig()
    if also_test:
        refuse_head(asked.method)
    config = _complete_config(_without_names_of(also_test, asked, data), data, resumed)
    config, streamed = _choose_stream(model, data, config)
    prompts = class_prompts(data, config, resumed)
    settings = _settings(model, data, config, source, prompts)
    state, notes = TrainState(), list[str]()
    with (
        _exclusive_run_folder(out, settings, resume) as folder,
        keep_freed_memory(model.device),
        _explain_errors(state, config, folder),
        ExitStack() as on_error,
        _tracking(trackers, folder, data, config, notes) as tracking,
    ):
        # prepare: the classes, the adapter, the training images
        record = read_images(folder) if resume and folder is not None else None
        if record is not None:
            data, cache = record.restore(data), None  # the cache may hold other images
        with one_stage("reading prompts", on_progress):
            text = TextClassifier(model, data.classes, list(prompts.values()))
            words = class_words(data.classes, config.prompts)
            notes += check_prompts(model, text.tokens, prompts, words)
        further = []
        for name, other in also_test.items():
            test, remarks = _prepare_further_test(model, name, other, asked)
            further.append(test)
            notes += remarks
        adapter = attach(model.net, config.method)
        on_error.callback(adapter.detach)
        if config.strength != 1:
            adapter.scale_by(1)  # refused before the training, not after it
        train_images = _draw_train_images(
            model, data, config, cache, image_cache, record is not None, on_progress
        )
        notes += [*data.notes, *streamed, *train_images.notes]
        notes += [*_missing_targets(adapter), *launch_notes()]
        eval_images = _decode_eval_images(model, data, watch, on_progress) if watch else None
        training: Training | None = None
        if isinstance(config.method, HeadConfig):
            chooses = config.method.uses_validation
            validation = (
                _decode_validation_images(model, data, config, on_progress) if chooses else None
            )
            training = HeadTrainer(
                model, adapter, text, train_images, config, state, validation, on_progress
            )
        elif not isinstance(config.method, ZeroShot):
            training = Trainer(
                model,
                adapter,
                text,
                train_images,
                config,
                state,
                folder,
                resume=resume,
                eval_images=eval_images,
                on_progress=on_progress,
                restarts=restarts,
            )
        if on_start:
            on_start(adapter, notes)

        # train
        written_folder = folder if is_main_process() else None
        if written_folder is not None:
            known = cache.digests if cache else None
            record = record or record_images(data, train_images, known, on_progress)
            run_folder.begin(written_folder, settings, record)
        if trackers:
            connect_processes(model.device)  # accelerate's trackers ask for its state
            tracking.start(_tracked_settings(model, data, config))

        def report(step: StepMetrics) -> None:
            tracking.log_history(state.history)
            if on_step:
                on_step(step)

        try:
            if training is not None:
                training.run(report, should_stop or (lambda: False))
        except Diverged:
            if state.step:
                _save_adapter(adapter, settings, written_folder)
            raise
        if config.strength != 1:
            adapter.scale_by(config.strength)
        _save_adapter(adapter, settings, written_folder)
        confidence = Confidence()
        if config.calibrate:
            confidence, features = from_main_process(
                lambda: _calibrate(
                    model, adapter, text, data, train_images, config, training, on_progress
                ),
                model.device,
            )
            if written_folder is not None:
                write_confidence(written_folder, confidence, features)
                known_by = {"confidence": confidence.model_dump(mode="json")}
                _save_adapter(adapter, settings | known_by, written_folder)
        notes += state.notes
        if state.step < state.steps:
            notes.append(f"Stopped at step {state.step} of {state.steps}.")

        # compare
        predictions = from_main_process(
            lambda: predict_split(
                PairedPredictor(model, adapter, text, on_progress, confidence),
                data.test,
                on_progress,
                cache,
            ),
            model.device,
        )
        images = {"train": len(train_images), "test": len(predictions.names)}
        metrics = score(predictions) | _facts(model, adapter, state, config, images)
        metrics["temperature"] = {"zero_shot": confidence.zero_shot, "tuned": confidence.tuned}
        skipped = [*data.skipped, *train_images.skipped, *predictions.skipped]
        if further:
            metrics["also_test"], unread = from_main_process(
                lambda: run_tests(further, model, adapter, on_progress, cache), model.device
            )
            skipped += unread

        # write
        run = Run(
            model=model,
            adapter=adapter,
            text=text,
            config=config,
            metrics=metrics,
            history=state.history,
            predictions=predictions,
            notes=notes,
            skipped=skipped,
            folder=folder,
            confidence=confidence,
        )
        if written_folder is not None:
            with one_stage("writing the run", on_progress):
                run_folder.write(run, written_folder, settings, data)
        if trackers and is_main_process():
            with one_stage("reporting the results", on_progress):
                _report_results(tracking, run, data)
        on_error.pop_all()  # keep the adapter attached
        return run


def class_prompts(
    data: Data, config: TrainConfig, resumed: str | Path | None = None
) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` of a training.

    Args:
        data: the classes, and the prompts that the data set suggests.
        config: the settings, which override the data set's.
        resumed: folder of the run that is resumed, whose prompts stay as they were.

    Raises:
        UserError: the settings do not fit the classes, or the run's file is damaged.
    """
    if resumed is not None and run_config.has_config(resumed):
        recorded = run_config.read_prompts(resumed, run_config.read_config(resumed))
        if tuple(recorded) == data.classes:
            return recorded
    config = _with_prompts_of(data, config)
    prompts = make_prompts(data.classes, config.templates, config.prompts)
    return dict(zip(data.classes, prompts, strict=True))


def _complete_config(config: TrainConfig, data: Data, resumed: str | Path | None) -> TrainConfig:
    """Fill in what is left open, so that ``config.yaml`` records what is used.

    A resumed run keeps what it began with: the defaults of its version may have been others.
    """
    config = _with_prompts_of(data, config)
    begun = run_config.read_train_settings(resumed) if resumed is not None else {}
    method, recorded = config.method, begun.get("method")
    if isinstance(recorded, Mapping) and isinstance(recorded.get("seed"), int):
        method = method.with_seed(recorded["seed"])
    beta2 = begun.get("beta2") if config.beta2 is None else config.beta2
    flip = config.flip if "flip" in config.model_fields_set else begun.get("flip", config.flip)
    calibrate = config.calibrate
    if "calibrate" not in config.model_fields_set:
        calibrate = begun.get("calibrate", calibrate)
    left_open = ("stream", "accumulate", "checkpoint_blocks")
    return config.model_copy(
        update={
            "method": method.with_seed(config.seed),
            "beta2": beta2,
            "flip": flip,
            "calibrate": calibrate,
            **{name: begun.get(name) for name in left_open if getattr(config, name) is None},
        }
    )


def _choose_stream(model: Model, data: Data, config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Decide whether the training images are streamed, if that is left open; return a note."""
    if config.stream is not None or isinstance(config.method, ZeroShot):
        return config.model_copy(update={"stream": bool(config.stream)}), []
    images = sum(count_shots(config.shots, count) for count in data.train.counts().values())
    steps = config.steps or default_steps(
        images, config.batch_size, config.epochs, config.min_steps, config.max_steps
    )
    is_head = isinstance(config.method, HeadConfig)
    uses = images if is_head else steps * config.batch_size
    size, device = _stored_size(model, config), model.device
    # they lie in both memories; and where processes share a machine, each sees another free amount
    reason = from_main_process(
        lambda: reason_to_stream(
            images, size, uses, min(free_memory(device), free_memory(torch.device("cpu")))
        ),
        device,
    )
    notes = [f"Training images are decoded as the steps need them: {reason}."] if reason else []
    return config.model_copy(update={"stream": reason is not None}), notes


def _stored_size(model: Model, config: TrainConfig) -> int:
    """Return the side of the decoded training images, in pixels."""
    if isinstance(config.method, HeadConfig):
        return model.image_size
    return round(choose_crop_size(model, config.crop_size) * _STORED_SCALE)


def _with_prompts_of(data: Data, config: TrainConfig) -> TrainConfig:
    """Fill in the data set's templates and class names."""
    cleaned = dict(zip(data.classes, clean_class_names(data.classes), strict=True))
    named = {name: own for name, own in data.prompts.items() if own != (cleaned.get(name),)}
    # what is in no other class looks like nothing that the folder's name says
    none = {name: GENERIC_NAMES for name in data.classes if is_none_of_these(name)}
    named = none | named
    templates = config.templates or data.templates or DEFAULT_TEMPLATES
    return config.model_copy(update={"templates": templates, "prompts": named | config.prompts})


def _without_names_of(
    also_test: Mapping[str, Data], config: TrainConfig, data: Data
) -> TrainConfig:
    """Return the settings without the prompts of classes that only the further data sets have."""
    elsewhere = {name for other in also_test.values() for name in other.classes}
    only_there = elsewhere - set(data.classes)
    prompts = {name: own for name, own in config.prompts.items() if name not in only_there}
    return config.model_copy(update={"prompts": prompts})


def _prepare_further_test(
    model: Model, name: str, data: Data, config: TrainConfig
) -> tuple[FurtherTest, list[str]]:
    """Prepare the test on a further data set, with the prompts of a training on it."""
    prompts = {each: own for each, own in config.prompts.items() if each in data.classes}
    config = _with_prompts_of(data, config.model_copy(update={"prompts": prompts}))
    words = class_words(data.classes, config.prompts)
    return prepare_test(model, name, data, class_prompts(data, config), words)


def _settings(
    model: Model,
    data: Data,
    config: TrainConfig,
    source: Mapping[str, Any] | None,
    prompts: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Return what a run folder's ``config.yaml`` records."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "data": dict(source or {"data": data.name, "class_folders": data.class_folders}),
        "classes": list(data.classes),
        **record_prompts(prompts, config.templates or DEFAULT_TEMPLATES, config.prompts),
        "train": config.model_dump(mode="json"),
    }


def _tracking(
    trackers: Sequence[str],
    folder: Path | None,
    data: Data,
    config: TrainConfig,
    notes: list[str],
) -> Tracking:
    """Prepare to report the training, in the main process alone."""
    name = folder.resolve().name if folder else f"{data.name}, {config.method.method}"
    return Tracking(trackers if is_main_process() else (), folder, name, notes)


def _tracked_settings(model: Model, data: Data, config: TrainConfig) -> dict[str, Any]:
    """Return what trackers show of the settings: no path of images, and no class's prompts."""
    return {
        "model": model.name,
        "pretrained": model.pretrained,
        "data": data.name,
        "classes": len(data.classes),
        **config.model_dump(mode="json", exclude={"prompts"}),
    }


def _report_results(tracking: Tracking, run: Run, data: Data) -> None:
    """Report the metrics and the figures; they are drawn anew if the run has no folder."""
    with TemporaryDirectory() as scratch:
        if run.folder is not None:
            figures = run_folder.find_figures(run.folder, _TRACKED_FIGURES)
        else:
            figures = run_folder.draw_figures(run, Path(scratch), data, _TRACKED_FIGURES)
        tracking.log_history(run.history)  # all of it, if there was no step left to take
        tracking.log_results(run.metrics, figures)


def _exclusive_run_folder(
    out: str | Path | None, settings: Mapping[str, Any], resume: bool
) -> AbstractContextManager[Path | None]:
    """Lock the run folder, if there is one; the main process does it for all."""
    if out is None:
        return nullcontext()
    if not is_main_process():
        return nullcontext(Path(out))
    return run_folder.exclusive_run_folder(out, settings, resume)


@contextmanager
def _explain_errors(state: TrainState, config: TrainConfig, folder: Path | None) -> Iterator[None]:
    """Say how to continue after Ctrl-C, and what takes less memory if there was not enough."""
    try:
        yield
    except KeyboardInterrupt:
        begun = folder if folder is not None and run_config.has_config(folder) else None
        raise Interrupted(state.step, begun) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        saved = ""
        if folder is not None and run_folder.has_checkpoint(folder):
            saved = f"; {folder} has the last saved state, and --resume continues from it"
        raise OutOfMemory(
            f"out of memory after step {state.step}: end other programs, or set a batch_size "
            f"below {config.batch_size}, a smaller crop_size or fewer blocks{saved}"
        ) from error


def _draw_train_images(
    model: Model,
    data: Data,
    config: TrainConfig,
    cache: Cache | None,
    folder: str | Path | None,
    is_drawn: bool,
    on_progress: OnProgress | None,
) -> TrainingImages:
    """Draw the training images, in the size that the method needs; decode them or let them stream.

    Args:
        model: says how images become squares.
        data: what is drawn from.
        config: has the number of images, the seed, and whether they are streamed.
        cache: keeps decoded images in memory, between trainings.
        folder: keeps decoded images on the disk.
        is_drawn: whether the data's training images are the draw of a resumed run.
        on_progress: told how many are decoded.
    """
    if isinstance(config.method, ZeroShot):
        nothing = torch.empty(0, dtype=torch.uint8)
        return ImageBatch(nothing, nothing.long(), [])
    size = _stored_size(model, config)
    square = model.square(size)
    kept: DecodedImages | None = cache.train_images(size) if cache else None
    if folder is not None:
        kept = DiskCache(folder, repr(model.net.visual.preprocess_cfg), size)
    if config.stream:
        drawn = data.train, config.shots, config.seed
        return StreamedImages(*drawn, square, size, kept, is_drawn=is_drawn)
    return decode_shots(
        data.train,
        config.shots,
        config.seed,
        square,
        kept,
        on_progress,
        is_drawn=is_drawn,
        side=size,
    )


def _decode_eval_images(
    model: Model, data: Data, count: int, on_progress: OnProgress | None
) -> ImageBatch:
    """Decode about ``count`` test images, evenly over the classes."""
    per_class = math.ceil(count / len(data.classes))
    drawn = decode_shots(data.test, per_class, 0, model.square(), None, on_progress)
    rows = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:count]
    return ImageBatch(drawn.images[rows], drawn.labels[rows], [drawn.names[row] for row in rows])


def _decode_validation_images(
    model: Model, data: Data, config: TrainConfig, on_progress: OnProgress | None
) -> ImageBatch | None:
    """Decode the data set's validation images, if it has any: few of them for few shots."""
    if data.validation is None:
        return None
    split = data.validation
    if isinstance(config.shots, int):
        split = draw_validation(split, config.shots, config.seed)
    return decode_shots(split, None, 0, model.square(), None, on_progress)


def _calibrate(
    model: Model,
    adapter: Adapter,
    text: TextClassifier,
    data: Data,
    train_images: TrainingImages,
    config: TrainConfig,
    training: Training | None,
    on_progress: OnProgress | None,
) -> tuple[Confidence, Tensor]:
    """Fit temperatures and thresholds by the validation images, or by those of the training."""
    both = PairedPredictor(model, adapter, text, on_progress)
    validation = None
    if data.validation is not None:
        shots = config.shots if isinstance(config.shots, int) else MOST_VALIDATION_SHOTS
        few = draw_validation(data.validation, shots, config.seed)
        validation = decode_shots(few, None, 0, model.square(), None, on_progress)
    head_data = training.data if isinstance(training, HeadTrainer) else None
    with one_stage("fitting the temperature", on_progress):
        return calibrate(both, train_images, config, validation, head_data)


def _missing_targets(adapter: Adapter) -> list[str]:
    """Note the towers that have none of the targets, or not all of those that were chosen."""
    config = adapter.config
    if isinstance(config, NormTuning):
        towers = [tower for tower in config.towers if tower not in adapter.towers]
        return [f"The {tower} tower has no norms to train and stays as it is." for tower in towers]
    if not isinstance(config, AdapterConfig):
        return []
    notes = []
    for tower in config.towers:
        found = [row.target for row in adapter.summary() if row.tower == tower]
        missing = [target for target in config.targets if target not in found]
        if not found:
            notes.append(
                f"The {tower} tower has none of {', '.join(config.targets)} and stays as it is."
            )
        elif missing and config.has_chosen_targets:
            notes.append(
                f"The {tower} tower has no {', '.join(missing)}; {', '.join(found)} is adapted."
            )
    return notes


def _save_adapter(adapter: Adapter, settings: Mapping[str, Any], folder: Path | None) -> None:
    """Write the adapter with what a classifier needs beside it, if there is a folder."""
    if folder is not None:
        task = {key: value for key, value in settings.items() if key not in ("data", "train")}
        adapter.save(folder / run_folder.ADAPTER, task)


def _facts(
    model: Model,
    adapter: Adapter,
    state: TrainState,
    config: TrainConfig,
    images: Mapping[str, int],
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of the training itself.

    Methods without optimiser steps have None as ``step_seconds_median``; the ``steps`` of a head
    are the iterations of its fit.
    """
    took = state.step_seconds
    return {
        "trainable_parameters": adapter.num_parameters(),
        "train_seconds": round(state.seconds, 3),
        "step_seconds_median": round(median(took), 4) if took else None,
        "peak_memory_bytes": peak_memory(model.device),
        "images": dict(images),
        "shots": config.shots,
        "seed": config.seed,
        "method": config.method.method,
        "model": model.name,
        "pretrained": model.pretrained,
        "steps": state.step,
        "learning_rate": state.learning_rate,
        "precision": state.precision,
        "device": str(model.device),
        "processes": process_count(),
    }
