"""CoOp's draw of few-shot images, which its seeds decide.

The numbers come from Python's own generator, as in CoOp's code (datasets/oxford_pets.py of
KaiyangZhou/CoOp, and ``generate_fewshot_dataset`` of KaiyangZhou/Dassl.pytorch):

- ``random.seed(seed)``, once;
- for each class, in the order in which the classes first appear in the file: ``random.sample`` of
  the class's images in the order of the file, or ``random.choices``, which repeats images, if there
  are fewer than asked for;
- the same for the validation images, at most 4 a class, with the generator as it is by then.

The classes of a base-to-novel experiment are chosen after the draw, so all classes are drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

MOST_VALIDATION_SHOTS = 4


@dataclass(frozen=True)
class DrawnClass:
    """A class of the file.

    Attributes:
        label: its index among the data set's classes; None if it is not one of them, but is drawn
            before others.
        names: its images in the order of the file, also those that are not on this machine.
    """

    label: int | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class CoopDraw:
    """How one split of a file is drawn.

    Attributes:
        classes: in the order in which they first appear in the file.
        before: of the split that is drawn before this one with the same generator.
        most: upper bound on the images of a class; None without one.
    """

    classes: tuple[DrawnClass, ...]
    before: CoopDraw | None = None
    most: int | None = None

    def names(self, shots: int, seed: int) -> dict[int, list[str]]:
        """Return the names of each class's drawn images, by label.

        Args:
            shots: images of a class in the training split.
            seed: as in CoOp, 1 to 3 in the literature.
        """
        generator = random.Random(seed)
        if self.before is not None:
            self.before._sample(generator, shots)
        return self._sample(generator, shots)

    def _sample(self, generator: random.Random, shots: int) -> dict[int, list[str]]:
        count = shots if self.most is None else min(shots, self.most)
        drawn = {}
        for own in self.classes:
            is_enough = len(own.names) >= count
            names = (
                generator.sample(own.names, count)
                if is_enough
                else generator.choices(own.names, k=count)
            )
            if own.label is not None:
                drawn[own.label] = names
        return drawn

    def with_labels(self, labels: dict[int, int]) -> CoopDraw:
        """Return the draw of a data set with some of the classes.

        Args:
            labels: ``{label: label in the other data set}``.
        """
        classes = tuple(
            replace(own, label=None if own.label is None else labels.get(own.label))
            for own in self.classes
        )
        before = self.before and self.before.with_labels(labels)
        return replace(self, classes=classes, before=before)
