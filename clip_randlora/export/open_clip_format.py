"""The format ``open_clip``: merged weights that open_clip loads without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file

from clip_randlora.export.export_source import ExportSource, encode, require_equal, require_scale
from clip_randlora.utils.outputs import write_json


def write(source: ExportSource, folder: Path) -> None:
    """Merge the adapter, and write weights and configuration as open_clip reads them."""
    source.adapter.merge()
    weights = {key: tensor.contiguous() for key, tensor in source.merged_weights().items()}
    with source.step("writing the weights"):
        save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": _architecture(source), "preprocess_cfg": source.preprocess_cfg}
    write_json(folder / "open_clip_config.json", config)
    source.write_prompts(folder)


def _architecture(source: ExportSource) -> dict[str, Any]:
    """Return the model's configuration, with the activation that it has."""
    config = source.model.architecture
    if any(isinstance(module, QuickGELU) for module in source.model.net.modules()):
        # open_clip infers it from the pretrained tag, which a local folder does not have
        config["quick_gelu"] = True
    return config


def verify(source: ExportSource, folder: Path) -> None:
    """Load the folder with open_clip and compare features and preprocessing."""
    with source.step("loading the export"):
        net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder.resolve()}")
    features = encode(net.eval(), source.expected.pixels, source.expected.tokens)
    source.expected.require_equal(*features, tolerance=1e-5)
    require_scale(net.logit_scale, source.logit_scale)
    image = Image.radial_gradient("L").resize((300, 200)).convert("RGB")
    require_equal("pixels", preprocess(image), source.model.preprocess(image), 0.0)
