"""The prompts of a set's classes: how they are made, recorded and checked."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clip_randlora.clip.class_names import WORDNET_ID, clean_before, clean_class_names
from clip_randlora.clip.models import Model
from clip_randlora.clip.templates import DEFAULT_TEMPLATES, check_templates
from clip_randlora.errors import UserError

AS_IT_IS = ("{}",)  # the template of recorded prompts
_RECORDED_IN_FULL = 10_000  # prompts; of more, templates and words are recorded
_HARDLY_KNOWN = 0.7  # tokens a letter; English names have 0.3, byte by byte it is 1 to 3
_REMEDY = "under `prompts` in the settings"


def class_words(
    classes: Sequence[str], names: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """Return what prompts call each class: its names in ``names``, or its cleaned class name."""
    cleaned = zip(classes, clean_class_names(classes), strict=True)
    return {name: list((names or {}).get(name) or [words]) for name, words in cleaned}


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
    for name, words in class_words(classes, names).items():
        whole = [word for word in words if names.get(name) and word.endswith(".")]
        filled = [t.format(word) for word in words if word not in whole for t in templates]
        prompts.append(whole + filled)
    return prompts


def record_prompts(
    prompts: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    names: Mapping[str, Sequence[str]],
) -> dict[str, list[str] | dict[str, list[str]]]:
    """Return what to record of ``{class: prompts}``, so that `recorded_prompts` gives them again.

    That is the prompts themselves; where they are very many, their ``templates`` and words.
    """
    if sum(map(len, prompts.values())) <= _RECORDED_IN_FULL:
        in_full = {name: list(own) for name, own in prompts.items()}
        return {"templates": list(AS_IT_IS), "prompts": in_full}
    return {"templates": list(templates), "prompts": class_words(tuple(prompts), names)}


def recorded_prompts(
    classes: Sequence[str], templates: Sequence[str], names: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` from what was recorded.

    A class without names is one of a version that did not record them all, and is called what
    that version called it.

    Raises:
        UserError: a template is wrong, or ``names`` has a class that is not there.
    """
    if tuple(templates) == AS_IT_IS and names.keys() == set(classes) and all(names.values()):
        return {name: list(names[name]) for name in classes}
    before = {name: [clean_before(name)] for name in classes}
    named = before | {name: words for name, words in names.items() if words}
    return dict(zip(classes, make_prompts(classes, templates, named), strict=True))


def check_prompts(
    model: Model,
    tokens: Tensor,
    prompts: Mapping[str, Sequence[str]],
    words: Mapping[str, Sequence[str]],
) -> list[str]:
    """Refuse prompts that do not tell the classes apart; return notes about what else is amiss.

    Args:
        model: whose tokenizer counts: it ignores capitals, say, and cuts long prompts.
        tokens: int64 (P, L) of all prompts, class by class.
        prompts: ``{class: prompts}``.
        words: ``{class: what its prompts call it}``.

    Raises:
        UserError: two classes have the same prompts.
    """
    flat = [(name, prompt) for name, own in prompts.items() for prompt in own]
    tokens = tokens.cpu()
    cut = _find_cut(model, tokens, [prompt for _, prompt in flat])
    rows = [row.numpy().tobytes() for row in tokens]
    owners: dict[bytes, dict[str, int]] = defaultdict(dict)  # {tokens: {class: a prompt's place}}
    for place, ((name, _), row) in enumerate(zip(flat, rows, strict=True)):
        owners[row].setdefault(name, place)
    of_class: dict[str, dict[bytes, None]] = defaultdict(dict)  # in the order of the prompts
    for (name, _), row in zip(flat, rows, strict=True):
        of_class[name][row] = None
    alike: dict[frozenset[bytes], list[str]] = defaultdict(list)
    for name, own in of_class.items():
        alike[frozenset(own)].append(name)
    groups = [classes for classes in alike.values() if len(classes) > 1]
    if groups:
        first = next(iter(of_class[groups[0][0]]))
        same = {name: flat[owners[first][name]][1] for name in groups[0]}
        is_cut = any(owners[first][name] in cut for name in groups[0])
        raise _same_prompts(model, same, is_cut, len(groups) - 1)
    return [
        *_note_shared(flat, owners),
        *_note_cut(model, list(dict.fromkeys(flat[place][0] for place in sorted(cut)))),
        *_note_ids(words),
        *_note_scripts(model, words),
    ]


def _same_prompts(model: Model, same: Mapping[str, str], is_cut: bool, others: int) -> UserError:
    """Say which classes have the same prompts, ``{class: prompt}``, and in whose eyes."""
    prompts = list(same.values())
    reason = ""
    if len(set(prompts)) > 1 and is_cut:
        reason = f" in its first {model.tokenizer.context_length} tokens, all that the model reads"
    elif len(set(prompts)) > 1:
        reason = " for the model's tokenizer"
    more = f" (so have the classes of {others} more prompts)" if others else ""
    return UserError(
        f"the classes {_quoted(list(same))} have the same prompt {_shorten(prompts[0])!r}{reason}"
        f"{more}, so nothing could tell them apart; rename a class, or give it words of its own "
        f"{_REMEDY}"
    )


def _find_cut(model: Model, tokens: Tensor, prompts: Sequence[str]) -> set[int]:
    """Return which prompts are longer than the model's context."""
    tokenizer = model.tokenizer
    length = tokenizer.context_length
    if tokens.shape[1] < length:  # trimmed: there is space after the longest
        return set()
    padding = tokenizer([""])[0, -1]
    full = (tokens[:, -2:] != padding).any(dim=1).nonzero().flatten()
    if not len(full):
        return set()
    longer = tokenizer([prompts[place] for place in full], context_length=2 * length)
    is_cut = (longer[:, :length] != tokens[full]).any(dim=1)
    is_cut |= (longer[:, length:] != longer[:, -1:]).any(dim=1)
    return set(full[is_cut].tolist())


def _note_shared(
    flat: Sequence[tuple[str, str]], owners: Mapping[bytes, Mapping[str, int]]
) -> list[str]:
    """Note the first prompt that several classes have beside others that differ."""
    shared = [list(places.items()) for places in owners.values() if len(places) > 1]
    if not shared:
        return []
    prompt = _shorten(flat[shared[0][0][1]][1])
    more = f", and {len(shared) - 1} more are shared" if len(shared) > 1 else ""
    names = _quoted([name for name, _ in shared[0]])
    return [f"The classes {names} share the prompt {prompt!r}{more}; their others differ."]


def _note_cut(model: Model, classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    return [
        f"Prompts of {_count(classes)} are longer than the {model.tokenizer.context_length} tokens "
        f"that the model reads, and are cut: {_quoted(classes)}. Give shorter names {_REMEDY}."
    ]


def _note_ids(words: Mapping[str, Sequence[str]]) -> list[str]:
    classes = [name for name, own in words.items() if any(map(WORDNET_ID.search, own))]
    if not classes:
        return []
    return [
        f"The prompts of {_count(classes)} hold a WordNet id, which tells the model nothing: "
        f"{_quoted(classes)}. Give names {_REMEDY}."
    ]


def _note_scripts(model: Model, words: Mapping[str, Sequence[str]]) -> list[str]:
    flat = [(name, word) for name, own in words.items() for word in own]
    known = knows_script(model, [word for _, word in flat])
    readable = {name for (name, _), is_known in zip(flat, known, strict=True) if is_known}
    classes = [name for name in words if name not in readable]
    if not classes:
        return []
    return [
        f"The tokenizer of {model.name} hardly knows the script of {_count(classes)}: "
        f"{_quoted(classes)}. Their zero-shot answers are guesses; give English names "
        f"{_REMEDY}."
    ]


def knows_script(model: Model, texts: Sequence[str]) -> list[bool]:
    """Tell for each text whether the model's tokenizer knows its script.

    It does not where it has an unknown token for it, or, if most letters are not English, 0.7
    tokens or more a letter: it then reads single letters or bytes, and no words.
    """
    tokenizer = model.tokenizer
    letters = [_letters(text) for text in texts]
    unknown = _count_unknown(tokenizer, texts)
    foreign = [
        place
        for place, text in enumerate(letters)
        if 2 * sum(c.isascii() for c in text if not c.isspace()) < len("".join(text.split()))
    ]
    known = [count == 0 for count in unknown]
    # twice in a row: what is counted is free of a token that only marks a text's start
    once = _count_tokens(tokenizer, [letters[place] for place in foreign])
    twice = _count_tokens(tokenizer, [letters[place] * 2 for place in foreign])
    for place, first, both in zip(foreign, once, twice, strict=True):
        weight = sum(map(_weight, letters[place]))
        known[place] &= first < 2 or both - first < _HARDLY_KNOWN * weight
    return known


def _letters(text: str) -> str:
    """Return the letters of a text with their accents, and its spaces; "" if it has no letter."""
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LM" or c.isspace())
    return kept.strip() if any(map(str.isalpha, kept)) else ""


def _weight(character: str) -> int:
    """Return how many letters a character counts for: two, if it stands for a syllable or word."""
    if character.isspace():
        return 0
    return 2 if unicodedata.name(character, "").startswith(("CJK", "HANGUL")) else 1


def _count_tokens(tokenizer, texts: Sequence[str]) -> list[int]:
    """Count the tokens of each text, without those that an empty one has too."""
    if not texts:
        return []
    length = 16 + 4 * max(len(text) for text in texts)
    rows = tokenizer([*texts, ""], context_length=length)
    used = ((rows != rows[-1, -1]).int() * torch.arange(1, length + 1)).amax(dim=1)
    return (used[:-1] - used[-1]).tolist()


def _count_unknown(tokenizer, texts: Sequence[str]) -> list[int]:
    """Count the tokens of each text that stand for what the tokenizer does not know."""
    unknown = getattr(getattr(tokenizer, "tokenizer", None), "unk_token_id", None)
    if unknown is None or not texts:
        return [0] * len(texts)
    counts = (tokenizer([*texts, "a"]) == unknown).sum(dim=1)
    return (counts[:-1] - counts[-1]).clamp(min=0).tolist()


def _count(classes: Sequence[str]) -> str:
    return f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}"


def _quoted(classes: Sequence[str], most: int = 3) -> str:
    """Return the first names in quotation marks, and how many more there are."""
    named = [repr(name) for name in classes[:most]]
    if len(classes) > most:
        return f"{', '.join(named)} and {len(classes) - most} more"
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _shorten(prompt: str, most: int = 80) -> str:
    return prompt if len(prompt) <= most else f"{prompt[: most - 1]}…"


def list_prompts(prompts: Mapping[str, Sequence[str]], most: int | None = 1) -> list[str]:
    """Return a line for each class: its name and its first ``most`` prompts, or all of them."""
    lines = []
    for name, own in prompts.items():
        shown = own[:most]
        more = f" (and {len(own) - len(shown)} more)" if len(own) > len(shown) else ""
        lines.append(f"{name}: {' | '.join(shown)}{more}")
    return lines
