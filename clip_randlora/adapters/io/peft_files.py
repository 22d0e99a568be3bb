"""RandLoRA adapters of the peft library, for transformers' ``CLIPModel``: read and written.

peft (peft.tuners.randlora, 0.16 and later) computes the same update under the same names. It
stores lambda transposed, (r, n), and gamma as here, (n, d). Its ``randlora_B`` (D, n, r) is the
matrix of `Bases` if flattened; its ``randlora_A`` is (r, 1, d).

Its shared pair is made for the largest output by the largest input size. So it is wider than ours
where both layers of an MLP are adapted; what no layer uses is written as zeros. peft saves the
pair once for the model, and up to 0.21.2 again for every layer. All versions read a file that has
it once, as written here; up to 0.21.2 they warn that each layer misses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_randlora.adapters.bases import Bases, number_of_bases, random_bases
from clip_randlora.adapters.config import MethodConfig
from clip_randlora.adapters.io.transformers_names import transformers_names
from clip_randlora.adapters.methods import parse_method
from clip_randlora.adapters.randlora import RandLoRA
from clip_randlora.adapters.targets import TargetWeight, find_weights, select_weights
from clip_randlora.errors import UserError
from clip_randlora.utils.outputs import atomic_write

if TYPE_CHECKING:
    from clip_randlora.adapters.adapter import Adapter

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SHARED_A, _SHARED_B = "base_model.randlora_A", "base_model.randlora_B"


@dataclass(frozen=True)
class PeftAdapter:
    """A peft adapter in this package's terms: settings, bases, and tensors by our names."""

    config: RandLoRA
    bases: Bases
    tensors: dict[str, Tensor]


def is_peft(path: str | Path) -> bool:
    """Return whether peft saved an adapter to this folder, or to the folder of this file."""
    return (_folder(path) / _CONFIG).is_file()


def read(path: str | Path, net: nn.Module) -> PeftAdapter:
    """Read a RandLoRA adapter that peft trained on transformers' form of ``net``.

    Raises:
        UserError: another kind of adapter, one without its bases, or one that adapts what this
            package does not; the line names it.
    """
    folder = _folder(path)
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable peft adapter ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{folder / _CONFIG}: not the settings of a peft adapter")
    if settings.get("peft_type") != "RANDLORA":
        raise UserError(
            f"{folder}: a peft adapter of type {settings.get('peft_type')}; only RANDLORA loads "
            f"here"
        )
    for needed in ("r", "randlora_alpha", "projection_prng_key"):
        if needed not in settings:
            raise UserError(f"{folder / _CONFIG}: has no {needed}; save it from peft again")
    bases = _pop_bases(folder, tensors)
    found = _by_our_names(folder, tensors, net)
    config = _parse(
        {
            "rank": settings["r"],
            "alpha": settings["randlora_alpha"],
            "seed": settings["projection_prng_key"],
            "bases": _distribution(settings),
            **_selection(folder, {key.rsplit(".", 1)[0] for key in found}, net),
        }
    )
    return PeftAdapter(config, bases, found)


def _parse(settings: dict[str, Any]) -> RandLoRA:
    config = parse_method({"method": "randlora", **settings})
    assert isinstance(config, RandLoRA)
    return config


def save_peft_adapter(adapter: Adapter, folder: str | Path, base_model: str | None = None) -> None:
    """Write an adapter as peft would have saved it, with its bases as the shared projections.

    The adapter's strength goes into alpha. The bases are written once, not once a layer.

    Args:
        adapter: RandLoRA on open_clip's ViT CLIP layout.
        folder: made if it is not there.
        base_model: where ``PeftModel`` finds the base, a hub name say; only recorded.

    Raises:
        UserError: another method, an update that peft's RandLoRA cannot express, or a weight that
            ``CLIPModel`` does not have.
    """
    from peft import RandLoraConfig

    config = adapter.config
    if not isinstance(config, RandLoRA):
        raise UserError(f"method {config.method}: only randlora adapters can be written for peft")
    if unknown := unknown_to_peft(config):
        raise UserError(f"{unknown}: peft's RandLoRA has nothing like it; use another format")
    modules = _modules(adapter.weights.values())
    trained = dict(adapter.named_parameters())
    tensors = {}
    for ours, theirs in modules.items():
        tensors[f"{_PREFIX}{theirs}.randlora_lambda"] = trained[f"{ours}.lam"].T
        tensors[f"{_PREFIX}{theirs}.randlora_gamma"] = trained[f"{ours}.gamma"]
    tensors |= _shared_projections(adapter, config)
    folder = Path(folder)
    RandLoraConfig(
        r=config.rank,
        randlora_alpha=config.alpha * adapter.strength,  # type: ignore[arg-type]  # any number
        target_modules=list(modules.values()),
        projection_prng_key=config.seed or 0,
        sparse=config.bases == "sparse",
        very_sparse=config.bases == "very_sparse",
        base_model_name_or_path=base_model,
    ).save_pretrained(str(folder))
    contents = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(folder / _WEIGHTS) as temporary:
        save_file(contents, temporary, metadata={"format": "pt"})


def unknown_to_peft(config: MethodConfig) -> str:
    """Return the setting that peft's RandLoRA has no counterpart of, "" if there is none."""
    if isinstance(config, RandLoRA) and "qkv" in config.targets:
        return "targets qkv"  # it adapts the linear layers of `CLIPModel`, where q, k, v are three
    return "as_released" if isinstance(config, RandLoRA) and config.as_released else ""


def _folder(path: str | Path) -> Path:
    return Path(path).parent if Path(path).name == _WEIGHTS else Path(path)


def _modules(weights: Iterable[TargetWeight]) -> dict[str, str]:
    """Return ``{WEIGHT.TARGET: module of CLIPModel}`` for every adapted part."""
    modules = {}
    for weight in weights:
        names = transformers_names(weight.name)
        for part in weight.parts:
            name = names[part.target] if part.target in names else names[""]
            modules[f"{weight.name}.{part.target}"] = name.removesuffix(".weight")
    return modules


def _shared_projections(adapter: Adapter, config: RandLoRA) -> dict[str, Tensor]:
    shapes = adapter.shapes()
    bases = adapter.bases
    if bases is None:
        rows, columns = max(map(max, shapes)), max(map(min, shapes))
        bases = random_bases(config.rank, rows, columns, config.bases, config.seed)
    largest = [max(sides) for sides in zip(*shapes, strict=True)]
    count = number_of_bases(min(largest), config.rank)
    matrix, a = bases.matrix(), bases.a
    shared_b = matrix.new_zeros(max(largest), count * config.rank)
    shared_b[: matrix.shape[0], : matrix.shape[1]] = matrix
    shared_a = a.new_zeros(config.rank, 1, min(largest))
    shared_a[:, 0, : a.shape[1]] = a
    return {_SHARED_A: shared_a, _SHARED_B: shared_b.unflatten(1, (count, config.rank))}


def _pop_bases(folder: Path, tensors: dict[str, Tensor]) -> Bases:
    """Take the shared projections out.

    Files have one pair for the model, up to peft 0.21.2 an equal one for each layer as well, and
    one layer's alone where the adapter was injected into a model without `PeftModel`.
    """
    a = [tensors.pop(key) for key in list(tensors) if key.endswith(".randlora_A")]
    b = [tensors.pop(key) for key in list(tensors) if key.endswith(".randlora_B")]
    if not a or not b:
        raise UserError(
            f"{folder}: has no projections, and only peft can make them again; save it from peft "
            f"with save_projection=True"
        )
    try:
        return Bases.from_matrix(b[0].float().flatten(1), a[0].float().squeeze(1))
    except (RuntimeError, IndexError) as error:
        raise UserError(f"{folder}: its projections have another shape than peft's") from error


def _by_our_names(folder: Path, tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    try:
        ours_of = {theirs: ours for ours, theirs in _modules(find_weights(net)).items()}
    except UserError as error:
        raise UserError(f"{folder}: a peft adapter of CLIPModel, but {error}") from error
    found = {}
    for key, tensor in tensors.items():
        module, _, kind = key.removeprefix(_PREFIX).rpartition(".")
        if module not in ours_of or kind not in ("randlora_lambda", "randlora_gamma"):
            raise UserError(
                f"{folder}: trains {module}.{kind}, which this package does not adapt; it adapts "
                f"q_proj, k_proj, v_proj, out_proj, fc1 and fc2"
            )
        ours = ours_of[module]
        if kind == "randlora_lambda":
            found[f"{ours}.lam"] = tensor.float().T
        else:
            found[f"{ours}.gamma"] = tensor.float()
    return found


def _selection(folder: Path, adapted: set[str], net: nn.Module) -> dict[str, Any]:
    """Return the towers, targets and last blocks that select these parts, ``WEIGHT.TARGET``."""
    weights = find_weights(net)
    present = [
        (weight, part)
        for weight in weights
        for part in weight.parts
        if f"{weight.name}.{part.target}" in adapted
    ]
    counts = {w.tower: 1 + max(o.block for o in weights if o.tower == w.tower) for w in weights}
    depth = max(counts[weight.tower] - weight.block for weight, _ in present)
    selection = {
        "towers": tuple(dict.fromkeys(weight.tower for weight, _ in present)),
        "targets": tuple(dict.fromkeys(part.target for _, part in present)),
        "blocks": None if depth >= max(counts.values()) else depth,
    }
    selected = {
        f"{weight.name}.{part.target}"
        for weight in select_weights(net, _parse(selection))
        for part in weight.parts
    }
    missing = sorted(selected - adapted)
    if missing:
        raise UserError(
            f"{folder}: adapts some layers and not others of the same kind ({missing[0]} is not "
            f"adapted); only whole kinds (q, k, v, out, mlp) in the last blocks load here"
        )
    return selection


def _distribution(settings: dict) -> str:
    if settings.get("very_sparse"):
        return "very_sparse"
    return "sparse" if settings.get("sparse") else "uniform"
