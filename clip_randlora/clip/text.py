"""Class features from prompts: tokens, exact trimming, and prefixes that are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clip_randlora.clip.models import CLIPNet, Model
from clip_randlora.utils.progress import OnProgress, report_progress

_AT_A_TIME = 512  # prompts
_PACKED_LENGTH = 160  # tokens; attention's cost grows with its square, the saving does not


class TextClassifier:
    """The prompts of a set of classes as tokens, and the class features that they give.

    Attributes:
        classes: C class names.
        tokens: int64 ``(P, L)``: every prompt of every class, on the model's device; trimmed if
            that is exact.
        shared: how many leading tokens all prompts have in common.
        owners: int64 ``(P,)``: the class of each prompt.
    """

    def __init__(self, model: Model, classes: Sequence[str], prompts: Sequence[Sequence[str]]):
        self.model = model
        self.classes = tuple(classes)
        flat = [prompt for of_class in prompts for prompt in of_class]
        self._tower = _causal_tower(model.net)
        self.tokens = trim(model.net, model.tokenizer(flat).to(model.device))
        self.shared = shared_prefix(self.tokens)
        self.owners = torch.tensor(
            [label for label, of_class in enumerate(prompts) for _ in of_class],
            device=model.device,
        )

    def features(self, rows: Tensor | None = None, net: CLIPNet | None = None) -> Tensor:
        """Encode the classes.

        Args:
            rows: int64 ``(R,)``: encode only these prompts, whose classes must all differ.
            net: encodes them in place of the model's network: a copy with other weights.

        Returns:
            Features ``(C, E)`` of length 1: the normalised mean over each class's prompts; or
            ``(R, E)`` in the order of ``rows``.
        """
        tokens = self.tokens if rows is None else self.tokens[rows]
        tower = self._tower if net is None else _causal_tower(net)
        features = _encode(net or self.model.net, tower, tokens, self.shared)
        return features if rows is not None else self._of_classes(features)

    @torch.no_grad()
    def features_in_parts(
        self, net: CLIPNet | None = None, on_progress: OnProgress | None = None
    ) -> Tensor:
        """Encode the classes as `features` does, some hundred prompts at a time.

        It takes less memory, and gives no gradients.

        Args:
            net: encodes them in place of the model's network.
            on_progress: told how many prompts are encoded.
        """
        net = net or self.model.net
        tower = _causal_tower(net)
        parts = report_progress(
            self.tokens.split(_AT_A_TIME), "encoding prompts", len(self.tokens), on_progress, len
        )
        return self._of_classes(torch.cat([_encode(net, tower, p, self.shared) for p in parts]))

    def _of_classes(self, features: Tensor) -> Tensor:
        """Return the normalised mean (C, E) of the features (P, E) of each class's prompts."""
        if len(features) == len(self.classes):
            return features
        sums = features.new_zeros(len(self.classes), features.shape[1])
        sums = sums.index_add(0, self.owners, features)
        return nn.functional.normalize(sums, dim=-1)


def encode_tokens(net: CLIPNet, tokens: Tensor, shared: int = 0) -> Tensor:
    """Encode the tokens of prompts.

    Args:
        net: an open_clip model.
        tokens: int64 ``(P, L)``; may be trimmed (see `trim`).
        shared: how many leading tokens all prompts have in common (see `shared_prefix`). If
            attention is causal, they pass through the tower once for many prompts.

    Returns:
        Features ``(P, E)`` of length 1.
    """
    return _encode(net, _causal_tower(net), tokens, shared)


def _encode(net: CLIPNet, tower: Any, tokens: Tensor, shared: int) -> Tensor:
    """Encode tokens; ``tower`` is the text tower of ``net`` if it is causal, else None."""
    if tower is None:
        return net.encode_text(tokens, normalize=True)
    packing = _Packing.of(tokens, shared)
    if packing is None and tokens.shape[1] == len(tower.positional_embedding):
        return net.encode_text(tokens, normalize=True)
    packing = packing or _Packing.plain(tokens)
    return nn.functional.normalize(_encode_packed(tower, tokens, packing), dim=-1)


def shared_prefix(tokens: Tensor) -> int:
    """Count the leading tokens, such as "a photo of a", that all prompts (P, L) have in common.

    The last token is never counted, so every prompt keeps a token of its own.
    """
    same = (tokens == tokens[:1]).all(dim=0)[:-1]
    return int(same.int().cumprod(dim=0).sum())


@dataclass(frozen=True)
class _Packing:
    """How prompts with a common prefix are packed into a few long sequences.

    A sequence is the prefix, followed by the other tokens of several prompts. Each token keeps the
    position that it has in its prompt. A mask lets a prompt see the prefix and its own past, which
    is all that it sees in a causal tower, so packing is exact.

    Attributes:
        shared: tokens of the prefix.
        own: other tokens of each prompt.
        prompts: prompts in a sequence.
        sequences: number of sequences.
    """

    shared: int
    own: int
    prompts: int
    sequences: int

    @classmethod
    def of(cls, tokens: Tensor, shared: int) -> _Packing | None:
        """Choose sequences of about `_PACKED_LENGTH` tokens; None if that saves nothing."""
        count, length = tokens.shape
        own = length - shared
        most = max((_PACKED_LENGTH - shared) // own, 1)
        sequences = -(-count // most)
        packing = cls(shared, own, -(-count // sequences), sequences)
        saves = sequences * (shared + packing.prompts * own) < count * length
        return packing if saves else None

    @classmethod
    def plain(cls, tokens: Tensor) -> _Packing:
        """Give every prompt a sequence of its own."""
        count, length = tokens.shape
        return cls(0, length, 1, count)

    def pack(self, tokens: Tensor) -> Tensor:
        """Pack tokens (P, L) as (sequences, shared + prompts * own); the last prompt fills up."""
        missing = self.sequences * self.prompts - len(tokens)
        own = torch.cat([tokens, tokens[-1:].expand(missing, -1)])[:, self.shared :]
        prefix = tokens[:1, : self.shared].expand(self.sequences, -1)
        return torch.cat([prefix, own.reshape(self.sequences, -1)], dim=1)

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each packed token in its prompt, int64."""
        own = torch.arange(self.shared, self.shared + self.own, device=device)
        return torch.cat([torch.arange(self.shared, device=device), own.repeat(self.prompts)])

    def mask(self, like: Tensor) -> Tensor:
        """Return the attention mask: 0 for the prefix and the prompt's own past, else -inf."""
        prompt = torch.arange(self.prompts, device=like.device).repeat_interleave(self.own)
        prefix = torch.full((self.shared,), -1, device=like.device)
        owner = torch.cat([prefix, prompt])
        sees = ((owner == -1) | (owner == owner[:, None])).tril()
        return torch.zeros(sees.shape, dtype=like.dtype, device=like.device).masked_fill_(
            ~sees, float("-inf")
        )

    def places(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Turn positions in the prompts (P,) into the sequence and the place in it."""
        prompt = torch.arange(len(ends), device=ends.device)
        sequence = prompt.div(self.prompts, rounding_mode="floor")
        return sequence, prompt.remainder(self.prompts) * self.own + ends


def _encode_packed(tower: Any, tokens: Tensor, packing: _Packing) -> Tensor:
    """Encode tokens (P, L) to features (P, E) in a causal tower, in a few long sequences."""
    positions = tower.positional_embedding[packing.positions(tokens.device)]
    x = tower.token_embedding(packing.pack(tokens)) + positions
    x = tower.transformer(x, attn_mask=packing.mask(tower.attn_mask))
    x = tower.ln_final(x[packing.places(_ends(tower, tokens))])
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def trim(net: CLIPNet, tokens: Tensor) -> Tensor:
    """Cut tokens (P, L) after the longest prompt's end-of-text token, if that is exact.

    It is exact if attention is causal and the feature is read at the end-of-text token, which later
    positions cannot change. Other text towers get all L tokens.
    """
    tower = _causal_tower(net)
    if tower is None:
        return tokens
    return tokens[:, : int(_ends(tower, tokens).max()) + 1]


def _ends(tower: Any, tokens: Tensor) -> Tensor:
    """Return the position of each prompt's end-of-text token, int64 (P,), where it is read."""
    if _pool_type(tower) == "argmax":
        return tokens.argmax(dim=-1)
    end_of_text = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
    return tokens.eq(end_of_text).int().argmax(dim=-1)


def _pool_type(tower: Any) -> str | None:
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)


def _causal_tower(net: CLIPNet) -> Any:
    """Return the module of the text tower if it can be trimmed, else None.

    This waits for a GPU, since it reads the tower's mask.
    """
    tower = getattr(net, "text", net)
    mask = getattr(tower, "attn_mask", None)
    if mask is None or _pool_type(tower) not in ("argmax", "eos"):
        return None
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return None
    is_causal = torch.equal(mask.isinf(), torch.ones_like(mask, dtype=torch.bool).triu(1))
    return tower if is_causal else None
