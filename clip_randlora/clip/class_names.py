"""Class names, as folders spell them, made into words for prompts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

WORDNET_ID = re.compile(r"(?:^|[\s_.,:;(\[-]+)[nN]\d{8}(?:[\s_.,:;)\]-]+|$)")
_LISTED = re.compile(r"[(\[]?(\d{1,9})\s*[.)\]:][\s_.-]*(?=\D)(.+)", re.DOTALL)  # 1. cat, 012.cat
_NUMBERED = re.compile(r"(\d{1,9})(?:[\s_]*-[\s_]*(?!\d)|[\s_]+)(.+)", re.DOTALL)  # 01_cat, 3 men
_LETTERS = re.compile(r"[^\W\d_]+")
_FULL_WIDTH = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x3000: " "}
_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "geese": "goose",
}  # fmt: skip


def clean_class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Turn the class names of a set into words for prompts; they are displayed as they are.

    - Underscores and runs of space become one space. Accents are composed (NFC), and full-width
      letters and digits become ordinary ones.
    - A number in front is removed if it orders the classes (``01_cat``, ``1. cat``). It stays if
      it says how many or which (``10 rupees``, ``2-door``, ``2019 Honda Civic``). Numbers order
      the classes if most classes have a number of their own, and the numbers are padded with
      zeros, or count up from 0 or 1 with at most a fifth of them missing. So do three digits and a
      full stop, and a full stop after the number of a single name. If two classes would be the
      same without their numbers, all numbers stay.
    - WordNet ids are removed (``n02085620-Chihuahua``), unless nothing else is left, or another
      class would then be the same.
    - ``goldenRetriever`` becomes ``golden retriever``. A word that people write as one, such as
      ``iPhone``, ``McDonalds`` or ``YouTube``, stays as it is; so do capitals (``USB``).
      Everything else becomes lower case.
    - Full stops at the end are removed, since templates have theirs.
    """
    plain = (unicodedata.normalize("NFC", name).translate(_FULL_WIDTH) for name in classes)
    names = _without_ids(_without_order([name.strip("_ \t") for name in plain]))
    return tuple(_words(name) or given for name, given in zip(names, classes, strict=True))


def clean_class_name_v1(name: str) -> str:
    """Clean a name as in runs that did not record their prompts, so that they keep them."""
    words = re.sub(r"^\d+[._ -]+(?=\D)", "", name)
    words = re.sub(r"[_\s]+", " ", words).strip()
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
    return " ".join(word if word.isupper() else word.lower() for word in words.split()) or name


def _without_order(names: Sequence[str]) -> Sequence[str]:
    """Remove the numbers in front of the names, if they order the names."""
    matches = [_LISTED.fullmatch(name) or _NUMBERED.fullmatch(name) for name in names]
    found = [m if m and re.search(r"[^\d\s._,:;-]", m[2]) else None for m in matches]
    texts = [match[1] for match in found if match]
    numbers = [int(text) for text in texts]
    if 2 * len(numbers) <= len(names) or len(set(numbers)) < len(numbers):
        return names
    rests = [match[2] if match else name for match, name in zip(found, names, strict=True)]
    are_listed = all(match.re is _LISTED for match in found if match)
    are_clear = are_listed and (len(names) == 1 or min(map(len, texts)) >= 3)
    if are_clear or _are_padded(texts) or (are_listed and _count_up(numbers)):
        keys = {_key(rest) for rest in rests}
    elif len(numbers) == len(names) > 1 and _count_up(numbers):
        keys = {_singular_key(rest) for rest in rests}  # 1 person, 2 people: not an order
    else:
        return names
    return rests if len(keys) == len(names) else names


def _are_padded(texts: Sequence[str]) -> bool:
    """Return whether the digits are padded with zeros to one width: 01, 02, ... 10, 100."""
    width = min(map(len, texts))
    padded = any(int(text[0]) == 0 and len(text) > 1 for text in texts)
    return padded and all(len(text) == max(width, len(str(int(text)))) for text in texts)


def _count_up(numbers: Sequence[int]) -> bool:
    """Return whether the numbers count up from 0 or 1, with at most a fifth of them missing."""
    return min(numbers) <= 1 and len(numbers) >= 0.8 * (max(numbers) - min(numbers) + 1)


def _without_ids(names: Sequence[str]) -> Sequence[str]:
    """Remove WordNet ids from the names that differ without them."""
    pairs = [(name, WORDNET_ID.sub(" ", name)) for name in names]
    bare = [rest if re.search(r"\w", rest) else name for name, rest in pairs]
    counts = Counter(map(_key, bare))
    return [
        rest if counts[_key(rest)] == 1 else name for name, rest in zip(names, bare, strict=True)
    ]


def _key(name: str) -> str:
    """Return a key that two names share if they become the same words."""
    return _words(name).casefold()


def _singular_key(name: str) -> str:
    """Return a key that two names share if they differ in a plural or a number only."""
    words = re.sub(r"\d+", "", _key(name)).split()
    return " ".join(_PLURALS.get(word, word.removesuffix("s")) for word in words)


def _words(name: str) -> str:
    """Return a name's words, without full stops at the end."""
    name = " ".join(name.replace("_", " ").split())
    name = _LETTERS.sub(lambda letters: _respell(letters[0]), name)
    return name.rstrip(". ") or name


def _respell(letters: str) -> str:
    """Split ``camelCase`` and change it to lower case, except for capitals and brands."""
    if letters.isupper():
        return letters
    pieces = _camel_case(letters)
    if len(pieces) > 1 and _is_one_word(letters, pieces):
        return letters
    return " ".join(piece if piece.isupper() else piece.lower() for piece in pieces)


def _camel_case(letters: str) -> list[str]:
    """Split before capitals: ``goldenRetriever``, ``USBCable``."""
    starts = [
        place
        for place in range(1, len(letters))
        if letters[place].isupper()
        and (letters[place - 1].islower() or letters[place + 1 : place + 2].islower())
    ]
    ends = [*starts, len(letters)]
    return [letters[start:end] for start, end in zip([0, *starts], ends, strict=True)]


def _is_one_word(letters: str, pieces: Sequence[str]) -> bool:
    """Return whether people write it as one word: ``iPhone``, ``PhD``, ``McCafe``, ``YouTube``.

    Words like the last one are in CLIP's vocabulary, which was made from captions of the web.
    """
    if (len(pieces[0]) == 1 and pieces[0].islower()) or len(pieces[-1]) == 1 or "Mc" in pieces:
        return True
    return f"{letters.lower()}</w>" in _clip_vocabulary()


@cache
def _clip_vocabulary() -> frozenset[str]:
    """Return the vocabulary of CLIP's tokenizer; whole words end with ``</w>``."""
    from open_clip import SimpleTokenizer  # slow to import, and rarely needed

    return frozenset(SimpleTokenizer().encoder)
