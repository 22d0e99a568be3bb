"""Tuned encoders for other libraries: each export is a folder, checked by loading it back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from clip_randlora.errors import OutOfMemory, UserError, is_out_of_memory, needs_extra
from clip_randlora.export import card
from clip_randlora.export.export_source import Source
from clip_randlora.export.upload import push, require_token
from clip_randlora.utils.outputs import LOCK, lock_folder, remove_if_left_empty, set_default_modes

__all__ = [
    "export_formats",
    "export_precisions",
    "export_run",
    "loading_snippet",
    "push",
    "require_token",
]


@dataclass(frozen=True)
class _Format:
    """One format: what it is, the module that writes and checks it, its precisions."""

    description: str
    module: str
    precisions: tuple[str, ...] = ("fp32",)


_FORMATS = {
    "adapter": _Format(
        "The trained numbers and their settings, for this package: the smallest, of one run or of "
        "several added with weights.",
        "adapter_file",
    ),
    "open_clip": _Format(
        "Both encoders with the update merged in, for plain open_clip.", "open_clip_model"
    ),
    "transformers": _Format(
        "CLIPModel and processor of Hugging Face transformers, for ViT models.",
        "transformers_model",
    ),
    "peft": _Format(
        "A RandLoRA adapter that peft loads onto transformers' CLIPModel and can train on.",
        "peft_adapter",
    ),
    "onnx": _Format(
        "Image encoder, text encoder and a classifier of the run's classes for ONNX Runtime, with "
        "a script that needs neither this package nor torch.",
        "onnx_models",
        ("fp32", "fp16"),
    ),
    "head": _Format(
        "The class embeddings alone, for those who already run the image encoder.", "head"
    ),
}


def export_formats() -> dict[str, str]:
    """Return ``{format: one sentence about it}``; what each of them writes is a folder."""
    return {name: known.description for name, known in _FORMATS.items()}


def export_precisions(format: str) -> tuple[str, ...]:
    """Return the precisions in which a format can be written, the default first.

    Raises:
        UserError: there is no such format.
    """
    return _known(format).precisions


def export_run(
    run: str | Path,
    format: str,
    out: str | Path,
    *,
    strength: float = 1.0,
    precision: str = "fp32",
    add: Sequence[str | Path] = (),
    weights: Sequence[float] | None = None,
) -> Path:
    """Write a finished run in another library's format, with a model card.

    The result is loaded back by that library and compared with this package's answers; only then
    is it given its name, so that ``out`` is whole or not there.

    Args:
        run: folder of a finished run.
        format: one of `export_formats`.
        out: folder to make; must not exist.
        strength: 0 (zero-shot) to 1 (tuned), as `Adapter.strength`.
        precision: ``fp32``; or ``fp16``, for ``onnx``.
        add: further runs on the same base model, whose updates are added in weight space.
        weights: a factor for ``run`` and for each of ``add``; by default their average.

    Returns:
        ``out``.

    Raises:
        UserError: the run is incomplete, the format does not fit its model, or ``out`` cannot be
            written; one line that says what to do.
    """
    known, out = _known(format), Path(out)
    if precision not in known.precisions:
        raise UserError(
            f"--precision {precision}: {format} is written in {' or '.join(known.precisions)}"
        )
    if weights is not None and not add:
        raise UserError("--weights: there is one run only; name the others with --add")
    _require_free(out)
    writer = _load(format)
    source = Source.load(run, strength, add, weights)
    writer.check(source)
    expected = source.features()
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with remove_if_left_empty(out.parent), lock_folder(temporary, out):
            try:
                _empty(temporary)
                writer.write(source, temporary, precision)
                writer.verify(source, expected, temporary, precision)
                text = card.write(source, format, out.name, precision)
                (temporary / "README.md").write_text(text, encoding="utf-8")
                (temporary / LOCK).unlink()
                set_default_modes(temporary, like=temporary / "README.md")
                temporary.rename(out)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except UserError:
        raise
    except Exception as error:  # the other libraries raise many kinds
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"--format {format} --out {out}: nothing written, out of memory; end other "
                f"programs, or use a machine with more"
            ) from error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(
            f"--format {format} --out {out}: nothing written ({reason or type(error).__name__}); "
            f"choose another folder or format"
        ) from error
    return out


def loading_snippet(run: str | Path, format: str, path: str | Path = "exported") -> str:
    """Return Python that loads an export of ``run``, without this package wherever that can be.

    Args:
        run: folder of a finished run.
        format: one of `export_formats`.
        path: where the export will be.
    """
    _known(format)
    return card.snippet(Source.describe(run), format, str(path))


def _known(format: str) -> _Format:
    if format not in _FORMATS:
        raise UserError(f"--format {format}: there is {', '.join(_FORMATS)}")
    return _FORMATS[format]


def _load(format: str) -> ModuleType:
    with needs_extra(f"--format {format}", "export"):
        return import_module(f"{__name__}.{_FORMATS[format].module}")


def _empty(folder: Path) -> None:
    """Remove what an export that was killed has left behind."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _require_free(out: Path) -> None:
    """Refuse a path that is taken or cannot be written, before anything slow is done."""
    try:
        is_taken = out.exists() or out.is_symlink()
        parent = next(parent for parent in out.absolute().parents if parent.exists())
    except OSError as error:  # a name that is too long, say
        raise UserError(
            f"--out {str(out)[:60]}: cannot be written ({error.strerror}); choose another"
        ) from error
    if is_taken:
        raise UserError(f"--out {out}: exists; choose another folder, exports replace nothing")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: {parent} cannot be written to; choose another folder")
