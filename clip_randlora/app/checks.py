"""The check of the images: a job of the queue, and what the project keeps of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

import clip_randlora as cr
from clip_randlora.app.jobs import Job, State
from clip_randlora.app.uploads import for_page

Kind = Literal["label", "duplicate", "unreadable", "blank", "tiny"]


class Checked(NamedTuple):
    """An image as it was when it was checked."""

    number: int
    class_name: str
    digest: str


class Finding(BaseModel):
    """Something that a person should look at.

    Attributes:
        kind: a class that is probably wrong, near duplicates, or why an image is of no use.
        images: one; of duplicates two or more.
        suggested: the class that the other images speak for, "" for none.
        certainty: probability that the class is wrong, 0 to 1.
        reason: what is wrong with the file, in words.
    """

    kind: Kind
    images: list[Checked] = Field(min_length=1, max_length=100_000)
    suggested: str = Field(default="", max_length=200)
    certainty: float = 0.0
    reason: str = Field(default="", max_length=500)

    @property
    def key(self) -> str:
        """What tells it from others, also in later checks, as long as nothing was moved."""
        return " ".join([self.kind, *sorted(f"{i.digest}/{i.class_name}" for i in self.images)])


class CheckRecord(BaseModel):
    """What the project keeps of a check.

    Attributes:
        time: when it ended, in seconds since the epoch.
        images: how many were checked.
        gathered: fingerprint of the project's images at that time.
        findings: those to look at first in front.
        error: why it failed.
    """

    time: float
    images: int = 0
    gathered: str = Field(default="", max_length=80)
    findings: list[Finding] = Field(default_factory=list, max_length=100_000)
    error: str = Field(default="", max_length=500)


class _Stopped(Exception):
    """The person stopped the check."""


@dataclass(eq=False, kw_only=True)
class CheckJob(Job):
    """One check of the images.

    Attributes:
        folder: the copy of the images that it reads.
        images: what is checked, by the name of its file.
        gathered: fingerprint of the project's images.
        stage: what it does.
        done, total: how much of that; the total is 0 while it is not known.
        findings: the result.
    """

    kind = "check"

    images: Mapping[str, Checked]
    gathered: str
    stage: str = ""
    done: int = 0
    total: int = 0
    findings: list[Finding] = field(default_factory=list)

    def run(self, model: cr.Model, max_minutes: float) -> State:
        """Check the images."""
        self.state, ends = "checking", time.monotonic() + 60 * max_minutes

        def on_progress(stage: str, done: int, total: int) -> None:
            self.stage, self.done, self.total = stage, done, total
            if self.stop.is_set() or time.monotonic() > ends:
                raise _Stopped

        try:
            found = cr.check_images(self.data, model, on_progress)
        except _Stopped:
            if self.stop.is_set():
                return "stopped"
            raise cr.UserError(f"it took more than {max_minutes:g} minutes") from None
        self.findings = list(self._read(found))
        return "done"

    def _read(self, found: cr.Findings) -> Iterable[Finding]:
        """Yield what was found, but what does no harm: near duplicates in one class, outliers."""

        def of(*places: int) -> list[Checked]:
            return [self._checked(found.items[place].name) for place in places]

        for wrong in found.wrong_labels:
            suggested = found.classes[wrong.suggested]
            yield Finding(
                kind="label",
                images=of(wrong.index),
                suggested=suggested,
                certainty=wrong.certainty,
            )
        for group in found.duplicates:
            if group.where != "class":
                yield Finding(kind="duplicate", images=of(*group.indices))
        for skipped in found.unreadable:
            name, reason = skipped.name, for_page(skipped.reason)
            yield Finding(kind="unreadable", images=[self._checked(name)], reason=reason)
        for place in found.blank:
            yield Finding(kind="blank", images=of(place), reason="all of one colour")
        for small in found.tiny:
            width, height = small.size
            reason = f"only {width} x {height} pixels"
            yield Finding(kind="tiny", images=of(small.index), reason=reason)

    def _checked(self, name: str) -> Checked:
        return self.images[PurePosixPath(name).name]

    def record(self) -> CheckRecord:
        """Return the result."""
        return CheckRecord(
            time=time.time(),
            images=len(self.images),
            gathered=self.gathered,
            findings=self.findings,
            error=self.error,
        )
