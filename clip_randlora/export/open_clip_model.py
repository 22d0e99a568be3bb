"""The format ``open_clip``: merged weights that open_clip loads without this package."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file

from clip_randlora.export.export_source import Features, Source, require_equal


def check(source: Source) -> None:
    """Every run can be written."""


def write(source: Source, folder: Path, precision: str) -> None:
    """Merge the adapter and write the model as a folder of open_clip's."""
    source.adapter.merge()
    net = source.model.net
    weights = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": _architecture(source), "preprocess_cfg": net.visual.preprocess_cfg}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    source.write_prompts(folder)


def verify(source: Source, expected: Features, folder: Path, precision: str) -> None:
    """Load it with open_clip and compare features and preprocessing."""
    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder.resolve()}")
    net.eval()
    with torch.inference_mode():
        images = net.encode_image(expected.pixels, normalize=True)
        texts = net.encode_text(expected.tokens, normalize=True)
    require_equal("image features", images, expected.images, 1e-5)
    require_equal("text features", texts, expected.texts, 1e-5)
    image = Image.radial_gradient("L").resize((300, 200)).convert("RGB")
    require_equal("pixels", preprocess(image), source.model.preprocess(image), 0.0)


def _architecture(source: Source) -> dict:
    """Return the network's configuration, with the activation that it really has."""
    config = source.model.architecture
    if any(isinstance(module, QuickGELU) for module in source.model.net.modules()):
        # open_clip sets it by the tag of the weights, which the folder no longer has
        config["quick_gelu"] = True
    return config
