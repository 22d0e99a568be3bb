"""The format ``head``: class embeddings, for an image encoder that runs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clip_randlora.export.export_source import ExportSource, require_equal

FILE_NAME = "class_embeddings.safetensors"


def write(source: ExportSource, folder: Path) -> None:
    """Write the class embeddings (C, E) and the logit scale; the metadata name the classes.

    They are unit vectors, but for a method that trains a head. A head may have a ``bias`` (C,), to
    be added to the logits.
    """
    tensors = {
        "class_embeddings": source.expected.classes,
        "logit_scale": torch.tensor(source.logit_scale),
    }
    if source.expected.bias is not None:
        tensors["bias"] = source.expected.bias
    metadata = {
        "format": "pt",
        "classes": json.dumps(source.classes, ensure_ascii=False),
        "prompts": json.dumps(source.prompts, ensure_ascii=False),
        "strength": str(source.strength),
        "temperature": str(source.temperature),  # which the scale and the bias have already
    }
    save_file(tensors, folder / FILE_NAME, metadata=metadata)


def verify(source: ExportSource, folder: Path) -> None:
    """Read the file and compare the probabilities."""
    tensors = load_file(folder / FILE_NAME)
    logits = tensors["logit_scale"] * source.expected.images @ tensors["class_embeddings"].T
    logits = logits + tensors.get("bias", 0)
    probabilities = source.expected.probabilities(source.logit_scale)
    require_equal("probabilities", logits.softmax(dim=-1), probabilities, 1e-6)
