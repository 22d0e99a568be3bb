"""Weight-space adapters: the trained updates, where they attach, how they are stored.

A method is one page (`randlora`, `lora`, `vera`, `nola`, `dora`, `kradapter`, `norm_tuning`,
`full`): its settings, and the module that forms its update. `methods` lists them. `targets` finds
the weights to adapt, `adapter` attaches an update to each. `fast` computes updates quickly, `io`
reads and writes files.
"""

from clip_randlora.adapters.adapter import AdaptedSummary, Adapter, attach, check_strength
from clip_randlora.adapters.config import AdapterConfig, MethodConfig
from clip_randlora.adapters.dora import DoRA
from clip_randlora.adapters.full import Full
from clip_randlora.adapters.io.load import add_adapters, load_adapter
from clip_randlora.adapters.io.peft_files import save_peft_adapter
from clip_randlora.adapters.kradapter import KRAdapter
from clip_randlora.adapters.lora import CLIPLoRA, LoRA
from clip_randlora.adapters.methods import METHODS, parse_method
from clip_randlora.adapters.nola import NoLA
from clip_randlora.adapters.norm_tuning import NormTuning
from clip_randlora.adapters.randlora import RandLoRA, randlora_delta
from clip_randlora.adapters.targets import TargetWeight, find_weights, select_weights
from clip_randlora.adapters.vera import VeRA
from clip_randlora.adapters.without_update import LinearProbe, ZeroShot

__all__ = [
    "METHODS",
    "AdaptedSummary",
    "Adapter",
    "AdapterConfig",
    "CLIPLoRA",
    "DoRA",
    "Full",
    "KRAdapter",
    "LinearProbe",
    "LoRA",
    "MethodConfig",
    "NoLA",
    "NormTuning",
    "RandLoRA",
    "TargetWeight",
    "VeRA",
    "ZeroShot",
    "add_adapters",
    "attach",
    "check_strength",
    "find_weights",
    "load_adapter",
    "parse_method",
    "randlora_delta",
    "save_peft_adapter",
    "select_weights",
]
