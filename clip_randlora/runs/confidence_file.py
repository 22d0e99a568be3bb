"""A run's ``confidence.json`` and ``confidence.safetensors``: how sure its answers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_randlora.adapters.config import one_line
from clip_randlora.adapters.io import adapter_files
from clip_randlora.confidence import Confidence
from clip_randlora.errors import UserError
from clip_randlora.utils.outputs import atomic_write, write_json

FILE_NAME = "confidence.json"
KNOWN = "confidence.safetensors"


def write_confidence(folder: Path, confidence: Confidence, known: Tensor | None = None) -> None:
    """Write ``confidence.json``, and the features of the training images (N, E) if they are given.

    They are what `read_known` reads.
    """
    write_json(folder / FILE_NAME, confidence.model_dump(mode="json"))
    if known is not None and len(known):
        with atomic_write(folder / KNOWN) as temporary:
            save_file({"features": known.half().contiguous()}, temporary)


def read_known(path: str | Path) -> Tensor | None:
    """Read the zero-shot features of a run's training images, float32 (N, E).

    Args:
        path: a run folder, or the adapter file in it.

    Returns:
        None where the run has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / KNOWN
    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from error
    if features.ndim != 2 or not len(features) or not features.isfinite().all():
        raise UserError(f"{path}: damaged, its features have another shape; copy it again")
    return features


def read_confidence(path: str | Path) -> Confidence:
    """Read the file of a run folder, or the one beside an adapter file, or what is in that.

    Runs of earlier versions have none: the temperatures are 1.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(path)
    if path.is_file() and not (path.parent / FILE_NAME).exists():
        return _read_of_adapter(path)
    path = (path if path.is_dir() else path.parent) / FILE_NAME
    try:
        return Confidence.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Confidence()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise UserError(f"{path}: damaged, {one_line(error)}; copy it again") from error


def _read_of_adapter(path: Path) -> Confidence:
    """Read what an adapter file on its own has."""
    task = adapter_files.read(path).task
    found = task.get("confidence") if isinstance(task, Mapping) else None
    try:
        return Confidence() if found is None else Confidence.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, task {one_line(error)}; use another copy") from error
