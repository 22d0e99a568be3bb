"""The format ``onnx``: both encoders and a one-file classifier for ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 - torch's exporter needs it, and says so too late
import torch
from torch import Tensor, nn

from clip_randlora.errors import UserError
from clip_randlora.export.card import base_name
from clip_randlora.export.export_source import Features, Source, require_equal, resampling
from clip_randlora.utils.quiet import quiet

_IMAGES, _TEXTS, _CLASSIFIER = "image_encoder.onnx", "text_encoder.onnx", "classifier.onnx"
_SCRIPT = "classify.py"
_LARGEST_BYTES = 2**31 - 1  # of one ONNX file
_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
_FEWEST_IN_HALF = 2**12  # numbers; smaller tensors are little of a file and most of its error


class _ImageEncoder(nn.Module):
    """Normalised pixels float32 (N, 3, S, S) -> unit features (N, E)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net.encode_image(pixels, normalize=True)


class _TextEncoder(nn.Module):
    """Tokens int64 (N, L) -> unit features (N, E)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        # ONNX Runtime has no argmax of 64-bit integers
        return self.net.encode_text(tokens.int(), normalize=True)


class _Head(nn.Module):
    """Unit features (N, E) -> probabilities (N, C)."""

    def __init__(self, classes: Tensor, scale: float):
        super().__init__()
        self.register_buffer("logits_of_features", scale * classes.T.clone())

    def forward(self, image_features: Tensor) -> Tensor:
        return (image_features @ self.logits_of_features).softmax(dim=-1)


def check(source: Source) -> None:
    """Refuse models that do not fit in ONNX's files, or whose images the script cannot prepare."""
    net = source.model.net
    sizes = {True: 0, False: 0}
    for name, tensor in source.base_weights().items():
        sizes[name.startswith("visual.")] += 4 * tensor.numel()
    size = max(sizes.values())
    if size > _LARGEST_BYTES:
        raise UserError(
            f"--format onnx: {source.model.name} has an encoder of {size / 1e9:.1f} GB, and one "
            f"ONNX file holds 2; use open_clip"
        )
    if net.visual.preprocess_cfg.get("resize_mode", "shortest") == "longest":
        raise UserError(f"--format onnx: {source.model.name} pads its images; use open_clip")


def write(source: Source, folder: Path, precision: str) -> None:
    """Merge the adapter and write the three models and the script."""
    expected = source.features()
    source.adapter.merge()
    net = source.model.net
    images = _export(_ImageEncoder(net), expected.pixels, "pixels", "image_features")
    texts = _export(_TextEncoder(net), expected.tokens, "tokens", "text_features")
    head = _export(
        _Head(expected.classes, source.scale), expected.images, "image_features", "probabilities"
    )
    if precision == "fp16":
        images, texts = _to_half(images), _to_half(texts)
    joint = [("image_features", "image_features")]
    head = onnx.compose.add_prefix(head, "head_", rename_inputs=False, rename_outputs=False)
    classifier = onnx.compose.merge_models(images, head, io_map=joint)
    for name, model in ((_IMAGES, images), (_TEXTS, texts), (_CLASSIFIER, classifier)):
        onnx.helper.set_model_props(model, _facts(source, precision))
        onnx.save(model, folder / name)
    shutil.copy(Path(__file__).with_name(_SCRIPT), folder / _SCRIPT)


def verify(source: Source, expected: Features, folder: Path, precision: str) -> None:
    """Run all three in ONNX Runtime on the CPU, one by one and as a batch, and compare."""
    tolerance = _TOLERANCE[precision]
    probabilities = expected.probabilities(source.scale)
    for name, what, inputs, wanted in (
        (_IMAGES, "image features", expected.pixels, expected.images),
        (_TEXTS, "text features", expected.tokens, expected.texts),
        (_CLASSIFIER, "probabilities", expected.pixels, probabilities),
    ):
        onnx.checker.check_model(folder / name)
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        key = session.get_inputs()[0].name
        for rows in (slice(0, 1), slice(None)):
            (got,) = session.run(None, {key: inputs[rows].numpy()})
            require_equal(what, torch.from_numpy(got), wanted[rows], tolerance)


def _export(module: nn.Module, example: Tensor, takes: str, gives: str) -> onnx.ModelProto:
    example = torch.cat([example, example])  # a batch of 1 would be taken for a constant
    batch = torch.export.Dim("batch")
    with torch.no_grad(), quiet("torch", "torch.onnx"):
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[takes],
            output_names=[gives],
            dynamic_shapes=({0: batch},),
        )
    return program.model_proto


def _to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the large weights in half precision; the arithmetic stays in single precision.

    ONNX Runtime casts them once, when it loads the model.
    """
    casts = []
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _FEWEST_IN_HALF:
            continue
        name, stored = weight.name, f"{weight.name}_half"
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _facts(source: Source, precision: str) -> dict[str, str]:
    """Return what a user of the models has to know, as JSON values."""
    settings = source.model.net.visual.preprocess_cfg
    resample = resampling(settings)
    facts = {
        "classes": source.classes,
        "prompts": source.prompts,
        "image_size": source.model.image_size,
        "mean": settings["mean"],
        "std": settings["std"],
        "interpolation": resample.name.lower(),
        "resample": int(resample),  # Pillow's number for it
        "resize_mode": settings.get("resize_mode", "shortest"),
        "strength": source.strength,
        "precision": precision,
        "base_model": base_name(source.description),
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
