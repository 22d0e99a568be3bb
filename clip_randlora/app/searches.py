"""The search for the best settings: a job of the queue, and what the project keeps of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

import clip_randlora as cr
from clip_randlora.adapters import AdapterConfig, HeadConfig, MethodConfig
from clip_randlora.adapters.methods import parse_method
from clip_randlora.app.jobs import Job, State
from clip_randlora.tuning import METHODS, Candidate, Outcome, Trial, Tuning


class Choices(BaseModel):
    """The settings of a training as the page and the endpoints name them.

    Attributes:
        model: name of the base model.
        method: name of the method.
        preset: how long to train.
        more: further settings of a training or of its method, by name.
    """

    model: str = Field(max_length=80)
    method: str = Field(max_length=80)
    preset: str = Field(max_length=80)
    more: dict[str, Any] = Field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return what `clip_randlora.TrainConfig.parse` takes, beside the preset.

        Raises:
            UserError: the method is unknown.
        """
        if self.method not in cr.METHODS:
            raise cr.UserError(f"method {self.method}: choose {', '.join(cr.METHODS)}")
        of_method = _fields(cr.METHODS[self.method])
        own = {name: value for name, value in self.more.items() if name in of_method}
        others = {name: value for name, value in self.more.items() if name not in of_method}
        return {"shots": None, **others, "method": {"method": self.method, **own}}

    def changed_to(self, config: cr.TrainConfig) -> Choices:
        """Return the choices that make a training have the method, rate and strength of another."""
        replaced = _fields(cr.METHODS[self.method]) | {"learning_rate", "strength"}
        more = {name: value for name, value in self.more.items() if name not in replaced}
        if config.learning_rate is not None:
            more["learning_rate"] = config.learning_rate
        if config.strength != 1:
            more["strength"] = config.strength
        own = config.method.model_dump(mode="json", exclude_defaults=True)
        more |= {name: value for name, value in own.items() if name in _fields(type(config.method))}
        return self.model_copy(update={"method": config.method.method, "more": more})


class Tried(BaseModel):
    """The results of one of the settings that were tried.

    Attributes:
        method: its name.
        details: what else was set, such as "rate x 0.32, strength 0.5"; "" for the default.
        is_start: whether it is what the search began with.
        accuracy: share of the images that were answered correctly, 0 to 1.
        low, high: 95 % interval of the accuracy.
        images: how many were asked.
        parts: of how many parts of the training images.
        failed: why there is no result, "" if there is one.
    """

    method: str = Field(max_length=80)
    details: str = Field(default="", max_length=500)
    is_start: bool = False
    accuracy: float
    low: float
    high: float
    images: int
    parts: int
    failed: str = Field(default="", max_length=500)


class SearchRecord(BaseModel):
    """What the page shows of a search, and the project keeps of it.

    Attributes:
        state: as `Job.state`; "interrupted" on disk until it has ended.
        began: when it was started, in seconds since the epoch.
        minutes: its time.
        start: the settings that it began with.
        gathered: fingerprint of the project's images at that time.
        tried: the best first.
        outcome: as `clip_randlora.Tuning.outcome`; "" until it has ended.
        verdict: the outcome as a sentence.
        notes: what else is to be said.
        found: better settings; None if there are none.
        error: why it failed.
    """

    state: State | Literal["interrupted"] = "interrupted"
    began: float
    minutes: float
    start: Choices
    gathered: str = Field(default="", max_length=80)
    tried: list[Tried] = Field(default_factory=list, max_length=1000)
    outcome: Outcome | Literal[""] = ""
    verdict: str = Field(default="", max_length=500)
    notes: list[str] = Field(default_factory=list, max_length=20)
    found: Choices | None = None
    error: str = Field(default="", max_length=500)


@dataclass(eq=False, kw_only=True)
class SearchJob(Job):
    """One search for the best settings.

    Attributes:
        folder: the copy of the images that it reads.
        config, start: the settings that it begins with.
        minutes: its time.
        gathered: fingerprint of the project's images.
        before: what the project kept of the search before.
        began: when it was started, in seconds since the epoch.
        ends: when its time is over, on the monotonic clock; None until it has begun.
        trials: the results so far.
        tuning: the result.
    """

    kind = "search"

    config: cr.TrainConfig
    minutes: float
    start: Choices
    gathered: str
    before: SearchRecord | None = None
    began: float = field(default_factory=time.time)
    ends: float | None = None
    trials: dict[Candidate, tuple[Trial, Tried]] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def seconds_left(self) -> float:
        """The rest of its time."""
        if self.ends is None:
            return 60 * self.minutes
        return max(0.0, self.ends - time.monotonic())

    def run(self, model: cr.Model, max_minutes: float) -> State:
        """Search among the chosen method, which is first, and those of `clip_randlora.tune`.

        Heads come before adapters, as they take seconds.
        """
        first = self.config.method
        others = [parse_method(name) for name in METHODS]
        others.sort(key=lambda method: not isinstance(method, HeadConfig))
        minutes = min(self.minutes, max_minutes)
        self.state, self.ends = "searching", time.monotonic() + 60 * minutes
        try:
            self.tuning = cr.tune(
                model,
                self.data,
                minutes,
                self.config,
                methods=[first, *(method for method in others if method != first)],
                on_trial=self._record_trial,
                should_stop=self.stop.is_set,
            )
        except cr.UserError:
            if self.stop.is_set():  # before the first result
                return "stopped"
            raise
        return "done"

    def _record_trial(self, trial: Trial) -> None:
        low, high = trial.interval
        tried = Tried(
            method=trial.candidate.method.method,
            details=_details(trial.candidate),
            is_start=trial.candidate.method == self.config.method
            and trial.candidate.rate in (None, 1)
            and trial.candidate.strength == 1,
            accuracy=trial.accuracy,
            low=low,
            high=high,
            images=len(trial.correct),
            parts=trial.folds,
            failed=trial.failed,
        )
        self.trials[trial.candidate] = trial, tried

    def record(self) -> SearchRecord:
        """Return what is known by now."""
        ranked = sorted(self.trials.values(), key=lambda pair: pair[0].rank, reverse=True)
        found = None
        if self.tuning and self.tuning.outcome in ("better", "unsure"):
            found = self.start.changed_to(self.tuning.config)
        return SearchRecord(
            state=self.state,
            began=self.began,
            minutes=self.minutes,
            start=self.start,
            gathered=self.gathered,
            tried=[tried for _, tried in ranked],
            outcome=self.tuning.outcome if self.tuning else "",
            verdict=_verdict(self.tuning) if self.tuning else "",
            notes=self.tuning.notes[1:] if self.tuning else [],
            found=found,
            error=self.error.removeprefix("tune: "),
        )


def fingerprint(images: Set[tuple[str, str]]) -> str:
    """Return what tells one set of images, by class and digest, from another."""
    lines = "\n".join(sorted(f"{digest} {name}" for name, digest in images))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def _fields(method: type[MethodConfig]) -> set[str]:
    """Return the names of a method's own settings."""
    return method.model_fields.keys() - {"method", "seed"}


def _details(candidate: Candidate) -> str:
    """Return what a candidate has beside its method and the default rate."""
    own: Mapping[str, Any] = candidate.method.model_dump(mode="json", exclude_defaults=True)
    parts = [
        f"{name.replace('_', ' ')} {_words(value)}"
        for name, value in own.items()
        if name in _fields(type(candidate.method)) - {"blocks"}
    ]
    if candidate.rate not in (None, 1):
        parts.append(f"rate x {candidate.rate:.2g}")
    if isinstance(candidate.method, AdapterConfig) and candidate.method.blocks:
        parts.append(f"last {candidate.method.blocks} blocks")
    if candidate.strength != 1:
        parts.append(f"strength {candidate.strength:g}")
    return ", ".join(parts)


def _words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(trial: Trial) -> str:
    return f"{100 * trial.accuracy:.0f} %"


def _verdict(tuning: Tuning) -> str:
    best, default = tuning.trials[0], tuning.default
    share = f"{_percent(best)} of {len(best.correct)} images"
    if tuning.outcome == "chance":
        return f"Nothing is better than chance: the best settings answer {share} correctly."
    if tuning.outcome == "zero_shot":
        return f"No training is better than before, which answers {share} correctly."
    if tuning.outcome == "default":
        return f"Nothing is better than your settings, which answer {share} correctly."
    if default is None or not default.folds:
        return f"Better than your settings, which do not work: {share} are answered correctly."
    than = f"{share} are answered correctly, with yours {_percent(default)}"
    if len(default.correct) < len(best.correct):
        than += f" of {len(default.correct)}"
    if tuning.outcome == "better":
        return f"Better than your settings: {than}."
    return f"Perhaps better than your settings, or by chance: {than}."
