"""How much of the training images the model knows already, which decides how far training goes."""

from __future__ import annotations

import torch

from clip_randlora.adapters import Adapter
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import TrainingImages, augment
from clip_randlora.utils.progress import OnProgress, report_progress

_MOST_IMAGES = 1024
_BATCH = 64


@torch.no_grad()
def zero_shot_error(
    model: Model,
    adapter: Adapter,
    text: TextClassifier,
    images: TrainingImages,
    size: int,
    on_progress: OnProgress | None = None,
) -> float:
    """Return the share of training images that zero-shot answers wrongly, 0 to 1.

    Args:
        model: encodes the images.
        adapter: attached to it, and fresh: it changes nothing yet.
        text: the classes and their prompts.
        images: N images; about a thousand of them are asked, evenly spaced.
        size: side to which they are resized, in pixels.
        on_progress: told how many prompts are encoded, and how many images are asked.
    """
    step = -(-len(images) // _MOST_IMAGES)
    batches = torch.arange(0, len(images), step).split(_BATCH)
    generator = torch.Generator()
    model.net.eval()
    with adapter.cached_weights():
        classes = text.features_in_parts(on_progress=on_progress).T
        wrong = 0
        asked = report_progress(
            zip(batches, images.stream(batches), strict=True),
            "asking zero-shot",
            sum(map(len, batches)),
            on_progress,
            lambda batch: len(batch[0]),
        )
        for rows, pixels in asked:
            whole = augment(
                pixels.to(model.device), size, generator, (1.0, 1.0), flip=False, ratio=(1.0, 1.0)
            )
            answers = (model.encode_checked(whole) @ classes).argmax(dim=-1)
            wrong += int((answers.cpu() != images.labels[rows].cpu()).sum())
    return wrong / sum(map(len, batches))
