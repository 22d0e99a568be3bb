"""The format ``head``: class embeddings for an image encoder that runs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clip_randlora.export.export_source import Features, Source, require_equal

FILE_NAME = "class_embeddings.safetensors"


def check(source: Source) -> None:
    """Every run can be written."""


def write(source: Source, folder: Path, precision: str) -> None:
    """Write unit class embeddings (C, E), the logit scale and, in the metadata, the classes."""
    embeddings = source.features().classes.clone()
    tensors = {"class_embeddings": embeddings, "logit_scale": torch.tensor(source.scale)}
    metadata = {
        "format": "pt",
        "classes": json.dumps(source.classes, ensure_ascii=False),
        "prompts": json.dumps(source.prompts, ensure_ascii=False),
        "strength": str(source.strength),
    }
    save_file(tensors, folder / FILE_NAME, metadata=metadata)


def verify(source: Source, expected: Features, folder: Path, precision: str) -> None:
    """Read it back and compare the answers."""
    tensors = load_file(folder / FILE_NAME)
    logits = tensors["logit_scale"] * expected.images @ tensors["class_embeddings"].T
    probabilities = expected.probabilities(source.scale)
    require_equal("probabilities", logits.softmax(dim=-1), probabilities, 1e-6)
