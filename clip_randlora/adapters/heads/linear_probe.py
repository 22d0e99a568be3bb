"""Linear probe: logistic regression on the frozen image features, as CLIP's authors have it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from clip_randlora.adapters.heads.head import Fit, HeadData, LinearHead, LinearHeadConfig

_CANDIDATES = tuple(10.0**power for power in range(-2, 5))  # of C
_FOLDS = 5
_C_WITHOUT_FOLDS = 0.316  # from the example in CLIP's repository
_MAX_ITERATIONS = 1000


class LinearProbe(LinearHeadConfig):
    """Logistic regression on the frozen image features (Radford et al., arXiv 2103.00020, 3.2).

    It knows nothing of the class names. `AnchoredHead` does, and is more accurate with few images.

    Attributes:
        C: inverse strength of the L2 penalty; None chooses it by cross-validation.
    """

    method: Literal["linear_probe"] = "linear_probe"
    C: float | None = Field(default=None, gt=0)

    def fit(self, head: nn.Module, data: HeadData) -> Fit:
        """Fit the head to the training images without augmentation."""
        assert isinstance(head, LinearHead)
        features, labels = data.features[0].cpu().numpy(), data.labels.cpu().numpy()
        c, notes = self.C, []
        if c is None:
            c, how = choose_c(features, labels)
            notes.append(f"Linear probe: C = {c:g}, {how}.")
        fitted = _logistic_regression(c).fit(features, labels)
        head.set(*_as_softmax(fitted.coef_, fitted.intercept_))
        return Fit(int(fitted.n_iter_.max()), tuple(notes))


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
