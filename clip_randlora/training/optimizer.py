"""AdamW and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from clip_randlora.training.config import TrainConfig, default_beta2, default_learning_rate

_FINAL_LEARNING_RATE = 0.01  # share of the peak at the end, as in the reference implementation


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    config: TrainConfig,
    steps: int,
    model_name: str,
    images_per_class: float,
    error: float = 1.0,
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW and its schedule, with defaults for what ``config`` leaves open.

    Args:
        parameters: the trainable parameters.
        config: the settings.
        steps: of the whole training.
        model_name: for the defaults.
        images_per_class: training images per class, for the default learning rate.
        error: share of them that zero-shot answers wrongly, for the same.
    """
    method, rate, beta2 = config.method.method, config.learning_rate, config.beta2
    if rate is None:
        rate = default_learning_rate(model_name, method, images_per_class, error)
    optimizer = make_adamw(
        parameters,
        lr=rate,
        betas=(0.9, default_beta2(model_name, method) if beta2 is None else beta2),
        weight_decay=config.weight_decay,
    )
    return optimizer, LambdaLR(optimizer, partial(warmup_cosine, steps=steps, warmup=config.warmup))


def make_adamw(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.AdamW:
    """Return an AdamW whose moments exist already, as if it were resumed before its first step.

    Allocated in the first step, the moments would lie between its activations and fragment the
    memory that later steps reuse.

    Args:
        parameters: the trainable parameters.
        settings: as `torch.optim.AdamW` takes them.
    """
    parameters = list(parameters)
    if any(parameter.is_cuda for parameter in parameters):
        settings["fused"] = True  # one kernel for all parameters
    optimizer = torch.optim.AdamW(parameters, **settings)
    state = {
        number: {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for number, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return optimizer


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 1 %.

    Args:
        step: steps that are done.
        steps: of the whole training.
        warmup: share of the steps in which the rate rises.
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(steps - rising, 1)
    return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2
