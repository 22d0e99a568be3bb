"""Which weights of an open_clip model a configuration adapts.

A weight is found by the field's usual names for its module, and by its shape where the names
differ. The module's class does not matter, so the towers of open_clip 3 and 4, timm and Hugging
Face all work.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from clip_randlora.adapters.config import AdapterConfig, MethodConfig, Tower
from clip_randlora.adapters.full import Full
from clip_randlora.adapters.methods import Sum
from clip_randlora.adapters.norm_tuning import NormTuning
from clip_randlora.errors import UserError

# the innermost numbered module under one of these names; "blocks.3.1" where stages hold blocks
_BLOCK = re.compile(
    r"^(?:.*\.)?(?:resblocks|blocks|layers|layer\d*)\.\d+(?:\.\d+)?(?=\.|$)", re.ASCII
)
_QKV_LEAVES = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    **dict.fromkeys(("q", "q_proj", "query", "to_q", "q_lin"), ("q",)),
    **dict.fromkeys(("k", "k_proj", "key", "to_k", "k_lin"), ("k",)),
    **dict.fromkeys(("v", "v_proj", "value", "to_v", "v_lin"), ("v",)),
}
_OUT_LEAVES = {"proj", "out_proj", "c_proj", "to_out", "o_proj", "out_lin"}
_QKV = ("q", "k", "v")
_ATTENTION_TARGETS = (*_QKV, "qkv", "out")
_ATTENTION_CLASS = re.compile("atten|attn|transformer", re.IGNORECASE)
_HEADS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
_NORM_CLASS = re.compile("(?:layer|batch|group|rms)_?norm", re.IGNORECASE)
WHOLE = "weight"
"""The target of full fine-tuning and norm tuning: a whole tensor of any kind."""

_MLP_PARENTS = re.compile(r"(?:^|\.)(?:mlp|ffn|feed_forward|intermediate)$")


@dataclass(frozen=True)
class AdaptedPart:
    """A run of rows of one weight that is adapted on its own: q of a packed q, k, v, say.

    ``target`` is one of those of `AdapterConfig`, or `WHOLE`.
    """

    target: str
    rows: slice


@dataclass(frozen=True)
class TargetWeight:
    """One weight that can be adapted.

    Attributes:
        name: dotted name of the tensor in the model.
        module: the module that holds it, and ``tensor_name``, its attribute there.
        tower: ``vision`` or ``text``.
        block: number of its block in the tower, from 0; a weight outside of the blocks counts
            with the block before it.
        parts: the runs of rows that are adapted one by one.
    """

    name: str
    module: nn.Module
    tensor_name: str
    tower: Tower
    block: int
    parts: tuple[AdaptedPart, ...]

    @property
    def weight(self) -> Tensor:
        """The weight itself: (out, in), (out, in, 1, 1) for a convolution; (out, ...) if whole."""
        return getattr(self.module, self.tensor_name)

    @property
    def base(self) -> Tensor:
        """The same without an adapter's update."""
        if not is_parametrized(self.module, self.tensor_name):
            return self.weight
        return getattr(self.module.parametrizations, self.tensor_name).original

    def part_shape(self, part: AdaptedPart) -> tuple[int, int]:
        """Return (out, in) of one part."""
        return part.rows.stop - part.rows.start, self.weight[0].numel()


def find_weights(net: nn.Module) -> list[TargetWeight]:
    """List every weight of an open_clip model that could be adapted, in the network's order."""
    return _find(net, partial(_adaptable_tensors, net))


def _find(
    net: nn.Module,
    tensors_of: Callable[[str, nn.Module], Iterable[tuple[str, tuple[AdaptedPart, ...]]]],
) -> list[TargetWeight]:
    found = []
    blocks: dict[Tower, dict[str, int]] = {"vision": {}, "text": {}}
    for name, module in net.named_modules():
        tower = _tower(name)
        for tensor_name, parts in tensors_of(name, module):
            block = block_name(name)
            if block:
                blocks[tower].setdefault(block, len(blocks[tower]))
            number = max(len(blocks[tower]) - 1, 0)
            full_name = f"{name}.{tensor_name}" if name else tensor_name
            found.append(TargetWeight(full_name, module, tensor_name, tower, number, parts))
    return found


def _tower(name: str) -> Tower:
    """Return the tower that a module or tensor lies in, by its dotted name."""
    return "vision" if name.split(".")[0] == "visual" else "text"


def block_name(weight_name: str) -> str | None:
    """Return the dotted name of the block that a weight lies in, or None outside of the blocks."""
    block = _BLOCK.match(weight_name)
    return block and block.group()


def select_weights(net: nn.Module, config: MethodConfig) -> list[TargetWeight]:
    """List the weights, and the parts of them, that a configuration adapts.

    Raises:
        UserError: nothing matches; the line lists what could.
    """
    if isinstance(config, Sum):
        return select_weights(net, config.terms[0])
    if isinstance(config, Full):
        return [weight for weight in _find(net, _all_tensors) if weight.tower in config.towers]
    if isinstance(config, NormTuning):
        return _select_norms(net, config)
    if isinstance(config, AdapterConfig):
        return _select_targets(net, config)
    return []


def _select_targets(net: nn.Module, config: AdapterConfig) -> list[TargetWeight]:
    weights = find_weights(net)
    selected = []
    for weight in _last_blocks(weights, config.blocks):
        whole = _as_one(weight) if "qkv" in config.targets else weight
        parts = tuple(part for part in whole.parts if part.target in config.targets)
        if parts and weight.tower in config.towers:
            selected.append(replace(weight, parts=parts))
    if "qkv" in config.targets:
        _require_packed(config, weights, selected)
    if not selected:
        raise UserError(
            f"towers {', '.join(config.towers)} with targets {', '.join(config.targets)} match no "
            f"weight of this model; it has {_describe_choices(weights)}"
        )
    return selected


def _select_norms(net: nn.Module, config: NormTuning) -> list[TargetWeight]:
    weights = _last_blocks(_find(net, _norm_tensors), config.blocks)
    selected = [weight for weight in weights if weight.tower in config.towers]
    if not selected:
        raise UserError(f"towers {', '.join(config.towers)}: no norm of this model has a weight")
    return selected


def _last_blocks(weights: list[TargetWeight], count: int | None) -> list[TargetWeight]:
    """Return the weights of the last ``count`` blocks of each tower; all if it is None."""
    if count is None:
        return weights
    blocks: Counter[Tower] = Counter()
    for weight in weights:
        blocks[weight.tower] = max(blocks[weight.tower], weight.block + 1)
    return [weight for weight in weights if weight.block >= blocks[weight.tower] - count]


def _as_one(weight: TargetWeight) -> TargetWeight:
    """Return a packed q, k, v as a weight of one part, and any other weight as it is."""
    if tuple(part.target for part in weight.parts) != _QKV:
        return weight
    return replace(weight, parts=(AdaptedPart("qkv", slice(0, weight.parts[-1].rows.stop)),))


def _require_packed(
    config: AdapterConfig, weights: list[TargetWeight], selected: list[TargetWeight]
) -> None:
    """Refuse the target qkv on a tower that holds q, k and v as weights of their own."""
    for tower in config.towers:
        has_packed = any(w.tower == tower and w.parts[0].target == "qkv" for w in selected)
        apart = [w for w in weights if w.tower == tower and w.parts[0].target in _QKV]
        if apart and not has_packed:
            raise UserError(
                f"targets: qkv, but the {tower} tower holds q, k and v as separate weights "
                f"({apart[0].name}); give q, k, v"
            )


def require_attention(net: nn.Module, config: MethodConfig) -> None:
    """Refuse settings that ask for attention which the adapter would leave out.

    Under the method's default targets, a tower without attention stays as it is: a convolutional
    one, say. If the targets were chosen and a tower has none of them, it is refused.

    Raises:
        UserError: a tower has attention of a form that is not known, or none of the chosen targets;
            the line names the tower and what could be adapted.
    """
    if not isinstance(config, AdapterConfig):
        return
    asked = [target for target in config.targets if target in _ATTENTION_TARGETS]
    weights = find_weights(net)
    selected = {weight.tower for weight in select_weights(net, config)}
    for tower in config.towers if asked else ():
        unknown = _unknown_attention(net, tower, weights)
        if unknown:
            raise UserError(
                f"the {tower} tower's {unknown} has no query, key and value projections that are "
                f"known; leave out targets {', '.join(asked)}, or adapt the other tower alone with "
                f"`towers`; this model has {_describe_choices(weights)}"
            )
        if config.has_chosen_targets and tower not in selected and any(_modules_of(net, tower)):
            raise UserError(
                f"the {tower} tower has none of the targets {', '.join(config.targets)}; leave it "
                f"out of `towers`, or add targets that it has: {_describe_choices(weights)}"
            )


def _unknown_attention(net: nn.Module, tower: str, weights: list[TargetWeight]) -> str | None:
    """Name the innermost module with attention that `find_weights` does not know, or return None.

    A module has attention if its class's name or a number of heads says so, and if it holds a
    linear map: some modules of such names only scale or convolve.
    """
    unknown = None
    for name, module in _modules_of(net, tower):
        if unknown and not name.startswith(f"{unknown[0]}."):
            break
        if _looks_like_attention(module) and _has_linear_map(module):
            inside = [w for w in weights if w.name.startswith(f"{name}.")]
            targets = {part.target for weight in inside for part in weight.parts}
            has_blocks = any(_BLOCK.match(child) for child, _ in module.named_modules())
            # position biases may be MLPs with one output for each head
            if not targets & {"q", "k", "v", "conv"} and (has_blocks or not targets):
                unknown = name, module
    return unknown and f"{unknown[0]} ({type(unknown[1]).__name__})"


def _modules_of(net: nn.Module, tower: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a tower, with their names, outer ones first."""
    for name, module in net.named_modules():
        if name and _tower(name) == tower:
            yield name, module


def _looks_like_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return False
    has_heads = any(isinstance(getattr(module, heads, None), int) for heads in _HEADS)
    return has_heads or _ATTENTION_CLASS.search(type(module).__name__) is not None


def _has_linear_map(module: nn.Module) -> bool:
    """Return whether a module holds a linear layer, or a matrix of such a shape."""
    if any(isinstance(child, nn.Linear) for child in module.modules()):
        return True
    sides = [sorted(tensor.shape) for tensor in module.parameters() if tensor.ndim == 2]
    return any(wide in (narrow, 2 * narrow, 3 * narrow, 4 * narrow) for narrow, wide in sides)


def _all_tensors(_: str, module: nn.Module) -> Iterator[tuple[str, tuple[AdaptedPart, ...]]]:
    """Yield the tensors that this module itself holds, whole; scalars are left out."""
    for tensor_name, tensor in module.named_parameters(recurse=False):
        if tensor.ndim:
            yield tensor_name, _equal_parts(tensor, (WHOLE,))


def _norm_tensors(name: str, module: nn.Module) -> Iterator[tuple[str, tuple[AdaptedPart, ...]]]:
    """Yield the weight and the bias of a norm."""
    if _NORM_CLASS.search(type(module).__name__):
        yield from _all_tensors(name, module)


def _adaptable_tensors(
    net: nn.Module, name: str, module: nn.Module
) -> Iterator[tuple[str, tuple[AdaptedPart, ...]]]:
    """Yield the adaptable tensors that this module itself holds, with their parts."""
    if isinstance(module, nn.Linear):
        targets = _linear_targets(net, name, module)
        if targets:
            yield "weight", _equal_parts(module.weight, targets)
    elif isinstance(module, nn.Conv2d):
        if module.kernel_size == (1, 1) and module.groups == 1:
            yield "weight", _equal_parts(module.weight, ("conv",))
    else:
        for tensor_name, targets in _held_projections(module).items():
            yield tensor_name, _equal_parts(getattr(module, tensor_name), targets)


def _held_projections(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the query, key and value projections that a module holds as plain tensors."""
    found = {}
    for tensor_name, tensor in module.named_parameters(recurse=False):
        stem = tensor_name.removesuffix("_weight")
        if tensor.ndim != 2:
            continue
        if stem != tensor_name and stem in _QKV_LEAVES:
            found[tensor_name] = _QKV_LEAVES[stem]
        elif _is_packed(module, tensor):
            found[tensor_name] = ("q", "k", "v")
    return found


def _is_packed(module: nn.Module, weight: Tensor) -> bool:
    """Return whether a weight projects to q, k and v: it is (3 width, in), width an output's."""
    outputs = [child for leaf, child in module.named_children() if leaf in _OUT_LEAVES]
    widths = [child.in_features for child in outputs if isinstance(child, nn.Linear)]
    return any(weight.shape[0] == 3 * width for width in widths)


def _linear_targets(net: nn.Module, name: str, layer: nn.Linear) -> tuple[str, ...]:
    """Return the targets of a linear layer by its own name, its parent's and its shape."""
    parent_name, _, leaf = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    if leaf in _QKV_LEAVES:
        return _QKV_LEAVES[leaf]
    if leaf in _OUT_LEAVES and _is_attention(parent):
        return ("out",)
    if parent_name.endswith("attention.output"):  # BERT's names
        return ("out",)
    if _MLP_PARENTS.search(parent_name) or re.search(r"layer\.\d+\.output$", parent_name):
        return ("mlp",)
    return ("q", "k", "v") if _is_packed(parent, layer.weight) else ()


def _is_attention(module: nn.Module) -> bool:
    """Return whether a module has a query projection, packed or separate."""
    if _held_projections(module) or any(leaf in _QKV_LEAVES for leaf, _ in module.named_children()):
        return True
    linears = [child for _, child in module.named_children() if isinstance(child, nn.Linear)]
    return any(_is_packed(module, child.weight) for child in linears)


def _equal_parts(weight: Tensor, targets: tuple[str, ...]) -> tuple[AdaptedPart, ...]:
    rows = weight.shape[0] // len(targets)
    return tuple(
        AdaptedPart(target, slice(i * rows, (i + 1) * rows)) for i, target in enumerate(targets)
    )


def _describe_choices(weights: list[TargetWeight]) -> str:
    choices = []
    for tower in ("vision", "text"):
        here = [weight for weight in weights if weight.tower == tower]
        if here:
            targets = dict.fromkeys(part.target for weight in here for part in weight.parts)
            blocks = max(weight.block for weight in here) + 1
            choices.append(f"{tower}: {', '.join(targets)} in {blocks} blocks")
    return "; ".join(choices) or "no attention, MLP or 1x1 convolution that is known"
