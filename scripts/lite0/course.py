"""One course of teaching: fit the teacher, write the lexicons, train a student.

A course can keep classes out, to measure the accuracy on things that the model was never shown.
"""

from dataclasses import dataclass

import open_clip
import torch
from open_clip.transformer import TextTransformer

from lite0.lexicon import (
    Lexicon,
    Secret,
    class_names,
    common_meanings,
    concept_lexicon,
    dictionary_lexicon,
    hypernym_names,
)
from lite0.student import Prompts, Stage, token_table, train
from lite0.teacher import (
    Concept,
    Teacher,
    class_directions,
    describe,
    hypernym_concepts,
    principal_projection,
)
from lite0.wordnet import WordNet

CLASS_NAMES = open_clip.IMAGENET_CLASSNAMES


@dataclass
class Material:
    """What every course starts from."""

    wordnet: WordNet
    class_ids: list[str]  # synsets in the order of the classifier's outputs
    class_weights: torch.Tensor
    embeddings: dict[str, torch.Tensor]  # sentence embedding by text
    token_embeddings: torch.Tensor  # sentence embedding of every token's text

    def names_of(self, index: int) -> list[str]:
        """All names of a class: the one that is common for CLIP, then WordNet's."""
        return [CLASS_NAMES[index], *self.wordnet.synsets[self.class_ids[index]].names]


@dataclass
class HeldOut:
    """Classes whose directions the teacher does not see, and classes whose names nobody sees."""

    directions: list[int]
    names: list[int]


@dataclass
class Course:
    """A trained text tower and the projection that its directions are in."""

    tower: TextTransformer
    projection: torch.Tensor
    directions: torch.Tensor


@dataclass
class Settings:
    """The size of the student and what the teacher is like."""

    width: int = 384
    layers: int = 2
    heads: int = 6
    embed_dim: int = 512
    table_std: float = 0.5
    batch_size: int = 384
    groups: int = 4
    gamma: float = 2.5
    ridge: float = 0.1


def texts_to_embed(wordnet: WordNet, class_ids: list[str]) -> list[str]:
    """All texts that a teacher can be fitted to or asked with."""
    nodes = [*class_ids, *wordnet.classes_below(class_ids)]
    names = {name for node in nodes for name in wordnet.synsets[node].names}
    return sorted({*names, *CLASS_NAMES, *(describe(wordnet, s) for s in wordnet.synsets)})


def teach(
    material: Material,
    held_out: HeldOut,
    settings: Settings,
    stage: Stage,
    seed: int,
    report=print,
) -> Course:
    """Run a course from the start."""
    torch.manual_seed(seed)
    classes, projection = fitted_classes(material, held_out, settings.embed_dim)
    lexicons = write_lexicons(material, classes, held_out, settings)
    report(f"  names taught (dictionary, classes, hypernyms): {[len(x) for x in lexicons]}")
    tower = new_tower(settings, material.token_embeddings)
    directions = torch.stack([c.direction for c in classes])
    shares = list(zip(stage.shares, lexicons, strict=True))
    prompts = Prompts(shares, settings.batch_size, settings.groups, seed)
    train(tower, prompts, directions, stage, report=report)
    return Course(tower.eval(), projection, directions)


def fitted_classes(
    material: Material, held_out: HeldOut, dimension: int
) -> tuple[list[Concept], torch.Tensor]:
    """The classes that are not held out, and the projection that suits them."""
    kept_out = {*held_out.directions, *held_out.names}
    fitted = [i for i in range(len(material.class_ids)) if i not in kept_out]
    weights = material.class_weights[fitted]
    projection = principal_projection(weights, dimension)
    directions = class_directions(weights, projection)
    classes = [
        Concept(material.class_ids[i], material.names_of(i), direction)
        for i, direction in zip(fitted, directions, strict=True)
    ]
    return classes, projection


def write_lexicons(
    material: Material, classes: list[Concept], held_out: HeldOut, settings: Settings
) -> list[Lexicon]:
    """Lexicons of the dictionary, of the classes and of the hypernyms, less secret names."""
    secret = Secret([name for index in held_out.names for name in material.names_of(index)])
    hypernyms = hypernym_concepts(material.wordnet, classes)
    concepts = [*classes, *hypernyms]
    teacher = Teacher(
        material.wordnet, material.embeddings, concepts, settings.gamma, settings.ridge
    )
    of_classes = class_names(classes, secret)
    meanings = {
        name: meaning
        for name, meaning in common_meanings(material.wordnet).items()
        if name not in of_classes
    }
    of_hypernyms = hypernym_names(hypernyms, meanings, secret)
    others = {name: meaning for name, meaning in meanings.items() if name not in of_hypernyms}
    return [
        dictionary_lexicon(material.wordnet, teacher, concepts, others, secret),
        concept_lexicon(of_classes),
        concept_lexicon(of_hypernyms),
    ]


def new_tower(settings: Settings, token_embeddings: torch.Tensor) -> TextTransformer:
    """An untrained text tower whose token table starts from the sentence encoder."""
    tower = TextTransformer(
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        output_dim=settings.embed_dim,
    )
    initial = token_table(token_embeddings, settings.width, settings.table_std)
    with torch.no_grad():
        tower.token_embedding.weight[: len(initial)] = initial
    return tower
