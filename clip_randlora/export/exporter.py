"""What all formats share: a run is loaded, written, loaded back, compared, and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from clip_randlora.errors import OutOfMemory, UserError, is_out_of_memory, needs_extra
from clip_randlora.export import card
from clip_randlora.export.export_source import ExportSource, RunInfo
from clip_randlora.export.limits import find_obstacle, require_fit
from clip_randlora.export.snippets import snippet
from clip_randlora.utils.outputs import LOCK, lock_folder, remove_if_left_empty, set_default_modes
from clip_randlora.utils.progress import OnProgress

# Format X is the module X_format, with ``write(source, folder)`` and ``verify(source, folder)``,
# which raises a UserError if what is loaded back gives other features. What takes long is a
# ``source.step``.
_FORMATS = {
    "adapter": "The trained parameters and their settings, for this package: the smallest, of one "
    "run or of several added with weights.",
    "open_clip": "Both encoders with the update merged in, for plain open_clip.",
    "transformers": "CLIPModel and processor of Hugging Face transformers, for ViT models.",
    "peft": "A RandLoRA adapter that peft loads onto transformers' CLIPModel and can train on.",
    "onnx": "Image encoder, text encoder and a classifier of the run's classes for ONNX Runtime, "
    "with a script that needs neither this package nor torch.",
    "web": "A web page for any static host: the browser classifies images, before and after.",
    "head": "The class embeddings alone, for those who already run the image encoder.",
}
_PRECISIONS = {"onnx": ("fp32", "fp16"), "web": ("fp16", "int8", "fp32")}


def export_formats() -> dict[str, str]:
    """Return ``{format: one sentence about it}``."""
    return dict(_FORMATS)


def export_precisions(format: str) -> tuple[str, ...]:
    """Return the precisions in which a format can be written, the default first.

    Raises:
        UserError: there is no such format.
    """
    _require_known(format)
    return _PRECISIONS.get(format, ("fp32",))


def export_obstacles(run: str | Path) -> dict[str, str]:
    """Return ``{format: why it cannot hold this run}``, with "" for the formats that can.

    Raises:
        UserError: the run is not finished, or no format can hold it.
    """
    source = ExportSource(run)
    return {format: find_obstacle(source, format) for format in _FORMATS}


def loading_snippet(run: str | Path, format: str, path: str | Path = "exported") -> str:
    """Return Python that loads an export of ``run``, without this package where that is possible.

    Args:
        run: folder of a finished run.
        format: one of `export_formats`.
        path: where the export will be.

    Raises:
        UserError: there is no such format, or the run is not finished.
    """
    _require_known(format)
    return snippet(RunInfo.read(run), format, str(path))


def export_run(
    run: str | Path,
    format: str,
    out: str | Path,
    *,
    strength: float = 1.0,
    precision: str = "fp32",
    add: Sequence[str | Path] = (),
    weights: Sequence[float] | None = None,
    offline: bool = False,
    runtime: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write a finished run in another library's format, with a model card.

    The result is written under another name, loaded back by that library and compared with this
    package's features, and then renamed: ``out`` is complete and right, or it does not exist.

    Args:
        run: folder of a finished run.
        format: one of `export_formats`.
        out: folder to create; must not exist.
        strength: 0 (zero-shot) to 1 (tuned), as `Adapter.strength`.
        precision: ``fp32``, for ``onnx`` and ``web`` also ``fp16``, for ``web`` also ``int8``.
        add: further runs on the same base model, whose updates are added in weight space.
        weights: a factor for ``run`` and for each of ``add``; by default their average.
        offline: for ``web``: put onnxruntime-web, which npm downloads, into the folder. Otherwise
            the page loads it from cdn.jsdelivr.net.
        runtime: for ``web``: take it from here, the folder ``dist`` of that package.
        on_progress: told each step, see `clip_randlora.utils.progress.OnProgress`.

    Returns:
        ``out``.

    Raises:
        UserError: the run is not finished, the format cannot hold its model, or ``out`` cannot be
            written.
    """
    out, precisions = Path(out), export_precisions(format)
    if precision not in precisions:
        raise UserError(
            f"--precision {precision}: {format} is written in {' or '.join(precisions)}"
        )
    if weights is not None and not add:
        raise UserError("--weights: there is one run only; name the others with --add")
    if (offline or runtime is not None) and format != "web":
        raise UserError(f"--offline, --runtime: are for --format web; leave them out for {format}")
    options = {"offline": offline, "runtime": runtime} if format == "web" else {}
    _require_free(out)
    writer = _import_writer(format)
    source = ExportSource(run, strength, precision, add, weights, on_progress)
    require_fit(source, format)
    temporary = out.with_name(f".{out.name}.tmp")
    with (
        _errors_in_one_line(format, out),
        remove_if_left_empty(out.parent),
        lock_folder(temporary, out),
    ):
        try:
            _empty(temporary)
            writer.write(source, temporary, **options)
            writer.verify(source, temporary)
            text = card.write(source, format, out.name)
            (temporary / "README.md").write_text(text, encoding="utf-8")
            (temporary / LOCK).unlink()
            set_default_modes(temporary, like=temporary / "README.md")
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def _require_known(format: str) -> None:
    if format not in _FORMATS:
        raise UserError(f"--format {format}: there is {', '.join(_FORMATS)}")


def _import_writer(format: str) -> ModuleType:
    with needs_extra(f"--format {format}", "export"):
        return import_module(f"clip_randlora.export.{format}_format")


def _require_free(out: Path) -> None:
    """Refuse a path that exists or cannot be written, before anything slow is done."""
    try:
        is_taken = out.exists() or out.is_symlink()
        parent = next(parent for parent in out.absolute().parents if parent.exists())
    except OSError as error:  # a name that is too long, for example
        raise UserError(
            f"--out {str(out)[:60]}: cannot be written ({error.strerror}); choose another"
        ) from error
    if is_taken:
        raise UserError(f"--out {out}: exists; choose another folder, exports replace nothing")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: {parent} cannot be written to; choose another folder")


@contextmanager
def _errors_in_one_line(format: str, out: Path) -> Iterator[None]:
    """Turn every error of another library into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
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


def _empty(folder: Path) -> None:
    """Remove what an export that was killed has left."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
