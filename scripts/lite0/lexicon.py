"""What the text tower is taught: names, the direction of each, and how often it is shown.

A name has one direction. Of several meanings, a class of the classifier comes first, then the most
common visible thing of that name.
"""

import re
from dataclasses import dataclass

import torch
from open_clip import SimpleTokenizer
from torch.nn.functional import normalize

from lite0.teacher import Concept, Teacher
from lite0.wordnet import HALF_VISIBLE_FIELDS, VISIBLE_FIELDS, Synset, WordNet

LONGEST_NAME = 9  # tokens
SYNONYM = 0.7  # factor of the weight from one name of a thing to its next
OUT_OF_REACH = 0.1  # the factor for a name that is not a kind of a known concept

# "{}" stands for the name; users write prompts of this kind.
TEMPLATES = [
    "{}", "{}", "a {}", "the {}", "a {}.",
    "a photo of a {}.", "a photo of a {}.", "a photo of a {}", "a photo of the {}.",
    "a photo of {}.", "An image of {}.", "An image of a {}.", "a picture of a {}",
    "a picture of a {}.", "clip art of a {}", "clip art of a {}.", "a drawing of a {}.",
    "a drawing of a {}", "a sketch of a {}.", "a painting of the {}.", "an illustration of a {}.",
    "a close-up photo of a {}.", "a blurry photo of a {}.", "a cropped photo of the {}.",
    "a photo of a small {}.", "a photo of a large {}.", "a photo of one {}.",
    "a photo of many {}.", "itap of a {}.", "a cartoon {}.", "an icon of a {}.", "two {}",
    "a red {}", "a blue {}.", "a green {}", "a black {}.", "a white {}.", "a yellow {}",
    "a photo of a {}, a type of animal.", "a photo of a {}, a type of object.",
]  # fmt: skip


@dataclass
class Lexicon:
    """Names as token ids, with a direction and a sampling weight each."""

    names: list[str]
    tokens: list[list[int]]
    directions: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.names)


class Secret:
    """Names that must not be shown, wherever they occur as whole words, plurals included."""

    def __init__(self, names: list[str]):
        self.phrases = {_words(form) for name in names for form in (name, plural(name))}
        self.longest = max(map(len, self.phrases), default=0)

    def is_in(self, text: str) -> bool:
        """Whether one of the names occurs in the text."""
        words = _words(text)
        return any(
            words[start : start + length] in self.phrases
            for start in range(len(words))
            for length in range(1, self.longest + 1)
        )


def class_names(classes: list[Concept], secret: Secret) -> dict[str, tuple[torch.Tensor, float]]:
    """Every name of the classes with its direction and weight; the first class of a name wins."""
    names: dict[str, tuple[torch.Tensor, float]] = {}
    for concept in classes:
        for place, name in enumerate(concept.names):
            if not secret.is_in(name):
                names.setdefault(name.lower(), (concept.direction, SYNONYM**place))
    return names


def hypernym_names(
    hypernyms: list[Concept], meanings: dict[str, tuple[str, float]], secret: Secret
) -> dict[str, tuple[torch.Tensor, float]]:
    """The names whose main meaning is one of the hypernyms, with direction and weight."""
    directions = {hypernym.synset_id: hypernym.direction for hypernym in hypernyms}
    return {
        name: (directions[synset_id], weight)
        for name, (synset_id, weight) in meanings.items()
        if synset_id in directions and not secret.is_in(name)
    }


def concept_lexicon(names: dict[str, tuple[torch.Tensor, float]]) -> Lexicon:
    """The names of known concepts, and their plurals at a fifth of the weight."""
    plurals = {
        plural(name): (direction, 0.2 * weight) for name, (direction, weight) in names.items()
    }
    both = {**plurals, **names}
    return _tokenize(
        {name: direction for name, (direction, _) in both.items()},
        {name: weight for name, (_, weight) in both.items()},
    )


def dictionary_lexicon(
    wordnet: WordNet,
    teacher: Teacher,
    concepts: list[Concept],
    meanings: dict[str, tuple[str, float]],
    secret: Secret,
) -> Lexicon:
    """The names of these meanings with the directions that the teacher gives.

    Names of kinds of the concepts are shown most, the more often the surer the teacher is.
    """
    known = {concept.synset_id for concept in concepts}
    predictions = teacher.ask(sorted({synset_id for synset_id, _ in meanings.values()}))
    directions, weights = {}, {}
    for name, (synset_id, weight) in meanings.items():
        if secret.is_in(name):
            continue
        within_reach = not known.isdisjoint(wordnet.ancestors(synset_id))
        sureness = min(1.0, predictions[synset_id].norm().item())
        directions[name] = predictions[synset_id]
        weights[name] = weight * sureness**2 * (1.0 if within_reach else OUT_OF_REACH)
    return _tokenize(directions, weights)


def plural(name: str) -> str:
    """The regular English plural."""
    if re.search(r"(s|x|z|ch|sh)$", name):
        return name + "es"
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + "s"


def common_meanings(wordnet: WordNet) -> dict[str, tuple[str, float]]:
    """For every name in the dictionary the synset to teach and the weight to teach it with."""
    best: dict[str, tuple[str, float]] = {}
    for synset in wordnet.synsets.values():
        for place, name in enumerate(synset.names):
            weight = _visibility(synset) * SYNONYM**place
            weight *= 0.6 ** wordnet.sense_rank(name, synset.id)
            if name != name.lower():  # proper and Latin names
                weight *= 0.2
            key = name.lower()
            if key not in best or weight > best[key][1]:
                best[key] = (synset.id, weight)
    return best


def _visibility(synset: Synset) -> float:
    """Roughly how often a picture shows a thing of this lexical field."""
    if synset.lexical_field in VISIBLE_FIELDS:
        return 1.0
    return 0.4 if synset.lexical_field in HALF_VISIBLE_FIELDS else 0.15


def _tokenize(directions: dict[str, torch.Tensor], weights: dict[str, float]) -> Lexicon:
    """Make a lexicon of the names; those of many tokens are left out."""
    tokenizer = SimpleTokenizer()
    tokens = {name: tokenizer.encode(name) for name in directions}
    kept = [name for name in directions if 0 < len(tokens[name]) <= LONGEST_NAME]
    return Lexicon(
        kept,
        [tokens[name] for name in kept],
        normalize(torch.stack([directions[name] for name in kept]), dim=-1),
        torch.tensor([weights[name] for name in kept]),
    )


def _words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))
