"""The format ``peft``: a RandLoRA adapter for transformers' ``CLIPModel``."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import CLIPModel

from clip_randlora.adapters import save_peft_adapter
from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.export.export_source import ExportSource
from clip_randlora.export.snippets import transformers_base
from clip_randlora.export.transformers_format import clip_config, require_equal_features
from clip_randlora.utils.outputs import write_json
from clip_randlora.utils.quiet import without_warnings


def write(source: ExportSource, folder: Path) -> None:
    """Write the adapter; its strength goes into alpha.

    The base's logit scale is not the adapter's, so the one with the temperature has its own file.
    """
    with source.step("writing the adapter"):
        save_peft_adapter(source.adapter, folder, transformers_base(source.runs[0]))
    source.write_prompts(folder)
    write_json(folder / "logit_scale.json", source.logit_scale)


def verify(source: ExportSource, folder: Path) -> None:
    """Load the adapter with peft onto transformers' form of the base and compare the features."""
    with source.step("loading the base model"):
        net = CLIPModel(clip_config(source.model.net))
        net.load_state_dict(to_transformers(source.base_weights()))
    with without_warnings():  # up to 0.21.2 peft also looks for the shared bases in each layer
        require_equal_features(PeftModel.from_pretrained(net, folder), source.expected)
