"""Both towers as an ordinary open_clip model: one JSON and one safetensors file."""

import json
import math
from pathlib import Path

import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file

from lite0.image_tower import ARCHITECTURE

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"
CONTEXT_LENGTH, VOCABULARY = 77, 49408


def model_config(tower: TextTransformer, image_size: int) -> dict:
    """open_clip's description of the model and of its preprocessing."""
    return {
        "model_cfg": {
            "embed_dim": tower.output_dim,
            "vision_cfg": {
                "timm_model_name": ARCHITECTURE,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": image_size,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": VOCABULARY,
                "width": tower.width,
                "heads": tower.heads,
                "layers": tower.transformer.layers,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }


def state_dict(
    classifier: torch.nn.Module,
    mean: torch.Tensor,
    projection: torch.Tensor,
    tower: TextTransformer,
    scale: float,
) -> dict[str, torch.Tensor]:
    """All weights under open_clip's names; the head subtracts the mean feature and projects."""
    trunk = {
        f"visual.trunk.{name}": tensor
        for name, tensor in classifier.state_dict().items()
        if not name.startswith("classifier.")
    }
    head = {
        "visual.head.proj.weight": projection.T,
        "visual.head.proj.bias": -mean @ projection,
    }
    return {
        **trunk,
        **head,
        **tower.state_dict(),
        "logit_scale": torch.tensor(math.log(scale)),
    }


def to_storage(name: str, tensor: torch.Tensor, wide_table: bool) -> torch.Tensor:
    """Half precision; 8-bit floats for a wide token table, which would be too large."""
    if not tensor.is_floating_point():
        return tensor.contiguous()
    if wide_table and name == "token_embedding.weight":
        return tensor.to(torch.float8_e4m3fn).contiguous()
    return tensor.half().contiguous()


def write(folder: Path, config: dict, weights: dict[str, torch.Tensor]) -> int:
    """Write both files, each at once, and return the size of the weights in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    wide_table = config["model_cfg"]["text_cfg"]["width"] > 256
    stored = {name: to_storage(name, tensor, wide_table) for name, tensor in weights.items()}
    temporary = folder / (WEIGHTS_NAME + ".new")
    save_file(stored, temporary)
    temporary.replace(folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return (folder / WEIGHTS_NAME).stat().st_size
