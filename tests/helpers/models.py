"""Small models of real architectures, with random weights, and adapters that change something."""

import json
from pathlib import Path

import torch

from clip_randlora.clip.models import load_model

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 3,
    },
}


def write_model(folder: Path, config: dict) -> Path:
    """Write a model with random weights, always the same, in open_clip's folder format."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    torch.manual_seed(0)
    save_file(
        load_model(str(folder), pretrained=None).net.state_dict(),
        folder / "open_clip_model.safetensors",
    )
    return folder


def randomize(adapter, seed: int = 0, spread: float = 0.02) -> None:
    """Give an adapter random coefficients, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, spread, generator=generator))
