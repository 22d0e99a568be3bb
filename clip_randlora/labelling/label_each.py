"""Label many images in one pass: the class, its probability, and which images to label first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_randlora.classifier import Classifier, Encoded, warn_left_out
from clip_randlora.data.inputs import listed_inputs, none_readable
from clip_randlora.errors import UserError
from clip_randlora.labelling.suggestions import MOST_CANDIDATES, suggest_next
from clip_randlora.utils.outputs import write_csv
from clip_randlora.utils.progress import OnProgress, report_streamed

UNKNOWN = "unknown"
"""The answer, in a CSV, for an image of none of the classes."""

_COLUMNS = ["image", "label", "probability", "answer", "label_next"]


@dataclass(frozen=True)
class LabelledImage:
    """The answer for one image.

    Attributes:
        place: of the image among those given, from 0.
        name: its path or URL, or ``image 3`` if it has no name.
        answer: the most probable class.
        probability: of that class.
        label: the answer, if its probability reaches the line and the image is of a class; else "".
        label_next: 1 for the image to label first, 2 for the next one; None for all others.
        is_unknown: whether it is of none of the classes, if that was asked.
    """

    place: int
    name: str
    answer: str
    probability: float
    label: str
    label_next: int | None = None
    is_unknown: bool = False


@dataclass(frozen=True)
class Labelling:
    """The answers for N images. Iteration yields each `LabelledImage`, the surest first.

    Attributes:
        classes: C class names.
        above: the line; an answer below it is no label.
        places: of the images among those given, int64 (N,); images that cannot be read are not
            among the N.
        names: of the images.
        answers: the most probable classes, int64 (N,).
        probabilities: of these classes, float32 (N,).
        suggested: rows of the images to label first, in order.
        errors: why the other images cannot be read, a line each.
        unknown: whether the images are of none of the classes, bool (N,); None if that was not
            asked.
    """

    classes: tuple[str, ...]
    above: float
    places: Tensor
    names: list[str]
    answers: Tensor
    probabilities: Tensor
    suggested: list[int]
    errors: list[str]
    unknown: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[LabelledImage]:
        ranks = {row: rank for rank, row in enumerate(self.suggested, 1)}
        for row in self.probabilities.argsort(descending=True, stable=True).tolist():
            yield self._image(row, ranks.get(row))

    def next_images(self) -> list[LabelledImage]:
        """Return the images to label first, in order."""
        return [self._image(row, rank) for rank, row in enumerate(self.suggested, 1)]

    def _image(self, row: int, rank: int | None) -> LabelledImage:
        answer, probability = self.classes[self.answers[row]], float(self.probabilities[row])
        label = answer if self._has_label[row] else ""
        is_unknown = self.unknown is not None and bool(self.unknown[row])
        where = int(self.places[row]), self.names[row]
        return LabelledImage(*where, answer, probability, label, rank, is_unknown)

    @cached_property
    def _has_label(self) -> Tensor:
        reaches = self.probabilities >= self.above
        return reaches if self.unknown is None else reaches & ~self.unknown

    def counts(self) -> dict[str, int]:
        """Return how many images get each label; all classes are there, in their order."""
        labels = self.answers[self._has_label]
        counted = torch.bincount(labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counted, strict=True))

    def write_csv(self, path: str | Path) -> None:
        """Write a row for each image, the surest first.

        The columns are ``image``, ``label`` (empty below the line, and if the image is of none of
        the classes), ``probability`` (of the most probable class), ``answer`` (``unknown`` if the
        image is of none) and ``label_next`` (1 for the image to label first).
        """
        rows = (
            (
                image.name,
                image.label,
                f"{image.probability:.6f}",
                UNKNOWN if image.is_unknown else image.answer,
                image.label_next or "",
            )
            for image in self
        )
        write_csv(path, _COLUMNS, rows)


def label_images(
    classifier: Classifier,
    images: Any,
    *,
    above: float = 0.0,
    suggest: int = 0,
    labelled: Any = None,
    reject: bool = False,
    on_progress: OnProgress | None = None,
) -> Labelling:
    """Label images by a classifier, and choose which of them a person should label first.

    Each image is decoded and encoded once. Of an image, only its name, its class and its
    probability are kept, and features of 4,000 images drawn at random, if ``suggest`` is not 0.

    Args:
        classifier: of a run, or of `Classifier.zero_shot` before any training.
        images: as for `Classifier.predict`.
        above: probability from 0 to 1; an answer below it is no label.
        suggest: how many images to choose for labelling, see `suggest_next`.
        labelled: images that have labels already, as for `Classifier.predict`; what they cover is
            not suggested again. Those that cannot be read cover nothing.
        reject: give no label to images of none of the classes, see `Classifier.unknown_scores`.
            Each image is then encoded twice, zero-shot and tuned.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: ``above`` or ``suggest`` is out of range, none of the images, or of
            ``labelled``, can be read, or ``reject`` was asked of a run that has no threshold.
    """
    if not 0 <= above <= 1:
        raise UserError(f"above: {above:g} is no probability; give a number from 0 to 1")
    if suggest < 0:
        raise UserError(f"suggest: {suggest} is negative; give how many images to choose")
    known = None
    if suggest and labelled is not None:
        known = _encode(classifier, labelled, on_progress)
    entries, total = listed_inputs(images, warn_left_out)
    sample = _Sample(MOST_CANDIDATES if suggest else 0)
    names: list[str] = []
    errors: list[str] = []
    places: list[Tensor] = []
    answers: list[Tensor] = []
    probabilities: list[Tensor] = []
    unknown: list[Tensor] = []
    seen = 0
    batches = classifier.encode_and_classify(entries, reject)
    for batch in _count(batches, total, "labelling images", on_progress):
        good = torch.tensor([error is None for error in batch.errors])
        errors += [str(error) for error in batch.errors if error is not None]
        if batch.rows is not None:
            features, rows = batch.rows
            probability, answer = rows.max(dim=1)
            sample.add(len(names), features, rows)
            names += [name for name, ok in zip(batch.names, good.tolist(), strict=True) if ok]
            places.append(seen + good.nonzero().flatten())
            answers.append(answer)
            probabilities.append(probability)
            if batch.unknown is not None:
                unknown.append(batch.unknown)
        seen += len(batch.names)
    if not names:
        raise none_readable(errors)
    return Labelling(
        classifier.classes,
        above,
        torch.cat(places),
        names,
        torch.cat(answers),
        torch.cat(probabilities),
        sample.suggest(suggest, known),
        errors,
        torch.cat(unknown) if reject else None,
    )


def _count(
    batches: Iterator[Encoded], total: int, stage: str, on_progress: OnProgress | None
) -> Iterator[Encoded]:
    return report_streamed(batches, stage, total, on_progress, lambda batch: len(batch.names))


def _encode(
    classifier: Classifier, images: Any, on_progress: OnProgress | None
) -> tuple[Tensor, Tensor] | None:
    """Return the unit features and probabilities of those images that can be read, if any.

    Raises:
        UserError: none of them can be read.
    """
    entries, total = listed_inputs(images, warn_left_out)
    found: list[tuple[Tensor, Tensor]] = []
    errors: list[str] = []
    batches = classifier.encode_and_classify(entries)
    for batch in _count(batches, total, "encoding labelled images", on_progress):
        errors += [str(error) for error in batch.errors if error is not None]
        if batch.rows is not None:
            found.append(batch.rows)
    if errors and not found:
        raise none_readable(errors)
    if not found:
        return None
    features, probabilities = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, probabilities


class _Sample:
    """Features and probabilities of images drawn at random from a stream of unknown length.

    Each image gets a random key, and those with the smallest keys are kept.
    """

    def __init__(self, most: int):
        self.most = most
        self._bits = np.random.Philox(key=0)
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # keys, rows, features, p
        self._count = 0

    def add(self, first: int, features: Tensor, probabilities: Tensor) -> None:
        """Offer the images of the rows from ``first`` on."""
        if not self.most:
            return
        count = len(features)
        keys = torch.from_numpy((self._bits.random_raw(count) >> np.uint64(1)).astype(np.int64))
        rows = torch.arange(first, first + count)
        self._kept.append((keys, rows, features.half().cpu(), probabilities.half()))
        self._count += count
        if self._count > 2 * self.most:
            self._shrink()

    def _shrink(self) -> None:
        joined = [torch.cat(parts) for parts in zip(*self._kept, strict=True)]
        smallest = joined[0].argsort()[: self.most]
        keys, rows, features, probabilities = (part[smallest] for part in joined)
        self._kept, self._count = [(keys, rows, features, probabilities)], len(keys)

    def suggest(self, count: int, known: tuple[Tensor, Tensor] | None) -> list[int]:
        """Choose among the drawn images; return their rows."""
        if not count:
            return []
        self._shrink()
        _, rows, features, probabilities = self._kept[0]
        order = rows.argsort()
        chosen = suggest_next(features[order], probabilities[order], count, *(known or ()))
        return rows[order][chosen].tolist()
