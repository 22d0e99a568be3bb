"""Weight-space adapters: the trained updates, where they attach, how they are stored.

A method is one page (`randlora`, `lora`, `vera`, `nola`, `dora`, `kradapter`, `norm_tuning`,
`full`): its settings, and the module that forms its update. `heads` has the methods that train a
classifier on frozen features instead. `methods` lists them all. `targets` finds the weights to
adapt, `adapter` attaches an update to each. `fast` computes updates quickly, `io` reads and writes
files.
"""

from clip_randlora.adapters.adapter import AdaptedSummary, Adapter, attach, check_strength
from clip_randlora.adapters.config import AdapterConfig, MethodConfig
from clip_randlora.adapters.dora import DoRA
from clip_randlora.adapters.full import Full
from clip_randlora.adapters.heads import GDA, AnchoredHead, HeadConfig, LinearProbe, TipAdapterF
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
from clip_randlora.adapters.zero_shot import ZeroShot

__all__ = [
    "GDA",
    "METHODS",
    "AdaptedSummary",
    "Adapter",
    "AdapterConfig",
    "AnchoredHead",
    "CLIPLoRA",
    "DoRA",
    "Full",
    "HeadConfig",
    "KRAdapter",
    "LinearProbe",
    "LoRA",
    "MethodConfig",
    "NoLA",
    "NormTuning",
    "RandLoRA",
    "TargetWeight",
    "TipAdapterF",
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
