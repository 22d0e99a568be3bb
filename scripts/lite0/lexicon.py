"""What the text tower is taught: names, the direction of each, and how often it is shown.

A name has one direction here. Where it has several meanings, a class of the classifier comes
first, then general nouns above the classes, then the most common visible thing of that name.
"""

import re
from dataclasses import dataclass

import torch
from open_clip import SimpleTokenizer
from torch.nn.functional import normalize

from lite0.teacher import Concept, Teacher
from lite0.wordnet import HALF_VISIBLE_FIELDS, VISIBLE_FIELDS, Synset, WordNet

LONGEST_NAME = 9  # tokens

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


def concept_names(concepts: list[Concept], secret: Secret) -> dict[str, torch.Tensor]:
    """Every name of the concepts with its direction; the first concept of a name wins."""
    directions: dict[str, torch.Tensor] = {}
    for concept in concepts:
        for name in concept.names:
            if not secret.is_in(name):
                directions.setdefault(name.lower(), concept.direction)
    return directions


def concept_lexicon(names: dict[str, torch.Tensor]) -> Lexicon:
    """The names of known concepts, all alike, and their plurals at a fifth of the weight."""
    plurals = {plural(name): direction for name, direction in names.items()}
    weights = {**dict.fromkeys(plurals, 0.2), **dict.fromkeys(names, 1.0)}
    return _tokenize({**plurals, **names}, weights)


def dictionary_lexicon(
    wordnet: WordNet,
    teacher: Teacher,
    classes: list[Concept],
    taught: set[str],
    secret: Secret,
) -> Lexicon:
    """All other names of the dictionary with the directions that the teacher gives.

    A kind of one of the classes points half to the class. Names that the teacher can place
    (a long prediction) are shown more often.
    """
    class_direction = {c.synset_id: c.direction for c in classes}
    meanings = {
        name: meaning
        for name, meaning in _meanings(wordnet).items()
        if name not in taught and not secret.is_in(name)
    }
    predictions = teacher.ask(sorted({synset_id for synset_id, _ in meanings.values()}))
    directions, weights = {}, {}
    for name, (synset_id, weight) in meanings.items():
        prediction = predictions[synset_id]
        direction = normalize(prediction, dim=-1)
        above = [class_direction[a] for a in wordnet.ancestors(synset_id) if a in class_direction]
        directions[name] = direction + above[0] if above else direction
        weights[name] = weight * (0.2 + min(1.0, prediction.norm().item()))
    for name in [name for name, weight in weights.items() if weight > 0.5]:
        many = plural(name)
        if many not in directions and many not in taught and not secret.is_in(many):
            directions[many], weights[many] = directions[name], 0.3 * weights[name]
    return _tokenize(directions, weights)


def plural(name: str) -> str:
    """The regular English plural."""
    if re.search(r"(s|x|z|ch|sh)$", name):
        return name + "es"
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + "s"


def _meanings(wordnet: WordNet) -> dict[str, tuple[str, float]]:
    """For every name in the dictionary the synset to teach and the weight to teach it with."""
    best: dict[str, tuple[str, float]] = {}
    for synset in wordnet.synsets.values():
        for name in synset.names:
            weight = _visibility(synset) * 0.6 ** wordnet.sense_rank(name, synset.id)
            if name != name.lower():  # proper and Latin names
                weight *= 0.2
            key = name.lower()
            if key not in best or weight > best[key][1]:
                best[key] = (synset.id, weight)
    return best


def _visibility(synset: Synset) -> float:
    """How often a thing of this lexical field is what a picture shows, roughly."""
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
