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
from clip_randlora.errors import UserError
from clip_randlora.evaluation import Predictions
from clip_randlora.runs.publish import push_run
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

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the run to the Hugging Face hub; see `clip_randlora.runs.publish.push_run`.

        Returns:
            The repository's address.

        Raises:
            UserError: the run was not written to a folder, or as for `push_run`.
        """
        if self.folder is None:
            raise UserError("push_to_hub: the run is in memory alone; give `fit` a folder, out=...")
        return push_run(self.folder, repository, private=private, token=token)
