"""Which models and methods a format can hold."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.errors import UserError
from clip_randlora.export.export_source import ExportSource

_LARGEST_ONNX_BYTES = 2**31 - 1


def require_fit(source: ExportSource, format: str) -> None:
    """Raise a UserError with the reason if the format cannot hold the source.

    ``adapter``, ``open_clip`` and ``head`` hold every model.
    """
    method = source.adapter.config.method
    if format == "peft" and method != "randlora":
        raise UserError(
            f"--format peft: is for one randlora run, and this is a {method}; use open_clip or "
            f"transformers"
        )
    if format in ("transformers", "peft"):
        _require_clip_layout(source, format)
    if format == "onnx":
        _require_onnx_fit(source)


def _require_clip_layout(source: ExportSource, format: str) -> None:
    model = source.model
    advice = (
        f"--format {format} takes OpenAI's and LAION's ViT models; use open_clip or onnx for "
        f"{model.name}"
    )
    try:
        to_transformers(source.base_weights())
    except UserError as error:
        raise UserError(f"{error}: {advice}") from error
    if not isinstance(model.tokenizer, SimpleTokenizer):
        raise UserError(f"its tokenizer is not CLIP's: {advice}")
    if _pads_images(source):
        raise UserError(f"its preprocessing pads images: {advice}")


def _require_onnx_fit(source: ExportSource) -> None:
    bytes_of = {"image": 0, "text": 0}
    for name, tensor in source.base_weights().items():
        bytes_of["image" if name.startswith("visual.") else "text"] += 4 * tensor.numel()
    largest = max(bytes_of.values())
    if largest > _LARGEST_ONNX_BYTES:
        raise UserError(
            f"--format onnx: {source.model.name} has an encoder of {largest / 1e9:.1f} GB, and one "
            f"ONNX file holds 2; use open_clip"
        )
    if _pads_images(source):
        raise UserError(f"--format onnx: {source.model.name} pads its images; use open_clip")


def _pads_images(source: ExportSource) -> bool:
    return source.preprocess_cfg.get("resize_mode", "shortest") == "longest"
