"""Teach CLIP your own classes from a handful of images, with RandLoRA on both encoders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_randlora.adapters import (
        METHODS,
        Adapter,
        CLIPLoRA,
        Full,
        LinearProbe,
        LoRA,
        NoLA,
        RandLoRA,
        VeRA,
        ZeroShot,
        add_adapters,
        attach,
        find_weights,
        load_adapter,
        randlora_delta,
        save_peft_adapter,
        select_weights,
    )
    from clip_randlora.classifier import Classifier
    from clip_randlora.clip.models import SUGGESTIONS, Model, Suggestion, load_model
    from clip_randlora.data import DATASETS, Data, decode_image, list_images, load_data
    from clip_randlora.errors import UserError
    from clip_randlora.evaluation import PairedPredictor, SideBySide, as_mapping
    from clip_randlora.export import (
        export_formats,
        export_precisions,
        export_run,
        loading_snippet,
    )
    from clip_randlora.few_shot import Interrupted, Run, Step, TrainConfig, fit
    from clip_randlora.runs.held_out import CountedImages, find_test_images
    from clip_randlora.runs.task import Task, read_task
    from clip_randlora.training.presets import PRESETS, read_preset
    from clip_randlora.training.trainer import training_forward

__version__ = "0.1.0"

_HOMES = {
    "adapters": (
        "METHODS",
        "Adapter",
        "CLIPLoRA",
        "Full",
        "LinearProbe",
        "LoRA",
        "NoLA",
        "RandLoRA",
        "VeRA",
        "ZeroShot",
        "add_adapters",
        "attach",
        "find_weights",
        "load_adapter",
        "randlora_delta",
        "save_peft_adapter",
        "select_weights",
    ),
    "classifier": ("Classifier",),
    "runs.task": ("Task", "read_task"),
    "data": (
        "DATASETS",
        "Data",
        "decode_image",
        "list_images",
        "load_data",
    ),
    "errors": ("UserError",),
    "evaluation": (
        "PairedPredictor",
        "SideBySide",
        "as_mapping",
    ),
    "export": ("export_formats", "export_precisions", "export_run", "loading_snippet"),
    "runs.held_out": ("CountedImages", "find_test_images"),
    "clip.models": (
        "SUGGESTIONS",
        "Model",
        "Suggestion",
        "load_model",
    ),
    "training.presets": (
        "PRESETS",
        "read_preset",
    ),
    "training.trainer": ("training_forward",),
    "few_shot": (
        "Interrupted",
        "Run",
        "Step",
        "TrainConfig",
        "fit",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``--help`` must not wait for it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the names that are imported on first use too: for ``dir`` and completion."""
    return sorted({*globals(), *__all__})
