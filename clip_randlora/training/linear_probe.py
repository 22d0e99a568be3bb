"""Linear probe: logistic regression on the frozen image tower's features."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import ImageBatch
from clip_randlora.forward.inference import answering_model
from clip_randlora.training.logger import Step
from clip_randlora.utils.progress import OnProgress, report_progress

_CANDIDATES = tuple(10.0**power for power in range(-2, 5))  # of C
_FOLDS = 5
_C_WITHOUT_FOLDS = 0.316  # of the example in the repository of CLIP
_MAX_ITERATIONS = 1000
_BATCH = 64


class ProbeTraining:
    """Fits the head of a linear probe; in place of `clip_randlora.training.trainer.Loop`.

    The head starts as the zero-shot classifier, which is linear in the image features as well.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        shots: ImageBatch,
        on_progress: OnProgress | None = None,
    ):
        self.model, self.adapter, self.shots = model, adapter, shots
        self.image_count, self.on_progress = len(shots), on_progress
        self.precision = "fp32"
        self.step = self.steps = 0
        self.seconds = 0.0
        self.step_seconds: list[float] = []
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        with torch.no_grad():
            classes = (model.logit_scale() * text.features()).float()
        adapter.head = nn.Linear(classes.shape[1], classes.shape[0], device=model.device)
        self._set_head(classes, torch.zeros(len(classes)))

    def run(self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool]) -> None:
        """Encode the images once, without augmentation, and fit; it has no steps to report."""
        start = time.perf_counter()
        self.model.net.eval()
        ready = answering_model(self.model)
        with torch.inference_mode():
            batches = report_progress(
                self.shots.images.split(_BATCH),
                "encoding images",
                len(self.shots),
                self.on_progress,
                len,
            )
            encoded = torch.cat([ready.encode_image(batch) for batch in batches])
        features = encoded.float().cpu().numpy()
        labels = self.shots.labels.numpy()
        c = self.adapter.config.C
        if c is None:
            c, how = choose_c(features, labels)
            self.notes.append(f"Linear probe: C = {c:g}, {how}.")
        fitted = _logistic_regression(c).fit(features, labels)
        self._set_head(*_as_softmax(fitted.coef_, fitted.intercept_))
        self.step = self.steps = int(fitted.n_iter_.max())
        self.seconds = time.perf_counter() - start

    @torch.no_grad()
    def _set_head(self, weight: Tensor, bias: Tensor) -> None:
        self.adapter.head.weight.copy_(weight)
        self.adapter.head.bias.copy_(bias)


def choose_c(features: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """Choose the inverse strength of the penalty by the training images alone.

    Of 0.01, 0.1, ... 10,000, the one with the least mean log loss in a stratified 5-fold
    cross-validation (fewer folds if a class has fewer images). With a single image of some class
    nothing can be left out: 0.316, as in the example of CLIP's authors.

    Args:
        features: float32 (N, E), of unit length, ordered by class.
        labels: int64 (N,).

    Returns:
        C, and in words how it was found. The same for the same input: nothing is random.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(_FOLDS, int(np.bincount(labels).min()))
    if folds < 2:
        return _C_WITHOUT_FOLDS, "as a class has a single training image"
    scores = [
        cross_val_score(
            _logistic_regression(c),
            features,
            labels,
            cv=StratifiedKFold(folds),
            scoring="neg_log_loss",
        ).mean()
        for c in _CANDIDATES
    ]
    return (
        _CANDIDATES[int(np.argmax(scores))],
        f"by {folds}-fold cross-validation on the training images",
    )


def _logistic_regression(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # a second to import, and rarely needed

    return LogisticRegression(C=c, solver="lbfgs", max_iter=_MAX_ITERATIONS)


def _as_softmax(weight: np.ndarray, bias: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return weights (C, E) and biases (C,); of two classes scikit-learn has one row only."""
    weight, bias = torch.from_numpy(weight), torch.from_numpy(bias)
    if len(weight) == 1:
        return torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias
