"""Weight-space adapters: the trained updates, where they attach, how they are stored."""

from clip_randlora.adapters.adapter import AdaptedSummary, Adapter, attach, load_adapter
from clip_randlora.adapters.config import METHODS, AdapterConfig, LoRA, RandLoRA, parse_method
from clip_randlora.adapters.deltas import randlora_delta
from clip_randlora.adapters.targets import TargetWeight, find_weights, select_weights

__all__ = [
    "METHODS",
    "AdaptedSummary",
    "Adapter",
    "AdapterConfig",
    "LoRA",
    "RandLoRA",
    "TargetWeight",
    "attach",
    "find_weights",
    "load_adapter",
    "parse_method",
    "randlora_delta",
    "select_weights",
]
