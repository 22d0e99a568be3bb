"""Adapter files: one safetensors file, no pickle, and a fingerprint of the base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_randlora.adapters.bases import Bases
from clip_randlora.adapters.config import MethodConfig
from clip_randlora.errors import UserError
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import atomic_write

_FORMAT = "clip-randlora-adapter"
_BASES = ("bases.b", "bases.a")
FILE_NAME = "adapter.safetensors"
_SAMPLES_PER_TENSOR = 256


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter belongs to.

    Attributes:
        name: for messages.
        fingerprint: of its weights, see `identify`.
        activation: ``GELU``, ``QuickGELU`` or both, which the weights do not show. None: the model
            has neither, or the file is older than this record.
    """

    name: str
    fingerprint: str
    activation: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter file holds.

    ``bases`` is None if a seed makes them. ``task`` has the classes and prompts of a classifier, or
    is None.
    """

    config: dict
    base: BaseModel
    tensors: dict[str, Tensor]
    bases: Bases | None
    task: dict | None


def identify(net: nn.Module, name: str | None = None) -> BaseModel:
    """Return the name, the fingerprint and the activation of an unadapted model.

    The fingerprint is the SHA-256 of every tensor's name and shape, and of up to 256 of its
    entries, evenly spaced, as float32.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sample = flat[::stride][:_SAMPLES_PER_TENSOR].float().cpu().numpy().astype("<f4")
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(sample.tobytes())
    name = name or str(getattr(net, "model_name", type(net).__name__))
    return BaseModel(name, digest.hexdigest(), _activation(net))


def _activation(net: nn.Module) -> str | None:
    """Return which GELUs a model has, by the names of their classes."""
    gelus = {name for name in (type(m).__name__.lower() for m in net.modules()) if "gelu" in name}
    kinds = {"QuickGELU" if "quick" in name else "GELU" for name in gelus}
    return " and ".join(sorted(kinds)) or None


def write(
    path: str | Path,
    config: MethodConfig,
    base: BaseModel,
    tensors: Mapping[str, Tensor],
    task: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter file under a temporary name, then rename it into place."""
    metadata = {
        "format": _FORMAT,
        "version": str(formats.ADAPTER),
        "config": config.model_dump_json(),
        "base": json.dumps(asdict(base)),
    }
    if task is not None:
        metadata["task"] = json.dumps(dict(task), ensure_ascii=False)
    contents = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(contents, temporary, metadata=metadata)


def bases_to_tensors(bases: Bases | None) -> dict[str, Tensor]:
    """Return the tensors that hold a pair of bases in a file: (D, n r) and (r, d)."""
    return dict(zip(_BASES, (bases.matrix(), bases.a), strict=True)) if bases else {}


def read(path: str | Path) -> StoredAdapter:
    """Read an adapter file, or the one in a folder.

    Raises:
        UserError: there is no such file, or it is not an adapter file of a known version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path}: no such adapter file")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{path}: a safetensors file, but not an adapter of this project")
            version = formats.check_version(
                f"{path}: adapter format",
                metadata["version"],
                formats.ADAPTER,
                formats.OLDEST_ADAPTER,
            )
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            base = BaseModel(**json.loads(metadata["base"]))
            if not isinstance(base.name, str) or not isinstance(base.fingerprint, str):
                raise TypeError("base has no name and fingerprint")
            if not isinstance(base.activation, str | None):
                raise TypeError("the base's activation is not a name")
            bases = None
            if _BASES[0] in tensors:
                bases = Bases.from_matrix(*(tensors.pop(key) for key in _BASES))
            task = json.loads(metadata.get("task", "null"))
            config = formats.upgrade_method(dict(json.loads(metadata["config"])), version)
            return StoredAdapter(config, base, tensors, bases, task)
    except UserError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: not a readable adapter file ({reason}); copy it again, or train again"
        ) from error


def check_bases(path: str | Path, bases: Bases, rank: int, rows: int, columns: int) -> None:
    """Raise a UserError if a file's bases do not fit weights of up to (rows, columns)."""
    b, a = bases
    fits = a.shape[0] == rank and a.shape[1] >= columns and b.shape[1] >= rows
    fits = fits and b.shape[0] * rank >= columns
    if not fits or not all(tensor.float().isfinite().all() for tensor in bases):
        raise UserError(f"{path}: damaged adapter file, its bases do not fit; use another copy")


def refuse_other_base(path: str | Path, stored: BaseModel, present: BaseModel) -> None:
    """Raise a UserError if the models or their activations differ; it names both."""
    if stored.fingerprint != present.fingerprint:
        raise UserError(
            f"{path}: this adapter was trained on {stored}, and the model here is {present}; "
            f"load the model that it was trained on"
        )
    if stored.activation and stored.activation != present.activation:
        raise UserError(
            f"{path}: this adapter was trained with the activation {stored.activation}, and the "
            f"model here has {present.activation or 'another one'}: open_clip takes QuickGELU with "
            f"force_quick_gelu=True or a name that ends with -quickgelu, and GELU without"
        )


def check_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Raise a UserError if the file's tensors are not those that its settings call for."""
    for key in expected.keys() ^ tensors.keys():
        raise UserError(f"{path}: damaged adapter file, tensor {key} is missing or not expected")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise UserError(f"{path}: damaged adapter file, tensor {key} has another shape")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise UserError(
                f"{path}: damaged adapter file, tensor {key} is not all finite numbers; train "
                f"again, or use another copy"
            )
