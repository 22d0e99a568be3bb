"""Small models of real architectures, with random weights, in open_clip's own folder format."""

import json
from pathlib import Path

import pytest
import torch

from clip_randlora.models import Model, load_model

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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A ViT CLIP of 2.6 M weights as a local folder, random but always the same."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": {}})
    )
    torch.manual_seed(0)
    save_file(
        load_model(str(folder), pretrained=None).net.state_dict(),
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture
def tiny(tiny_folder) -> Model:
    return load_model(str(tiny_folder))


def randomize(adapter, seed: int = 0, spread: float = 0.02) -> None:
    """Give an adapter random coefficients, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, spread, generator=generator)
