"""The format ``peft``: a RandLoRA adapter for transformers' ``CLIPModel``."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import CLIPModel

from clip_randlora.adapters import save_peft_adapter
from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.errors import UserError
from clip_randlora.export.card import transformers_base
from clip_randlora.export.export_source import Features, Source
from clip_randlora.export.transformers_model import (
    clip_config,
    require_clip_layout,
    require_equal_features,
)
from clip_randlora.utils.quiet import without_warnings


def check(source: Source) -> None:
    """Refuse what peft's RandLoRA on ``CLIPModel`` cannot hold, with the reason."""
    method = source.adapter.config.method
    if method != "randlora":
        raise UserError(
            f"--format peft: is for one randlora run, and this is a {method}; use open_clip or "
            f"transformers"
        )
    require_clip_layout(source, "peft")


def write(source: Source, folder: Path, precision: str) -> None:
    """Write the adapter; its strength goes into alpha."""
    save_peft_adapter(source.adapter, folder, transformers_base(source.description))
    source.write_prompts(folder)


def verify(source: Source, expected: Features, folder: Path, precision: str) -> None:
    """Load it with peft onto transformers' form of the base and compare features."""
    config = clip_config(source.model.net)
    weights = to_transformers(source.base_weights())
    net = CLIPModel(config)
    net.load_state_dict(weights)
    with without_warnings():  # up to 0.21.2 peft looks for the shared projections in each layer too
        require_equal_features(PeftModel.from_pretrained(net, folder), expected)
