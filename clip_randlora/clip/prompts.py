"""The prompts of a set's classes: how they are made, recorded and checked."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_randlora.clip.class_names import WORDNET_ID, clean_class_name_v1, clean_class_names
from clip_randlora.clip.models import Model, Tokenizer
from clip_randlora.clip.templates import DEFAULT_TEMPLATES, check_templates
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

AS_IT_IS = ("{}",)  # the template of recorded prompts
_MOST_RECORDED = 10_000  # prompts; of more, templates and names are recorded
_UNKNOWN_SCRIPT = 0.7  # tokens per letter; English names have 0.3, single bytes are 1 to 3
_ADVICE = "under `prompts` in the settings"

Prompts = Mapping[str, Sequence[str]]
"""``{class: prompts}`` or ``{class: names in its prompts}``."""


def class_words(classes: Sequence[str], names: Prompts | None = None) -> dict[str, list[str]]:
    """Return each class's names in prompts: those in ``names``, or its cleaned class name."""
    cleaned = zip(classes, clean_class_names(classes), strict=True)
    return {name: list((names or {}).get(name) or [words]) for name, words in cleaned}


def make_prompts(
    classes: Sequence[str], templates: Sequence[str] | None = None, names: Prompts | None = None
) -> list[list[str]]:
    """Return each class's prompts: every template filled with every name of the class.

    Args:
        classes: class names as the folders spell them.
        templates: with one ``{}`` each; by default "a photo of a {}."
        names: ``{class: [name or whole prompt, ...]}`` to use instead of the cleaned folder name;
            an entry that ends with a full stop is a whole prompt.

    Raises:
        UserError: a template is wrong, or ``names`` has an unknown class.
    """
    templates = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    names = names or {}
    for unknown in names.keys() - set(classes):
        raise UserError(f"prompts: there is no class {unknown!r}; it has {', '.join(classes)}")
    prompts = []
    for name, words in class_words(classes, names).items():
        whole = [word for word in words if names.get(name) and word.endswith(".")]
        filled = [t.format(word) for word in words if word not in whole for t in templates]
        prompts.append(whole + filled)
    return prompts


def record_prompts(prompts: Prompts, templates: Sequence[str], names: Prompts) -> dict[str, Any]:
    """Return a record of ``{class: prompts}`` from which `recorded_prompts` makes them again.

    It holds the prompts themselves or, if they are very many, their templates and names.
    """
    if sum(map(len, prompts.values())) <= _MOST_RECORDED:
        in_full = {name: list(own) for name, own in prompts.items()}
        return {"templates": list(AS_IT_IS), "prompts": in_full}
    return {"templates": list(templates), "prompts": class_words(tuple(prompts), names)}


def recorded_prompts(
    classes: Sequence[str], templates: Sequence[str], names: Prompts
) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` from a record.

    A class without names is from a version that did not record them, and gets that version's name.

    Raises:
        UserError: a template is wrong, or ``names`` has an unknown class.
    """
    if tuple(templates) == AS_IT_IS and names.keys() == set(classes) and all(names.values()):
        return {name: list(names[name]) for name in classes}
    named: dict[str, Sequence[str]] = {name: [clean_class_name_v1(name)] for name in classes}
    named |= {name: words for name, words in names.items() if words}
    return dict(zip(classes, make_prompts(classes, templates, named), strict=True))


def list_prompts(prompts: Prompts, most: int | None = 1) -> list[str]:
    """Return a line for each class: its name and its first ``most`` prompts, or all of them."""
    lines = []
    for name, own in prompts.items():
        shown = own[:most]
        more = f" (and {len(own) - len(shown)} more)" if len(own) > len(shown) else ""
        lines.append(f"{name}: {' | '.join(shown)}{more}")
    return lines


# --- checks -----------------------------------------------------------------------------------


def check_prompts(model: Model, tokens: Tensor, prompts: Prompts, words: Prompts) -> list[str]:
    """Refuse prompts that do not tell the classes apart.

    Args:
        model: whose tokenizer is used: some ignore capitals, and all cut long prompts.
        tokens: int64 (P, L) of all prompts, class by class.
        prompts: ``{class: prompts}``.
        words: ``{class: names in its prompts}``.

    Returns:
        Notes on prompts that are shared or cut, and on names that the model may not know.

    Raises:
        UserError: two classes have the same prompts.
    """
    flat = [(name, prompt) for name, own in prompts.items() for prompt in own]
    tokens = tokens.cpu()
    cut = find_cut(model, tokens, [prompt for _, prompt in flat])
    uses: dict[bytes, dict[str, int]] = defaultdict(dict)  # {tokens: {class: place of a prompt}}
    of_class: dict[str, list[bytes]] = defaultdict(list)  # {class: tokens of its prompts}
    for place, ((name, _), row) in enumerate(zip(flat, tokens, strict=True)):
        key = row.numpy().tobytes()
        uses[key].setdefault(name, place)
        of_class[name].append(key)
    alike: dict[frozenset[bytes], list[str]] = defaultdict(list)
    for name, keys in of_class.items():
        alike[frozenset(keys)].append(name)
    groups = [classes for classes in alike.values() if len(classes) > 1]
    if groups:
        places = [uses[of_class[groups[0][0]][0]][name] for name in groups[0]]
        same = [flat[place][1] for place in places]
        raise _same_prompts(model, groups, same, is_cut=bool(cut & set(places)))
    return [
        *_note_shared(flat, [list(own.items()) for own in uses.values() if len(own) > 1]),
        *_note_cut(model, list(dict.fromkeys(flat[place][0] for place in sorted(cut)))),
        *_note_ids([name for name, own in words.items() if any(map(WORDNET_ID.search, own))]),
        *_note_scripts(model, words),
    ]


def find_cut(model: Model, tokens: Tensor, prompts: Sequence[str]) -> set[int]:
    """Return the places of the prompts that are longer than the model's context.

    Args:
        model: whose tokenizer is used.
        tokens: int64 (P, L) of the prompts, trimmed or not.
        prompts: P of them.
    """
    tokenizer = model.tokenizer
    length = tokenizer.context_length
    if tokens.shape[1] < length:  # trimmed: all prompts are shorter
        return set()
    padding = tokenizer([""])[0, -1]
    full = (tokens[:, -2:] != padding).any(dim=1).nonzero().flatten()
    if not len(full):
        return set()
    longer = tokenizer([prompts[place] for place in full], context_length=2 * length)
    is_cut = (longer[:, :length] != tokens[full]).any(dim=1)
    is_cut |= (longer[:, length:] != longer[:, -1:]).any(dim=1)
    return set(full[is_cut].tolist())


def _same_prompts(
    model: Model, groups: Sequence[Sequence[str]], same: Sequence[str], is_cut: bool
) -> UserError:
    """Return an error on groups of classes; ``same`` are prompts of the first group's classes."""
    reason = ""
    if len(set(same)) > 1:  # different texts, but the same tokens
        length = model.tokenizer.context_length
        reason = " for the model's tokenizer"
        if is_cut:
            reason = f" in its first {length} tokens, all that the model reads"
    more = f" (so have the classes of {len(groups) - 1} more prompts)" if len(groups) > 1 else ""
    return UserError(
        f"the classes {_quote(groups[0])} have the same prompt {_shorten(same[0])!r}{reason}"
        f"{more}, so nothing could tell them apart; rename a class, or give it words of its own "
        f"{_ADVICE}"
    )


def _note_shared(
    flat: Sequence[tuple[str, str]], shared: Sequence[Sequence[tuple[str, int]]]
) -> list[str]:
    """Note the first prompt that several classes share while their other prompts differ."""
    if not shared:
        return []
    prompt = _shorten(flat[shared[0][0][1]][1])
    more = f", and {len(shared) - 1} more are shared" if len(shared) > 1 else ""
    names = _quote([name for name, _ in shared[0]])
    return [f"The classes {names} share the prompt {prompt!r}{more}; their others differ."]


def note_cut(model: Model, texts: Sequence[str]) -> str:
    """Return a line on texts that are longer than the model's context: see `find_cut`."""
    shown = _quote([_shorten(text, 40) for text in texts])
    length = model.tokenizer.context_length
    return f"Texts longer than the {length} tokens that the model reads are cut: {shown}."


def _note_cut(model: Model, classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    length = model.tokenizer.context_length
    return [
        f"Prompts of {_count(classes)} are longer than the {length} tokens that the model reads, "
        f"and are cut: {_quote(classes)}. Give shorter names {_ADVICE}."
    ]


def _note_ids(classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    return [
        f"The prompts of {_count(classes)} hold a WordNet id, which tells the model nothing: "
        f"{_quote(classes)}. Give names {_ADVICE}."
    ]


def _note_scripts(model: Model, words: Prompts) -> list[str]:
    flat = [(name, word) for name, own in words.items() for word in own]
    known = knows_script(model, [word for _, word in flat])
    readable = {name for (name, _), is_known in zip(flat, known, strict=True) if is_known}
    classes = [name for name in words if name not in readable]
    if not classes:
        return []
    return [
        f"The tokenizer of {model.name} hardly knows the script of {_count(classes)}: "
        f"{_quote(classes)}. Their zero-shot answers are guesses; give English names {_ADVICE}."
    ]


def knows_script(model: Model, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether the model's tokenizer knows its script.

    It does not if it has an unknown token for it. Nor does it if most letters are not English and
    it needs 0.7 tokens or more per letter: it then reads single letters or bytes, not words.
    """
    tokenizer = model.tokenizer
    known = [count == 0 for count in _count_unknown(tokenizer, texts)]
    letters = [_letters(text) for text in texts]
    foreign = [
        place
        for place, text in enumerate(letters)
        if 2 * sum(c.isascii() for c in text if not c.isspace()) < len("".join(text.split()))
    ]
    # The difference between a text twice and once is free of tokens that only mark a start.
    once = _count_tokens(tokenizer, [letters[place] for place in foreign])
    twice = _count_tokens(tokenizer, [letters[place] * 2 for place in foreign])
    for place, first, both in zip(foreign, once, twice, strict=True):
        weight = sum(map(_weight, letters[place]))
        known[place] &= first < 2 or both - first < _UNKNOWN_SCRIPT * weight
    return known


def _letters(text: str) -> str:
    """Return the letters of a text with their accents, and its spaces; "" if it has no letter."""
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LM" or c.isspace())
    return kept.strip() if any(map(str.isalpha, kept)) else ""


def _weight(character: str) -> int:
    """Return how many letters a character counts for: two if it is a syllable or a word."""
    if character.isspace():
        return 0
    return 2 if unicodedata.name(character, "").startswith(("CJK", "HANGUL")) else 1


def _count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Count the tokens of each text, without those of an empty text."""
    if not texts:
        return []
    length = 16 + 4 * max(len(text) for text in texts)
    rows = tokenizer([*texts, ""], context_length=length)
    used = ((rows != rows[-1, -1]).int() * torch.arange(1, length + 1)).amax(dim=1)
    return (used[:-1] - used[-1]).tolist()


def _count_unknown(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Count the unknown tokens of each text."""
    unknown = getattr(getattr(tokenizer, "tokenizer", None), "unk_token_id", None)
    if unknown is None or not texts:
        return [0] * len(texts)
    counts = (tokenizer([*texts, "a"]) == unknown).sum(dim=1)
    return (counts[:-1] - counts[-1]).clamp(min=0).tolist()


def _count(classes: Sequence[str]) -> str:
    return f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}"


def _quote(classes: Sequence[str]) -> str:
    return join_names(map(repr, classes))


def _shorten(prompt: str, most: int = 80) -> str:
    return prompt if len(prompt) <= most else f"{prompt[: most - 1]}…"
