"""Find images that are like no other image of the set.

The distance of an image is the mean cosine distance of its features to its K nearest images (Kuan
and Mueller, ICML 2022 workshop, arXiv 2207.03061, for the score). It is an outlier if the logarithm
of its distance lies above the upper quartile by three times the range between the quartiles (Tukey,
Exploratory Data Analysis, 1977: "far out"). The logarithm, because distances have a long tail.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clip_randlora.checking.findings import Outlier
from clip_randlora.utils.progress import OnProgress, report_progress

_NEAREST = 10
_FAR_OUT = 3.0
_BLOCK = 1024
_FEWEST = 20  # images, of which quartiles say something


def find_outliers(features: Tensor, on_progress: OnProgress | None = None) -> list[Outlier]:
    """Return the outliers, the farthest first.

    Args:
        features: unit features, float32 (N, E).
        on_progress: told how many blocks of images were compared.
    """
    if len(features) < _FEWEST:
        return []
    starts = range(0, len(features), _BLOCK)
    parts = []
    for start in report_progress(starts, "looking for outliers", len(starts), on_progress):
        similar = features[start : start + _BLOCK] @ features.T
        similar.diagonal(start).fill_(-torch.inf)  # an image is no neighbour of itself
        parts.append(1 - similar.topk(min(_NEAREST, len(features) - 1), dim=1).values.mean(dim=1))
    distances = torch.cat(parts)
    logarithms = distances.clamp(min=1e-6).log()
    low, high = np.quantile(logarithms, (0.25, 0.75))  # torch's takes 16 million numbers at most
    rows = (logarithms > high + _FAR_OUT * (high - low)).nonzero().flatten()
    rows = rows[distances[rows].argsort(descending=True, stable=True)]
    return [Outlier(row, float(distances[row])) for row in rows.tolist()]
