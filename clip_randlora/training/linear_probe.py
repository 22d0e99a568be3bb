"""Linear probe: logistic regression on the frozen image tower's features."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_randlora.adapters import Adapter, LinearProbe
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import ImageBatch
from clip_randlora.forward.inference import inference_model
from clip_randlora.training.state import OnStep, TrainState
from clip_randlora.utils.progress import OnProgress, report_progress

_CANDIDATES = tuple(10.0**power for power in range(-2, 5))  # of C
_FOLDS = 5
_C_WITHOUT_FOLDS = 0.316  # from the example in CLIP's repository
_MAX_ITERATIONS = 1000
_BATCH = 64


class LinearProbeTrainer:
    """Fits the head of a linear probe to the features of the training images.

    The head starts as the zero-shot classifier, which is linear in the image features too.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        train_images: ImageBatch,
        state: TrainState,
        on_progress: OnProgress | None = None,
    ):
        assert isinstance(adapter.config, LinearProbe)
        self._config = adapter.config
        self.model, self.train_images = model, train_images
        self.state, self.on_progress = state, on_progress
        with torch.no_grad():
            classes = (model.logit_scale() * text.features()).float()
        self.head = adapter.head = nn.Linear(
            classes.shape[1], classes.shape[0], device=model.device
        )
        self._set_head(classes, torch.zeros(len(classes)))

    def run(
        self, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Encode the images once, without augmentation, and fit; neither argument is called."""
        start = time.perf_counter()
        self.model.net.eval()
        ready = inference_model(self.model)
        with torch.inference_mode():
            batches = report_progress(
                self.train_images.images.split(_BATCH),
                "encoding images",
                len(self.train_images),
                self.on_progress,
                len,
            )
            encoded = torch.cat([ready.encode_image(batch) for batch in batches])
        features = encoded.float().cpu().numpy()
        labels = self.train_images.labels.numpy()
        c = self._config.C
        if c is None:
            c, how = choose_c(features, labels)
            self.state.notes.append(f"Linear probe: C = {c:g}, {how}.")
        fitted = _logistic_regression(c).fit(features, labels)
        self._set_head(*_as_softmax(fitted.coef_, fitted.intercept_))
        self.state.step = self.state.steps = int(fitted.n_iter_.max())
        self.state.seconds = time.perf_counter() - start

    @torch.no_grad()
    def _set_head(self, weight: Tensor, bias: Tensor) -> None:
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)


def choose_c(features: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """Choose C, the inverse strength of the penalty, by the training images alone.

    C is the one of 0.01, 0.1, ... 10,000 with the lowest mean log loss in a stratified 5-fold
    cross-validation (fewer folds if a class has fewer images). If a class has a single image, C is
    0.316, as in the example of CLIP's authors.

    Args:
        features: float32 (N, E), of unit length, ordered by class.
        labels: int64 (N,).

    Returns:
        C, and how it was chosen, for a note. Nothing is random.
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
    """Return weights (C, E) and biases (C,); for two classes scikit-learn has a single row."""
    weights, biases = torch.from_numpy(weight), torch.from_numpy(bias)
    if len(weights) == 1:
        return torch.cat([-weights, weights]) / 2, torch.cat([-biases, biases]) / 2
    return weights, biases
