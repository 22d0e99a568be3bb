"""Which weights of an open_clip model a configuration adapts.

Weights are found by the type of the module that holds them and by the field's usual names for
its part in the network, so that open_clip's own towers, timm's and Hugging Face's all work.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from clip_randlora.adapters.config import AdapterConfig, Full, MethodConfig, Sum
from clip_randlora.errors import UserError

# A block is the innermost numbered member of one of these, "blocks.3.1" where stages have blocks.
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
WHOLE = "weight"
"""The target of full fine-tuning: a whole tensor, of whatever kind."""

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
    tower: str
    block: int
    parts: tuple[AdaptedPart, ...]

    @property
    def weight(self) -> Tensor:
        """The weight itself: (out, in), (out, in, 1, 1) for a convolution; (out, ...) if whole."""
        return getattr(self.module, self.tensor_name)

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
    blocks: dict[str, dict[str, int]] = {"vision": {}, "text": {}}
    for name, module in net.named_modules():
        tower = "vision" if name.split(".")[0] == "visual" else "text"
        for tensor_name, parts in tensors_of(name, module):
            block = block_name(name)
            if block:
                blocks[tower].setdefault(block, len(blocks[tower]))
            number = max(len(blocks[tower]) - 1, 0)
            full_name = f"{name}.{tensor_name}" if name else tensor_name
            found.append(TargetWeight(full_name, module, tensor_name, tower, number, parts))
    return found


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
    if isinstance(config, AdapterConfig):
        return _select_targets(net, config)
    return []


def _select_targets(net: nn.Module, config: AdapterConfig) -> list[TargetWeight]:
    weights = find_weights(net)
    block_counts = Counter()
    for weight in weights:
        block_counts[weight.tower] = max(block_counts[weight.tower], weight.block + 1)
    selected = []
    for weight in weights:
        parts = tuple(part for part in weight.parts if part.target in config.targets)
        first_block = block_counts[weight.tower] - config.blocks if config.blocks else 0
        if parts and weight.tower in config.towers and weight.block >= first_block:
            selected.append(replace(weight, parts=parts))
    if not selected:
        raise UserError(
            f"towers {_words(config.towers)} with targets {_words(config.targets)} match no weight "
            f"of this model; it has {_describe_choices(weights)}"
        )
    return selected


def _all_tensors(_: str, module: nn.Module) -> Iterator[tuple[str, tuple[AdaptedPart, ...]]]:
    """Yield the trainable tensors that this module holds itself, whole; no scalars."""
    for tensor_name, tensor in module.named_parameters(recurse=False):
        if tensor.ndim:
            yield tensor_name, _equal_parts(tensor, (WHOLE,))


def _adaptable_tensors(
    net: nn.Module, name: str, module: nn.Module
) -> Iterator[tuple[str, tuple[AdaptedPart, ...]]]:
    """Yield the adaptable tensors that this module holds itself, with their parts."""
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield "in_proj_weight", _equal_parts(module.in_proj_weight, ("q", "k", "v"))
        else:
            for target in ("q", "k", "v"):
                weight = getattr(module, f"{target}_proj_weight")
                yield f"{target}_proj_weight", _equal_parts(weight, (target,))
    elif isinstance(module, nn.Linear):
        targets = _linear_targets(net, name)
        if targets:
            yield "weight", _equal_parts(module.weight, targets)
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        yield "weight", _equal_parts(module.weight, ("conv",))


def _linear_targets(net: nn.Module, name: str) -> tuple[str, ...]:
    """Name the targets that a linear layer holds, from its own name and its parent's."""
    parent_name, _, leaf = name.rpartition(".")
    if leaf in _QKV_LEAVES:
        return _QKV_LEAVES[leaf]
    if leaf in _OUT_LEAVES and _is_attention(net.get_submodule(parent_name)):
        return ("out",)
    if parent_name.endswith("attention.output"):  # BERT's names
        return ("out",)
    if _MLP_PARENTS.search(parent_name) or re.search(r"layer\.\d+\.output$", parent_name):
        return ("mlp",)
    return ()


def _is_attention(module: nn.Module) -> bool:
    """Tell an attention by its query projection, packed or separate."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return any(leaf in _QKV_LEAVES for leaf, _ in module.named_children())


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
            choices.append(f"{tower}: {_words(targets)} in {blocks} blocks")
    return "; ".join(choices) or "no attention, MLP or 1x1 convolution that is known"


def _words(values) -> str:
    return ", ".join(values)
