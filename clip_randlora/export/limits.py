"""Which models and methods a format can hold."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

from clip_randlora.adapters.heads import LinearHead
from clip_randlora.adapters.io.peft_files import unknown_to_peft
from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.errors import UserError
from clip_randlora.export.export_source import ExportSource

_LARGEST_ONNX_BYTES = 2**31 - 1


def require_fit(source: ExportSource, format: str) -> None:
    """Raise a UserError with the reason if the format cannot hold the source."""
    reason = find_obstacle(source, format)
    if reason:
        raise UserError(f"--format {format}: {reason}")


def find_obstacle(source: ExportSource, format: str) -> str:
    """Return why the format cannot hold the source, "" if it can.

    ``adapter``, ``open_clip`` and ``head`` hold every model. Of a method that trains a head, only
    ``web`` and, if it is linear, ``head`` hold anything.
    """
    method, model = source.adapter.config.method, source.model.name
    if source.adapter.head is not None and format != "web":
        if not isinstance(source.adapter.head, LinearHead):
            return f"{method} is not linear; clip_randlora.Classifier.load takes the run's folder"
        return "" if format == "head" else f"{method} leaves both encoders as they are; use head"
    if format == "peft" and method != "randlora":
        return f"it is for one randlora run, and this is a {method}; use open_clip or transformers"
    if format == "peft" and (unknown := unknown_to_peft(source.adapter.config)):
        return f"peft's RandLoRA has no {unknown}; use open_clip or transformers"
    if format in ("transformers", "peft"):
        difference = _difference_from_openai(source)
        if difference:
            return (
                f"it takes OpenAI's and LAION's ViT models, and {model} {difference}; use "
                f"open_clip or onnx"
            )
    if format in ("onnx", "web"):
        largest = _largest_file(source, format)
        if largest > _LARGEST_ONNX_BYTES:
            return f"one ONNX file holds 2 GB, and {model} needs {largest / 1e9:.1f}; use open_clip"
        if _pads_images(source):
            return f"{model} pads its images; use open_clip"
    return ""


def _difference_from_openai(source: ExportSource) -> str:
    try:
        to_transformers(source.base_weights())
    except UserError:
        return "has other layers"
    if not isinstance(source.model.tokenizer, SimpleTokenizer):
        return "has another tokenizer"
    return "pads its images" if _pads_images(source) else ""


def _largest_file(source: ExportSource, format: str) -> int:
    """Return the size in float32 of the larger encoder; of a web page, of its image encoders."""
    sizes = {"image": 0, "text": 0}
    for name, tensor in source.base_weights().items():
        sizes["image" if name.startswith("visual.") else "text"] += 4 * tensor.numel()
    if format == "onnx":
        return max(sizes.values())
    has_two = any(weight.tower == "vision" for weight in source.adapter.weights.values())
    return sizes["image"] * (2 if has_two else 1)


def _pads_images(source: ExportSource) -> bool:
    return source.preprocess_cfg.get("resize_mode", "shortest") == "longest"
