"""Test a run on further data sets, each among its own classes: the tuned encoders answer for them.

So base-to-novel, cross-data-set transfer and domain generalisation are measured (Zhou et al.,
Conditional Prompt Learning for Vision-Language Models, CVPR 2022, sections 4.1 to 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_randlora.adapters import Adapter, HeadConfig
from clip_randlora.adapters.config import MethodConfig
from clip_randlora.clip.models import Model
from clip_randlora.clip.prompts import Prompts, check_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import Data, Skipped
from clip_randlora.errors import UserError
from clip_randlora.evaluation import PairedPredictor, predict_split, score
from clip_randlora.training.cache import Cache
from clip_randlora.utils.progress import OnProgress


@dataclass(frozen=True)
class FurtherTest:
    """A data set whose test images are answered, and the prompts of its classes.

    Attributes:
        name: of its results.
        data: the data set.
        text: the prompts of its classes.
    """

    name: str
    data: Data
    text: TextClassifier


def prepare_test(
    model: Model, name: str, data: Data, prompts: Prompts, words: Prompts
) -> tuple[FurtherTest, list[str]]:
    """Return a test, and notes on its prompts.

    Args:
        model: whose tokenizer is used.
        name: of its results.
        data: the data set.
        prompts: ``{class: prompts}``.
        words: ``{class: names in its prompts}``.

    Raises:
        UserError: two classes have the same prompts.
    """
    text = TextClassifier(model, data.classes, [prompts[each] for each in data.classes])
    try:
        notes = check_prompts(model, text.tokens, prompts, words)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return FurtherTest(name, data, text), [f"{name}: {note}" for note in notes]


def refuse_head(method: MethodConfig) -> None:
    """Refuse a method whose answers are bound to the classes that it was trained on.

    Raises:
        UserError: it has a head.
    """
    if isinstance(method, HeadConfig):
        raise UserError(
            f"{method.method}: its head answers only for the classes it was trained on, not for "
            f"those of another test; choose a method that tunes the encoders"
        )


def run_tests(
    tests: Sequence[FurtherTest],
    model: Model,
    adapter: Adapter,
    on_progress: OnProgress | None = None,
    cache: Cache | None = None,
) -> tuple[dict[str, dict[str, Any]], list[Skipped]]:
    """Classify the test images of every data set, zero-shot and tuned, among its own classes.

    Args:
        tests: what to test on.
        model: the base model.
        adapter: attached to it.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.
        cache: of the training; it keeps the zero-shot features of these images too.

    Returns:
        ``{name: {"zero_shot": {"top1", "ece"}, "tuned": {...}, "images", "classes"}}`` as
        ``metrics.json`` has it under ``also_test``: shares from 0 to 1, and counts; and the images
        that could not be read.
    """
    results, skipped = {}, []
    for test in tests:
        predictions = predict_split(
            PairedPredictor(model, adapter, test.text, on_progress),
            test.data.test,
            on_progress,
            cache.beside(test.data) if cache else None,
        )
        scores = score(predictions)
        results[test.name] = {
            "zero_shot": scores["zero_shot"],
            "tuned": scores["tuned"],
            "images": len(predictions.names),
            "classes": len(test.data.classes),
        }
        skipped += predictions.skipped
    return results, skipped
