"""Prompts, their tokens, exact trimming, and the classifier that text features make."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clip_randlora.errors import UserError
from clip_randlora.models import Model
from clip_randlora.templates import DEFAULT_TEMPLATES, check_templates


def clean_class_name(name: str) -> str:
    """Turn a folder's name into words for a prompt; the display keeps the name as it is.

    ``Golden_Retriever``, ``goldenRetriever`` and ``012.golden_retriever`` all become
    ``golden retriever``; a name in capitals (``USB``) keeps them.
    """
    words = re.sub(r"^\d+[._ -]+(?=\D)", "", name)
    words = re.sub(r"[_\s]+", " ", words).strip()
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
    return " ".join(word if word.isupper() else word.lower() for word in words.split()) or name


def make_prompts(
    classes: Sequence[str],
    templates: Sequence[str] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> list[list[str]]:
    """Return each class's prompts: every template filled with every name of the class.

    Args:
        classes: class names as the folders spell them.
        templates: with one ``{}`` each; by default "a photo of a {}."
        names: ``{class: [name or whole prompt, ...]}`` to use instead of the cleaned folder name;
            an entry that ends with a full stop is taken as a whole prompt.

    Raises:
        UserError: a template is wrong, or ``names`` has a class that is not there.
    """
    templates = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    names = names or {}
    for unknown in names.keys() - set(classes):
        raise UserError(f"prompts: there is no class {unknown!r}; it has {', '.join(classes)}")
    prompts = []
    for name in classes:
        words = names.get(name) or [clean_class_name(name)]
        whole = [word for word in words if word.endswith(".")]
        filled = [t.format(word) for word in words if word not in whole for t in templates]
        prompts.append(whole + filled)
    return prompts


class TextClassifier:
    """The prompts of a set of classes as tokens, and the class features they give.

    Attributes:
        classes: class names, C of them.
        tokens: int64 (P, L), every prompt of every class, on the model's device, trimmed where
            that is exact.
        owners: int64 (P,), the class of each prompt.
    """

    def __init__(self, model: Model, classes: Sequence[str], prompts: Sequence[Sequence[str]]):
        self.model = model
        self.classes = tuple(classes)
        flat = [prompt for of_class in prompts for prompt in of_class]
        self.tokens = trim(model.net, model.tokenizer(flat).to(model.device))
        self.owners = torch.tensor(
            [label for label, of_class in enumerate(prompts) for _ in of_class],
            device=model.device,
        )

    def features(self, rows: Tensor | None = None) -> Tensor:
        """Encode the classes: unit features (C, E), the normalised mean over a class's prompts.

        Args:
            rows: int64 (R,), encode only these prompts, whose classes must be all different;
                the result is then (R, E), in the order of the rows.
        """
        tokens = self.tokens if rows is None else self.tokens[rows]
        features = encode_tokens(self.model.net, tokens)
        if rows is not None or len(features) == len(self.classes):
            return features
        sums = features.new_zeros(len(self.classes), features.shape[1])
        sums = sums.index_add(0, self.owners, features)
        return nn.functional.normalize(sums, dim=-1)


def encode_tokens(net: nn.Module, tokens: Tensor) -> Tensor:
    """Encode int64 tokens (P, L) to unit features (P, E); L may be trimmed (see `trim`)."""
    tower = _causal_tower(net)
    if tower is None or tokens.shape[1] == tower.positional_embedding.shape[0]:
        return net.encode_text(tokens, normalize=True)
    length = tokens.shape[1]
    shorter = {
        "positional_embedding": tower.positional_embedding[:length],
        "attn_mask": tower.attn_mask[:length, :length],
    }
    if tower is net:  # open_clip's CLIP, whose text tower is spread over the model itself
        output = functional_call(net, shorter, (None, tokens))
        return output["text_features"] if isinstance(output, dict) else output[1]
    with _pooled_only(tower):
        features = functional_call(tower, shorter, (tokens,))
    return nn.functional.normalize(features, dim=-1)


def trim(net: nn.Module, tokens: Tensor) -> Tensor:
    """Cut tokens (P, L) after the longest prompt's end-of-text token, where that is exact.

    It is exact where attention is causal and the feature is read at the end-of-text token: later
    positions cannot change it. Other text towers keep their whole context.
    """
    tower = _causal_tower(net)
    if tower is None:
        return tokens
    if _pool_type(tower) == "argmax":
        ends = tokens.argmax(dim=-1)
    else:
        end_of_text = tower.text_eos_id if tower is net else tower.eos_id
        ends = (tokens == end_of_text).int().argmax(dim=-1)
    return tokens[:, : int(ends.max()) + 1]


def _pool_type(tower: nn.Module) -> str | None:
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)


def _causal_tower(net: nn.Module) -> nn.Module | None:
    """Return the module that holds the text tower if it can be trimmed, else None."""
    tower = getattr(net, "text", net)
    mask = getattr(tower, "attn_mask", None)
    if mask is None or _pool_type(tower) not in ("argmax", "eos"):
        return None
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return None
    is_causal = torch.equal(mask.isinf(), torch.ones_like(mask, dtype=torch.bool).triu(1))
    return tower if is_causal else None


@contextmanager
def _pooled_only(tower: nn.Module) -> Iterator[None]:
    """Let a tower that returns (pooled, tokens), as CoCa's does, return what is pooled."""
    output_tokens, tower.output_tokens = getattr(tower, "output_tokens", False), False
    try:
        yield
    finally:
        tower.output_tokens = output_tokens
