"""The format ``adapter``: the trainable parameters, for `load_adapter` and `Classifier.load`."""

from __future__ import annotations

from pathlib import Path

import torch

from clip_randlora.adapters import load_adapter
from clip_randlora.adapters.io.adapter_files import FILE_NAME
from clip_randlora.clip.models import load_model
from clip_randlora.export.export_source import ExportSource, encode
from clip_randlora.runs.confidence_file import write_confidence
from clip_randlora.utils.outputs import write_json


def write(source: ExportSource, folder: Path) -> None:
    """Write the adapter file, and ``config.json`` with base model, settings and prompts."""
    adapter = source.adapter_at_strength()
    base = {"model": source.model.name, "pretrained": source.model.pretrained}
    task = {"classes": source.classes, "templates": ["{}"], "prompts": source.prompts}
    confidence = source.confidence.at(source.strength)
    task["confidence"] = confidence.model_dump(mode="json")
    adapter.save(folder / FILE_NAME, base | task)
    settings = adapter.config.model_dump(mode="json")
    config = {"base": base, "adapter": settings, "classes": source.prompts}
    write_json(folder / "config.json", config)
    write_confidence(folder, confidence, source.known)


def verify(source: ExportSource, folder: Path) -> None:
    """Load the adapter onto a fresh base model and compare the features."""
    with source.step("loading the export"):
        fresh = load_model(source.model.name, source.model.pretrained, "cpu")
        adapter = load_adapter(fresh.net, folder)
    with torch.no_grad(), adapter.cached_weights():
        features = encode(fresh.net, source.expected.pixels, source.expected.tokens)
    source.expected.require_equal(*features, tolerance=1e-5)
