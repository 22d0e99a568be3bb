"""The format ``onnx``: both encoders and a classifier for ONNX Runtime, with a script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from clip_randlora.export.export_source import ExportSource, require_equal
from clip_randlora.export.onnx_graphs import store_in, to_graph

_IMAGES, _TEXTS, _CLASSIFIER = "image_encoder.onnx", "text_encoder.onnx", "classifier.onnx"
_SCRIPT = "classify.py"
# Rounding the weights to half precision moves a logit by up to about 0.1, and so a probability by
# up to a quarter of that.
_TOLERANCE = {"fp32": 1e-4, "fp16": 2.5e-2}


class _Encoder(nn.Module):
    """One of open_clip's encoders as a module: inputs (N, ...) -> unit features (N, E)."""

    def __init__(self, net: nn.Module, encode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.encode = net, encode

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encode(inputs)


class _Head(nn.Module):
    """Unit features (N, E) -> probabilities (N, C)."""

    weight: Tensor

    def __init__(self, classes: Tensor, logit_scale: float):
        super().__init__()
        self.register_buffer("weight", logit_scale * classes.T.clone())

    def forward(self, image_features: Tensor) -> Tensor:
        return (image_features @ self.weight).softmax(dim=-1)


def write(source: ExportSource, folder: Path) -> None:
    """Merge the adapter, and write the three models and the script."""
    source.adapter.merge()
    net: Any = source.model.net
    expected = source.expected
    image_encoder = _Encoder(net, lambda pixels: net.encode_image(pixels, normalize=True))
    # ONNX Runtime has no argmax of 64-bit integers, hence int()
    text_encoder = _Encoder(net, lambda tokens: net.encode_text(tokens.int(), normalize=True))
    with source.step("converting the image encoder"):
        images = to_graph(image_encoder, expected.pixels, "pixels", ["image_features"])
    with source.step("converting the text encoder"):
        texts = to_graph(text_encoder, expected.tokens, "tokens", ["text_features"])
    head = to_graph(
        _Head(expected.classes, source.logit_scale),
        expected.images,
        "image_features",
        ["probabilities"],
    )
    images, texts = (store_in(source.precision, model) for model in (images, texts))
    head = onnx.compose.add_prefix(head, "head_", rename_inputs=False, rename_outputs=False)
    joint = [("image_features", "image_features")]
    classifier = onnx.compose.merge_models(images, head, io_map=joint)
    for name, model in ((_IMAGES, images), (_TEXTS, texts), (_CLASSIFIER, classifier)):
        onnx.helper.set_model_props(model, _metadata(source))
        with source.step(f"writing {name}"):
            onnx.save(model, folder / name)
    shutil.copy(Path(__file__).with_name(_SCRIPT), folder / _SCRIPT)


def _metadata(source: ExportSource) -> dict[str, str]:
    """Return what a user of the models has to know, as JSON values."""
    settings, resample = source.preprocess_cfg, source.resampling
    metadata = {
        "classes": source.classes,
        "prompts": source.prompts,
        "image_size": source.model.image_size,
        "mean": settings["mean"],
        "std": settings["std"],
        "interpolation": resample.name.lower(),
        "resample": int(resample),  # Pillow's number for it
        "resize_mode": settings.get("resize_mode", "shortest"),
        "strength": source.strength,
        "temperature": source.temperature,  # which the probabilities have already
        "unknown": source.unknown(),
        "precision": source.precision,
        "base_model": source.runs[0].base_name,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}


def verify(source: ExportSource, folder: Path) -> None:
    """Run all three models in ONNX Runtime, on one input and on a batch, and compare."""
    expected = source.expected
    probabilities = expected.probabilities(source.logit_scale)
    for name, what, inputs, outputs in (
        (_IMAGES, "image features", expected.pixels, expected.images),
        (_TEXTS, "text features", expected.tokens, expected.texts),
        (_CLASSIFIER, "probabilities", expected.pixels, probabilities),
    ):
        with source.step(f"checking {name}"):
            onnx.checker.check_model(folder / name)
            session = onnxruntime.InferenceSession(
                folder / name, providers=["CPUExecutionProvider"]
            )
            key = session.get_inputs()[0].name
            for rows in (slice(0, 1), slice(None)):
                (got,) = session.run(None, {key: inputs[rows].numpy()})
                tolerance = _TOLERANCE[source.precision]
                require_equal(what, torch.from_numpy(got), outputs[rows], tolerance)
