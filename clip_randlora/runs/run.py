"""What a training gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_randlora.adapters import Adapter
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence import Confidence
from clip_randlora.data import Skipped
from clip_randlora.evaluation import Predictions
from clip_randlora.training.config import TrainConfig


@dataclass
class Run:
    """A finished training: the metrics, the test predictions and what was trained."""

    model: Model
    adapter: Adapter
    text: TextClassifier
    config: TrainConfig
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    predictions: Predictions
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    folder: Path | None = None
    confidence: Confidence = field(default_factory=Confidence)
