"""What is known of the images that are not sorted yet: guesses, and which to label first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Guess(NamedTuple):
    """What the model takes an image for.

    Attributes:
        class_name: the most probable class; None if the image cannot be read.
        confidence: its probability.
        is_unknown: whether it is of none of the classes, by the run's threshold.
        probabilities: of all classes (C,); None if the image cannot be read.
        reason: why the image cannot be read, "" if it can.
    """

    class_name: str | None
    confidence: float = 0.0
    is_unknown: bool = False
    probabilities: Tensor | None = None
    reason: str = ""


@dataclass(frozen=True)
class Guesser:
    """Who guesses. Guesses stay right as long as it is equal.

    Attributes:
        run: the run; None for zero-shot, by the names of the classes alone.
        model: name of the base model.
        prompts: of the classes that an image can be of, at least two.
    """

    run: Path | None
    model: str
    prompts: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return [name for name, _ in self.prompts]


@dataclass
class Tray:
    """What is known of one project's images without a class.

    Attributes:
        guesser: whose guesses these are; None if nobody can guess.
        guesses: by the number of the image.
        next: numbers of the images from which a training would learn most.
        features: unit features (E,) of images by model and digest; None if one cannot be read.
        is_busy: whether somebody is looking at the images.
        error: why nobody is.
        seen: what was there when all had been looked at.
    """

    guesser: Guesser | None = None
    guesses: dict[int, Guess] = field(default_factory=dict)
    next: list[int] = field(default_factory=list)
    features: dict[tuple[str, str], Tensor | None] = field(default_factory=dict)
    is_busy: bool = False
    error: str = ""
    seen: object = None
