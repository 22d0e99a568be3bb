"""Find the best settings by cross-validation on the training images alone."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from clip_randlora.adapters import AdapterConfig, HeadConfig, MethodConfig, ZeroShot, find_weights
from clip_randlora.adapters.methods import parse_method
from clip_randlora.clip.models import Model
from clip_randlora.data import Data, Split
from clip_randlora.data.sampling import count_shots, draw_shots
from clip_randlora.errors import UserError
from clip_randlora.evaluation import PairedPredictor, predict_split
from clip_randlora.few_shot import Run, TrainConfig, fit
from clip_randlora.training.cache import Cache
from clip_randlora.training.config import default_learning_rate
from clip_randlora.training.logger import Diverged
from clip_randlora.utils.outputs import atomic_write
from clip_randlora.utils.progress import OnProgress

METHODS = ("randlora", "anchored_head")
SETTINGS, TRIALS = "tuned.yaml", "trials.csv"
_FOLDS = 4
_STRENGTHS = (1.0, 0.75, 0.5)
_STEP = 10**0.5  # between two learning rates
_FINALISTS = 3
TRAININGS = 8
"""A training may take this part of the time, so that there are several."""
_SURE = 0.05  # highest p-value of a difference that is called one

Outcome = Literal["chance", "zero_shot", "default", "unsure", "better"]
"""How the best settings compare: with chance, with no training, and with the default."""


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        method: the method and its settings.
        rate: learning rate, as a multiple of the default; None for what has none.
        strength: of the trained update.
    """

    method: MethodConfig
    rate: float | None = None
    strength: float = 1.0

    def __str__(self) -> str:
        own = self.method.model_dump(mode="json", exclude_defaults=True)
        named = [
            f"{name} {value}" for name, value in own.items() if name not in ("method", "blocks")
        ]
        parts = [self.method.method, *named]
        if self.rate is not None:
            parts.append(f"{self.rate:.3g} x the default rate")
        if isinstance(self.method, AdapterConfig) and self.method.blocks:
            parts.append(f"last {self.method.blocks} blocks")
        if self.strength != 1:
            parts.append(f"strength {self.strength:g}")
        return ", ".join(parts)

    def config(self, base: TrainConfig, default_rate: float) -> TrainConfig:
        """Return the settings of a training, where ``default_rate`` is 1 x the default rate.

        At 1 x the rate stays as it is in ``base``, which leaves it open as a rule.
        """
        settings: dict[str, Any] = {"method": self.method, "strength": self.strength}
        if self.rate is not None and self.rate != 1:
            settings["learning_rate"] = float(f"{self.rate * default_rate:.3g}")
        return base.model_copy(update=settings)


@dataclass(frozen=True)
class Trial:
    """The results of a candidate.

    Attributes:
        candidate: the settings.
        correct: for each validation image that was asked, whether it was answered correctly.
        losses: the log loss of each.
        folds: how many folds were asked.
        seconds: what its trainings and answers took.
        failed: why there is no result, "" if there is one.
    """

    candidate: Candidate
    correct: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    folds: int = 0
    seconds: float = 0.0
    failed: str = ""

    @property
    def accuracy(self) -> float:
        """Share of the validation images that were answered correctly, 0 to 1."""
        return float(self.correct.float().mean()) if len(self.correct) else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson, JASA 1927), 0 to 1; (0, 1) without results."""
        if not len(self.correct):
            return 0.0, 1.0
        from scipy.stats import binomtest  # half a second to import

        counted = binomtest(int(self.correct.sum()), len(self.correct))
        low, high = counted.proportion_ci(method="wilson")
        return float(low), float(high)

    @property
    def rank(self) -> tuple[int, float, float]:
        """What trials are sorted by: folds, then accuracy, then the log loss."""
        return self.folds, self.accuracy, -float(self.losses.mean()) if self.folds else 0.0

    def as_mapping(self) -> dict[str, Any]:
        """Return the results as plain values, see `Tuning.as_mapping`."""
        return {
            "settings": str(self.candidate),
            "candidate": asdict(self.candidate)
            | {"method": self.candidate.method.model_dump(mode="json")},
            "folds": self.folds,
            "images": len(self.correct),
            "accuracy": self.accuracy,
            "seconds": self.seconds,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes:
        config: the best settings, for `fit`.
        trials: the best first.
        notes: what was tried, how sure the result is, and what there was no time for.
        outcome: "chance", nothing is better than that; "zero_shot", no training is better;
            "default", what the search began with is the best; "unsure", the best may be better
            than that by chance; "better", that is unlikely (sign test, p <= 0.05).
        default: the results of what the search began with, the first method at its default rate;
            None if there are none.
    """

    config: TrainConfig
    trials: list[Trial]
    notes: list[str]
    outcome: Outcome = "unsure"
    default: Trial | None = None

    def write(self, folder: str | Path) -> Path:
        """Write ``tuned.yaml``, for ``train --config``, and ``trials.csv``; return the folder.

        Raises:
            UserError: the folder has a ``tuned.yaml``, or cannot be written.
        """
        folder = Path(folder)
        require_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        settings = self.config.model_dump(mode="json", exclude_defaults=True)
        method = self.config.method
        settings["method"] = {"method": method.method} | method.model_dump(
            mode="json", exclude_defaults=True
        )
        notes = "".join(f"# {note}\n" for note in self.notes)
        with atomic_write(folder / SETTINGS) as temporary:
            text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            temporary.write_text(notes + text, encoding="utf-8")
        with (
            atomic_write(folder / TRIALS) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("settings", "folds", "images", "accuracy", "seconds", "failed"))
            for trial in self.trials:
                accuracy, seconds = f"{trial.accuracy:.4f}", f"{trial.seconds:.1f}"
                images = len(trial.correct)
                row = (trial.candidate, trial.folds, images, accuracy, seconds, trial.failed)
                rows.writerow(row)
        return folder

    def as_mapping(self) -> dict[str, Any]:
        """Return what was found as plain values, under the names of the attributes.

        Of a trial there are ``settings``, its candidate as a text, and ``images``, how many were
        asked; the answers for single images are left out.
        """
        return {
            "config": self.config.model_dump(mode="json"),
            "trials": [trial.as_mapping() for trial in self.trials],
            "notes": self.notes,
            "outcome": self.outcome,
            "default": self.default and self.default.as_mapping(),
        }


class SearchInterrupted(KeyboardInterrupt):
    """A search was stopped with Ctrl-C; ``tuning`` is the best of the results that there were."""

    def __init__(self, tuning: Tuning):
        super().__init__(f"stopped after {len(tuning.trials)} settings")
        self.tuning = tuning


def require_free(folder: Path) -> None:
    """Refuse a folder that has the settings of an earlier search.

    Raises:
        UserError: it has.
    """
    if (folder / SETTINGS).exists():
        raise UserError(f"{folder}: has a {SETTINGS}; choose another folder")


def tune(
    model: Model,
    data: Data,
    minutes: float = 10,
    config: TrainConfig | None = None,
    *,
    methods: Sequence[str | Mapping[str, Any] | MethodConfig] = METHODS,
    on_trial: Callable[[Trial], None] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tuning:
    """Search method, learning rate, strength and blocks within a time.

    The training images are split into up to four folds of equal classes. Every candidate trains on
    the other folds and answers for the first. The best go on to the next folds while there is time.
    The test images are never used.

    Args:
        model: a model without an adapter; it has none on return.
        data: the training images; its test images are left alone.
        minutes: the time of the whole search.
        config: settings that stay as they are, such as ``shots``, ``seed`` and the prompts.
        methods: names of methods, mappings with ``method`` and settings, or their configurations.
        on_trial: called with each result; it may be of some of the folds.
        on_progress: told the stages of each training, see `clip_randlora.utils.progress`.
        should_stop: asked after every step; if it returns True, the search ends with the best of
            the results so far. The training that it stops does not count.

    Raises:
        UserError: a class has a single training image, ``minutes`` is not above zero, or the search
            was stopped before the first result.
        SearchInterrupted: Ctrl-C was pressed after the first result. Before it, KeyboardInterrupt.
    """
    if not minutes > 0:
        raise UserError(f"minutes: {minutes}; give a number above 0")
    search = _Search(
        model, data, config or TrainConfig(), minutes * 60, on_trial, on_progress, should_stop
    )
    try:
        for method in methods:
            search.try_method(parse_method(method))
        search.ask_other_folds()
    except KeyboardInterrupt:
        search.is_stopped = True
        if not search.has_results:
            raise
        raise SearchInterrupted(search.result()) from None
    return search.result()


class _Search:
    """The trials so far, and the time that is left."""

    def __init__(
        self,
        model: Model,
        data: Data,
        config: TrainConfig,
        seconds: float,
        on_trial: Callable[[Trial], None] | None,
        on_progress: OnProgress | None,
        should_stop: Callable[[], bool] | None,
    ):
        self.model, self.base = model, config
        self.on_trial, self.on_progress = on_trial, on_progress
        self.should_stop, self.is_stopped = should_stop or (lambda: False), False
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self.folds, self.images_per_class = _folds(data, config)
        self.caches = [Cache(model, fold) for fold in self.folds]
        self.trials: dict[Candidate, Trial] = {}
        self.defaults: list[Candidate] = []  # what the search of each method begins with
        self.rates: dict[str, float] = {}  # the default rate of each method on a fold
        self.slowest = 0.0  # seconds of a training with its answers
        self.steps = config.steps
        self.is_short = False

    def try_method(self, method: MethodConfig) -> None:
        """Try a method on the first fold: its learning rates, then half of its blocks."""
        has_rate = not isinstance(method, HeadConfig | ZeroShot)
        self.defaults.append(Candidate(method, 1.0 if has_rate else None))
        if not has_rate:
            self.measure(self.defaults[-1], 0)
            return
        best = self._climb(method)
        if best is not None and isinstance(method, AdapterConfig) and method.blocks is None:
            blocks = max(weight.block for weight in find_weights(self.model.net)) + 1
            if blocks > 1:
                halved = method.model_copy(update={"blocks": blocks // 2})
                self.measure(replace(best, method=halved, strength=1.0), 0)

    def _climb(self, method: MethodConfig) -> Candidate | None:
        """Follow the learning rate uphill from the default; return the best candidate."""
        ranks: dict[int, tuple] = {}

        def rank(power: int) -> tuple:
            if power not in ranks:
                trials = self.measure(Candidate(method, _STEP**power), 0)
                ranks[power] = max((trial.rank for trial in trials), default=())
            return ranks[power]

        rank(0)  # the others are multiples of its rate
        for direction in (1, -1):
            power = 0
            while rank(power + direction) >= rank(power) and ranks[power + direction]:
                power += direction
        own = [t for t in self.trials.values() if t.candidate.method == method and not t.failed]
        return max(own, key=lambda trial: trial.rank).candidate if own else None

    def ask_other_folds(self) -> None:
        """Ask the best candidates, and each method's default, on one fold after the other.

        What the search began with comes second, so that the best can be compared with it.
        """
        for number in range(1, len(self.folds)):
            trained: dict[Candidate, Trial] = {}  # all strengths come from one training
            for trial in self.ranked():
                if trial.folds == number and not isinstance(trial.candidate.method, ZeroShot):
                    trained.setdefault(replace(trial.candidate, strength=1.0), trial)
            defaults = [candidate for candidate in self.defaults if candidate in trained]
            best = list(trained)[:_FINALISTS]
            for candidate in dict.fromkeys([*best[:1], *defaults[:1], *best, *defaults]):
                self.measure(candidate, number)

    def default_rate(self, method: MethodConfig, *, of_all_folds: bool = False) -> float:
        """Return the default rate of a method on a fold, or on all folds together."""
        if self.base.learning_rate:
            return self.base.learning_rate
        images = len(self.folds[0].train) / len(self.folds[0].classes), self.images_per_class
        part, whole = (default_learning_rate(self.model.name, method.method, n) for n in images)
        rate = self.rates.get(method.method, part)  # it diverged: the highest that it can be
        return rate * whole / part if of_all_folds else rate

    @property
    def has_results(self) -> bool:
        """Whether a candidate has answered."""
        return any(trial.folds for trial in self.trials.values())

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first."""
        return sorted(self.trials.values(), key=lambda trial: trial.rank, reverse=True)

    def measure(self, candidate: Candidate, number: int) -> list[Trial]:
        """Train on a fold and record the answers at each strength.

        Nothing is recorded if time is short, or the search is stopped.
        """
        start, fold = time.monotonic(), self.folds[number]
        if self._stops():
            return []
        if self.trials and start + self.slowest > self.deadline:
            self.is_short = True
            return []
        config = candidate.config(self.base, self.default_rate(candidate.method))
        fixed = {"shots": None, "steps": self.steps, "strength": 1.0, "calibrate": False}
        config = config.model_copy(update=fixed)
        last, is_cut = start + self.seconds / TRAININGS, False

        def should_stop() -> bool:  # asked where there are more steps to take
            nonlocal is_cut
            is_cut = time.monotonic() > last
            return is_cut or self._stops()

        try:
            run = fit(
                self.model,
                fold,
                config,
                cache=self.caches[number],
                on_progress=self.on_progress,
                should_stop=should_stop,
                restarts=0,
            )
        except Diverged as error:
            took = time.monotonic() - start
            self.slowest = max(self.slowest, took)
            return [self._record(Trial(candidate, seconds=took, failed=str(error)))]
        try:
            if self.is_stopped:
                return []
            if is_cut:
                self.steps = max(1, run.metrics["steps"])
            if candidate.rate == 1.0:
                self.rates.setdefault(candidate.method.method, run.metrics["learning_rate"])
            answers = self._answers(run, fold, number, candidate)
        finally:
            run.adapter.detach()
        took = time.monotonic() - start
        self.slowest = max(self.slowest, took)
        zero_shot = Candidate(ZeroShot())
        if self.trials.get(zero_shot, Trial(zero_shot)).folds == number:
            self._record(_trial(zero_shot, run.predictions.zero_shot, run.predictions.labels))
        return [self._record(replace(trial, seconds=took)) for trial in answers]

    def _stops(self) -> bool:
        """Ask whether to stop; once told, the search stays stopped."""
        self.is_stopped = self.is_stopped or self.should_stop()
        return self.is_stopped

    def _answers(self, run: Run, fold: Data, number: int, candidate: Candidate) -> list[Trial]:
        """Return the results of a run at each strength that its method has."""
        labels = run.predictions.labels
        found = [_trial(candidate, run.predictions.tuned, labels)]
        if candidate.rate is None or not run.adapter.is_scalable:
            return found
        both = PairedPredictor(self.model, run.adapter, run.text, self.on_progress)
        for strength in _STRENGTHS[1:]:
            both.strength = strength
            answers = predict_split(both, fold.test, self.on_progress, self.caches[number])
            found.append(_trial(replace(candidate, strength=strength), answers.tuned, labels))
        return found

    def _record(self, new: Trial) -> Trial:
        """Add a result to those of the same candidate on other folds."""
        old = self.trials.get(new.candidate)
        if old is not None:
            new = Trial(
                new.candidate,
                torch.cat([old.correct, new.correct]),
                torch.cat([old.losses, new.losses]),
                old.folds + new.folds,
                old.seconds + new.seconds,
                new.failed,
            )
        self.trials[new.candidate] = new
        if self.on_trial:
            self.on_trial(new)
        return new

    def result(self) -> Tuning:
        """Choose the best candidate of those with the most folds, and say how sure that is."""
        ranked = self.ranked()
        if not ranked:
            raise UserError("tune: stopped before the first result")
        best, most = ranked[0], ranked[0].folds
        if not most:
            raise UserError(f"tune: no training succeeded: {best.failed}")
        images, classes = len(best.correct), len(self.folds[0].classes)
        notes = [
            f"{len(ranked)} settings were tried on the training images alone, the best of them on "
            f"{most} of {len(self.folds)} folds: {best.candidate} answers {best.accuracy:.1%} of "
            f"{images} images correctly.",
        ]
        if len(ranked) > 1:
            notes.append("The best of several looks a little better than it is on other images.")
        if self.steps != self.base.steps:
            notes.append(f"Trainings were shortened to {self.steps} steps for the time.")
        outcome: Outcome = "better"  # also than a default that diverged
        default = self.trials.get(self.defaults[0])
        if default is not None and default.folds:
            is_sure, note = compare(best, default)
            outcome = "better" if is_sure else "unsure"
            if default is best:
                outcome = "default"
            else:
                notes.append(note)
        if isinstance(best.candidate.method, ZeroShot):
            outcome = "zero_shot"
        if _p_value(int(best.correct.sum()), images, 1 / classes, "greater") > _SURE:
            outcome = "chance"
            notes.append(
                f"Nothing is better than chance, which is {1 / classes:.1%}: the model does not "
                f"know these classes, or there are too few images or minutes to tell."
            )
        if self.is_stopped:
            notes.append("The search was stopped before its end.")
        elif self.is_short:
            notes.append("There was no time for more; with more minutes, more folds are asked.")
        rate = self.default_rate(best.candidate.method, of_all_folds=True)
        config = best.candidate.config(self.base, rate)
        return Tuning(config, ranked, notes, outcome, default)


def _folds(data: Data, config: TrainConfig) -> tuple[list[Data], float]:
    """Split the drawn training images into folds of equal classes.

    Returns:
        For each fold, the others as training images and the fold as test images; and the number of
        drawn images of a class, in the mean.
    """
    orders = draw_shots(data.train, config.shots, config.seed)
    drawn = {label: own[: count_shots(config.shots, len(own))] for label, own in orders.items()}
    if not drawn:
        raise UserError(f"tune: {data.name} has no training images; give a data set that has some")
    for label, items in drawn.items():
        if len(items) < 2:
            raise UserError(
                f"tune: class {data.classes[label]} has {len(items)} training image; cross-"
                f"validation needs two or more of each class"
            )
    count = min(_FOLDS, *(len(items) for items in drawn.values()))
    folds = []
    for number in range(count):
        parts: list[list] = [[], []]
        for items in drawn.values():
            for place, item in enumerate(items):
                parts[place % count == number].append(item)
        train, held_out = (Split(tuple(part), data.classes) for part in parts)
        folds.append(
            Data(
                data.name,
                data.classes,
                train,
                held_out,
                templates=data.templates,
                prompts=data.prompts,
            )
        )
    return folds, sum(map(len, drawn.values())) / len(drawn)


def _trial(candidate: Candidate, answers: Tensor, labels: Tensor) -> Trial:
    correct = answers.argmax(dim=-1) == labels
    losses = -answers.gather(1, labels[:, None]).squeeze(1).clamp(min=1e-12).log()
    return Trial(candidate, correct, losses, 1)


def compare(best: Trial, default: Trial) -> tuple[bool, str]:
    """Compare two trials by an exact sign test (McNemar's), on the images that both were asked.

    Returns:
        Whether the best is better beyond chance, and a sentence that says so.
    """
    asked = len(default.correct)  # the best may have been asked on further folds
    ours, theirs = best.correct[:asked], default.correct
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    is_sure = gained > 0 and _p_value(gained, gained + lost, 0.5, "greater") <= _SURE
    chance = "a difference that is hardly chance" if is_sure else "the difference may be chance"
    return is_sure, (
        f"Beside the default, {default.candidate} with {default.accuracy:.1%}, {gained} more of "
        f"{asked} images are right, and {lost} that were right are wrong: {chance}."
    )


def _p_value(successes: int, of: int, probability: float, alternative: str) -> float:
    from scipy.stats import binomtest  # half a second to import

    return float(binomtest(successes, of, probability, alternative).pvalue)
