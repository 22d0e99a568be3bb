"""A classifier whose zero-shot and tuned answers differ, without training one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import clip_randlora as cr
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier


def attach_random(model: cr.Model, classes: Sequence[str]) -> tuple[cr.Adapter, TextClassifier]:
    """Attach RandLoRA of rank 6 with random coefficients; return it and the class prompts."""
    adapter = cr.attach(model.net, cr.RandLoRA(rank=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device), alpha=0.02)
    return adapter, TextClassifier(model, classes, make_prompts(classes))
