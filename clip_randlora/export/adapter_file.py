"""The format ``adapter``: the trained numbers, for `load_adapter`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from clip_randlora.adapters import load_adapter
from clip_randlora.adapters.io.adapter_files import FILE_NAME
from clip_randlora.clip.models import load_model
from clip_randlora.export.export_source import Features, Source, require_equal


def check(source: Source) -> None:
    """Every run can be written."""


def write(source: Source, folder: Path, precision: str) -> None:
    """Write the adapter file, and as JSON what it is for: base, classes, prompts, settings."""
    adapter = source.rescaled_adapter()
    adapter.save(folder / FILE_NAME, source.task())
    settings = {
        "base": {"model": source.model.name, "pretrained": source.model.pretrained},
        "adapter": adapter.config.model_dump(mode="json"),
        "classes": source.prompts,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def verify(source: Source, expected: Features, folder: Path, precision: str) -> None:
    """Load it onto a fresh base model and compare both encoders' features."""
    fresh = load_model(source.model.name, source.model.pretrained, "cpu")
    adapter = load_adapter(fresh.net, folder)
    with torch.inference_mode(), adapter.cached_weights():
        images = fresh.net.encode_image(expected.pixels, normalize=True)
        texts = fresh.net.encode_text(expected.tokens, normalize=True)
    require_equal("image features", images, expected.images, 1e-5)
    require_equal("text features", texts, expected.texts, 1e-5)
