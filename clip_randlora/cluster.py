"""A run's classifier on the workers of a Ray cluster, for more images than suit one machine.

Ray Data streams the images to the workers, a part at a time, and the answers back, in order. An
image's pixels never pass through this process: a worker reads the file itself.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_randlora.classifier import Answers, Classifier, check_inputs
from clip_randlora.clip.prompts import Prompts
from clip_randlora.data import Skipped, Split, UnreadableImage
from clip_randlora.data.inputs import Input
from clip_randlora.errors import UserError, is_out_of_memory, needs_extra
from clip_randlora.evaluation import BATCH, Predictions
from clip_randlora.runs.confidence_file import read_confidence
from clip_randlora.runs.task import read_task
from clip_randlora.utils.hub import is_hub_name
from clip_randlora.utils.progress import OnProgress, report_progress
from clip_randlora.utils.ray_cluster import connected, import_ray

_CPUS = 4  # of a worker without a GPU: each has the model in memory
_BATCHES_ON_GPU = 8  # in a part: a worker decodes a batch of it while it computes another
_MOST_ATTEMPTS = 4  # at a part whose worker was lost


@dataclass(frozen=True)
class _Job:
    """What a worker needs to load the run.

    Attributes:
        run, strength, device: as for `Classifier.load`.
        others: arguments of `Classifier.for_classes`, if it answers among other classes.
        folder: that relative paths start from.
    """

    run: str
    strength: float
    device: str | None
    folder: str
    others: tuple[Sequence[str], Sequence[str] | None, Prompts | None] | None = None

    def load(self) -> Classifier:
        """Load the classifier."""
        classifier = Classifier.load(self.run, strength=self.strength, device=self.device)
        return classifier if self.others is None else classifier.for_classes(*self.others)


class ClusterClassifier:
    """Classifies as `Classifier` does, on every worker of a Ray cluster.

    The run, the images and the base model's weights must have the same paths on every machine, and
    this package must be installed there.

    Attributes:
        classes: the class names, as the folders of the training images spelt them.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        strength: float = 1.0,
        device: str | None = None,
        address: str | None = None,
        workers: int | None = None,
    ):
        """Check the run. The cluster is joined when images are classified, and left after that.

        Args:
            run: as for `Classifier.load`.
            strength: as for `Classifier.load`.
            device: as for `Classifier.load`.
            address: ``HOST:PORT`` of a running cluster. By default `RAY_ADDRESS` of the
                environment, a cluster that this process has joined, or one of this machine alone.
            workers: number of processes, each with the model in memory, that share the GPUs if
                there are any, else the CPU cores. By default one for each GPU, or one for every
                four cores.

        Raises:
            UserError: the run cannot be read, or Ray is not installed.
        """
        if workers is not None and workers < 1:
            raise UserError(f"--workers {workers}: give 1 or more")
        _import_ray_data()
        self.classes = read_task(run).classes
        self._address, self._workers = address, workers
        run = str(run) if is_hub_name(run) else str(Path(run).absolute())
        self._job = _Job(run, strength, device, os.getcwd())

    def for_classes(
        self,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        names: Prompts | None = None,
    ) -> ClusterClassifier:
        """Return a classifier of other classes; see `Classifier.for_classes`.

        What that raises is raised when images are classified.
        """
        other = object.__new__(ClusterClassifier)
        other.classes = tuple(classes)
        other._address, other._workers = self._address, self._workers
        other._job = replace(self._job, others=(classes, templates, names))
        return other

    def predict(self, images: Any, *, on_error: str = "raise") -> list[dict[str, Any]]:
        """Classify images; see `Classifier.predict`."""
        return [answer for _, answer in self.predict_each(images, on_error=on_error)]

    def predict_each(
        self, images: Any, *, on_error: str = "raise"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Classify images, and yield the name and the answer of each, in order.

        See `Classifier.predict_each`. All images are listed, but not read, before the first answer.

        Raises:
            UserError: also if the cluster cannot be reached, or a worker cannot load the run.
        """
        parts = self.classify(list(check_inputs(images, on_error)))
        return chain.from_iterable(part.each(self.classes, on_error) for part in parts)

    def predict_split(self, split: Split, on_progress: OnProgress | None = None) -> Predictions:
        """Classify every image of a split; see `Classifier.predict_split`."""
        entries = [Input(item.name, item.open) for item in split]
        parts = report_progress(
            self.classify(entries),
            "classifying images",
            len(entries),
            on_progress,
            lambda part: len(part.names),
        )
        kept, names, labels = list[Answers](), list[str](), list[int]()
        skipped: list[Skipped] = []
        items = iter(split)
        for part in parts:
            kept.append(part)
            for error in part.errors:
                item = next(items)
                if error is None:
                    names.append(item.name)
                    labels.append(item.label)
                else:
                    skipped.append(Skipped(error.name, error.reason))
        if not names:
            first = skipped[0]
            raise UserError(
                f"none of {len(skipped)} images can be decoded, e.g. {first.name}: {first.reason}"
            )
        zero_shot, tuned = (
            torch.cat([getattr(part, which) for part in kept]) for which in ("zero_shot", "tuned")
        )
        temperatures = (1.0, 1.0)
        if self._job.others is None:
            own = read_confidence(self._job.run)
            temperatures = own.temperature_at(0.0), own.temperature_at(self._job.strength)
        labelled = names, torch.tensor(labels)
        return Predictions(
            split.classes, *labelled, zero_shot, tuned, skipped, temperatures=temperatures
        )

    def classify(self, entries: Sequence[Input]) -> Iterator[Answers]:
        """Classify images, and yield the answers for some of them at a time, in order.

        Raises:
            UserError: the cluster cannot be reached or has too few resources, a worker cannot load
                the run, or the workers were lost again and again.
        """
        if not entries:
            return
        ray = _import_ray_data()
        with connected(self._address), _silent_ray_data():
            wants_gpus = self._job.device is None or self._job.device.startswith("cuda")
            pool = share_out(_resources(ray), self._workers, wants_gpus)
            size = BATCH * (_BATCHES_ON_GPU if pool.gpus else 1)
            parts = [
                {"first": first, "images": ray.cloudpickle.dumps(entries[first : first + size])}
                for first in range(0, len(entries), size)
            ]
            attempts = ray.remote(num_cpus=0)(_Attempts).remote()
            dataset = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
                _Worker,
                fn_constructor_args=(self._job, attempts, pool.cpus, len(self.classes)),
                batch_size=1,
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(parts))),
            )
            # a lost worker is replaced, and what it had is done again: Ray Data's default
            dataset.context.enable_progress_bars = False
            dataset.context.print_on_execution_start = False
            dataset.context.execution_options.preserve_order = True
            done = 0
            try:
                for table in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                    yield _read_table(table, entries, done)
                    done += len(table["place"])
            except ray.exceptions.RayError as error:
                if is_out_of_memory(error):
                    raise _out_of_memory("a worker") from error
                raise
            if done < len(entries):
                raise RuntimeError(f"Ray Data returned {done} of {len(entries)} answers")


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what each takes of the cluster: CPU cores, or GPUs."""

    workers: int
    cpus: int | None
    gpus: float | None


def share_out(
    nodes: Sequence[Mapping[str, float]], workers: int | None, wants_gpus: bool = True
) -> Pool:
    """Share the resources of a cluster out among workers.

    Args:
        nodes: what each machine has, ``CPU`` and ``GPU``.
        workers: how many are asked for; by default one a GPU, else one for every four CPU cores.
        wants_gpus: whether GPUs are used, if there are any.

    Raises:
        UserError: there are fewer CPU cores than workers.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and wants_gpus:
        workers = workers or gpus
        return Pool(workers, None, 1 / math.ceil(workers / gpus))
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if sum(cores) < (workers or 1):
        raise UserError(f"--workers {workers or 1}: the cluster has {sum(cores)} CPU cores in all")
    if workers is None:
        cpus = min(_CPUS, *cores)
        return Pool(sum(count // cpus for count in cores), cpus, None)
    # the most that fit: a worker's cores are on one machine
    fitting = (
        cpus
        for cpus in range(sum(cores) // workers, 0, -1)
        if sum(count // cpus for count in cores) >= workers
    )
    return Pool(workers, next(fitting), None)


class _Attempts:
    """Counts how often each part was begun, in a process of its own."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, first: int) -> int:
        """Return how often the part was begun, this time included."""
        self._begun[first] += 1
        return self._begun[first]


class _Worker:
    """One process of the cluster, which loads the run once and classifies part after part."""

    def __init__(self, job: _Job, attempts: Any, cpus: int | None, classes: int):
        self._job, self._attempts, self._classes = job, attempts, classes
        with suppress(OSError):  # it may not be there, and absolute paths do not need it
            os.chdir(job.folder)
        if cpus is not None:
            torch.set_num_threads(cpus)
        self._classifier: Classifier | None = None

    def __call__(self, part: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the answers for one part, batch by batch.

        An error of the user's is an answer too: Ray Data would only keep an exception's text.
        """
        import ray

        first = int(part["first"][0])
        attempt = ray.get(self._attempts.begin.remote(first))
        try:
            if attempt > _MOST_ATTEMPTS:
                raise UserError(
                    f"--engine ray: a worker was lost {_MOST_ATTEMPTS} times at the same images; "
                    f"if memory ran out, give fewer --workers"
                )
            if self._classifier is None:  # not earlier: an actor that cannot be made has no answers
                self._classifier = self._job.load()
            for answers in self._classifier.classify(pickle.loads(part["images"][0])):
                yield _write_table(answers, first)
                first += len(answers.names)
        except Exception as error:
            where = f"a worker on {platform.node()}"
            if is_out_of_memory(error):
                error = _out_of_memory(where)
            elif isinstance(error, OSError):
                error = UserError(
                    f"{where} cannot read {error.filename} ({error.strerror}); the run and the "
                    f"images must have the same paths on every machine"
                )
            if not isinstance(error, UserError):
                raise
            nothing = torch.zeros(1, self._classes)
            failed = Answers([""], [None], nothing, nothing)
            yield _write_table(failed, first) | {"failure": np.array([str(error)], dtype=object)}


def _write_table(answers: Answers, first: int) -> dict[str, np.ndarray]:
    """Return a row for each image; one without an answer has zeros in place of probabilities."""
    count, classes = len(answers.names), answers.zero_shot.shape[1]
    good = np.array([error is None for error in answers.errors])
    table = {
        "place": first + np.arange(count),
        "failure": np.array([""] * count, dtype=object),
        "broken": np.array([e.name if e else "" for e in answers.errors], dtype=object),
        "reason": np.array([e.reason if e else "" for e in answers.errors], dtype=object),
    }
    for which in ("zero_shot", "tuned"):
        table[which] = np.zeros((count, classes), np.float32)
        table[which][good] = getattr(answers, which).numpy()
    return table


def _read_table(table: Mapping[str, np.ndarray], entries: Sequence[Input], done: int) -> Answers:
    """Return the answers of a table, which is to begin with image ``done``."""
    failure = next(filter(None, table["failure"]), None)
    if failure is not None:
        raise UserError(failure)
    places = table["place"]
    if places.tolist() != list(range(done, done + len(places))):
        raise RuntimeError(f"Ray Data returned the answers from {done} on in another order")
    errors = [
        UnreadableImage(broken, reason) if reason else None
        for broken, reason in zip(table["broken"], table["reason"], strict=True)
    ]
    good = np.array([error is None for error in errors])
    zero_shot, tuned = (torch.from_numpy(table[which][good]) for which in ("zero_shot", "tuned"))
    names = [entry.name for entry in entries[done : done + len(places)]]
    return Answers(names, errors, zero_shot, tuned)


def _out_of_memory(who: str) -> UserError:
    return UserError(f"--engine ray: {who} ran out of memory; give fewer --workers")


def _resources(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _import_ray_data() -> Any:
    ray = import_ray()
    with needs_extra("--engine ray", "cluster"):
        import ray.data
    return ray


@contextmanager
def _silent_ray_data() -> Iterator[None]:
    """Keep Ray Data's lines off standard error; its log file has them."""
    lines = [
        h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)
    ]
    levels = [handler.level for handler in lines]
    for handler in lines:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(lines, levels, strict=True):
            handler.setLevel(level)
