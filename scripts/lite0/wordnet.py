"""WordNet's nouns: names, senses, glosses and hypernyms.

ImageNet's classes are WordNet 3.0 synsets ("n" followed by the offset in ``data.noun``). WordNet
therefore has the synonyms of every class, and the classes below every general noun.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

# Lexicographer files of nouns: the coarse field of meaning that WordNet gives to every synset.
ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PERSON, PHENOMENON, PLANT, SUBSTANCE = (
    5, 6, 8, 13, 17, 18, 19, 20, 27,
)  # fmt: skip
VISIBLE_FIELDS = {ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PLANT}
HALF_VISIBLE_FIELDS = {PERSON, PHENOMENON, SUBSTANCE}

_HYPERNYM_POINTERS = {"@", "@i"}  # "is a kind of" and "is an instance of"


@dataclass
class Synset:
    """One meaning: its names in WordNet's order, its definition, and the meanings above it."""

    id: str
    names: list[str]
    definition: str
    lexical_field: int
    hypernyms: list[str] = field(default_factory=list)


class WordNet:
    """All noun synsets, with the order of the senses of every name (most common first)."""

    def __init__(self, folder: Path):
        self.synsets = {s.id: s for s in map(_parse_synset, _data_lines(folder / "data.noun"))}
        self.senses: dict[str, list[str]] = defaultdict(list)
        for line in _data_lines(folder / "index.noun"):
            columns = line.split()
            count = int(columns[2])
            self.senses[_plain(columns[0])] = [f"n{offset}" for offset in columns[-count:]]

    def sense_rank(self, name: str, synset_id: str) -> int:
        """0 if this is the most common meaning of the name, 1 for the next one, and so on."""
        senses = self.senses.get(name.lower(), [])
        return senses.index(synset_id) if synset_id in senses else len(senses)

    def ancestors(self, synset_id: str) -> set[str]:
        """Everything that the synset is a kind of, itself excluded."""
        found: set[str] = set()
        waiting = list(self.synsets[synset_id].hypernyms)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(self.synsets[node].hypernyms)
        return found

    def classes_below(self, class_ids: list[str]) -> dict[str, list[str]]:
        """For every general noun, the given classes that are a kind of it."""
        below: dict[str, list[str]] = defaultdict(list)
        for class_id in class_ids:
            for node in self.ancestors(class_id):
                below[node].append(class_id)
        return dict(below)


def _data_lines(path: Path):
    """The lines of a WordNet file without its licence, whose lines start with blanks."""
    with path.open(encoding="utf-8") as lines:
        yield from (line for line in lines if not line.startswith(" "))


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _parse_synset(line: str) -> Synset:
    """Read ``offset field type word_count (word id)* pointer_count (pointer)* | gloss``."""
    columns, gloss = line.split("|", 1)
    columns = columns.split()
    word_count = int(columns[3], 16)
    words = columns[4 : 4 + 2 * word_count : 2]
    pointers = columns[5 + 2 * word_count :]
    hypernyms = [
        f"n{offset}"
        for symbol, offset in zip(pointers[0::4], pointers[1::4], strict=False)
        if symbol in _HYPERNYM_POINTERS
    ]
    definition = re.split(r';\s*"', gloss.strip())[0].strip()  # usage examples follow in quotes
    return Synset(f"n{columns[0]}", [_plain(w) for w in words], definition,
                  int(columns[1]), hypernyms)  # fmt: skip
