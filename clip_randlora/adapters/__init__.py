"""Weight-space adapters: the trained updates, where they attach, how they are stored."""

from clip_randlora.adapters.adapter import (
    AdaptedSummary,
    Adapter,
    add_adapters,
    attach,
    load_adapter,
)
from clip_randlora.adapters.config import (
    METHODS,
    AdapterConfig,
    CLIPLoRA,
    Full,
    LinearProbe,
    LoRA,
    MethodConfig,
    NoLA,
    RandLoRA,
    VeRA,
    ZeroShot,
    parse_method,
)
from clip_randlora.adapters.io.peft_files import save_peft_adapter
from clip_randlora.adapters.randlora import randlora_delta
from clip_randlora.adapters.targets import TargetWeight, find_weights, select_weights

__all__ = [
    "METHODS",
    "AdaptedSummary",
    "Adapter",
    "AdapterConfig",
    "CLIPLoRA",
    "Full",
    "LinearProbe",
    "LoRA",
    "MethodConfig",
    "NoLA",
    "RandLoRA",
    "TargetWeight",
    "VeRA",
    "ZeroShot",
    "add_adapters",
    "attach",
    "find_weights",
    "load_adapter",
    "parse_method",
    "randlora_delta",
    "save_peft_adapter",
    "select_weights",
]
