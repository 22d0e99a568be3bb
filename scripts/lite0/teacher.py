"""The teacher: where the image features of a thing point, for any thing that can be described.

The classifier's weights give a direction for each of its classes, and the mean of the classes below
a general noun gives that noun's. Kernel ridge regression from sentence embeddings predicts all
others.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from lite0.wordnet import WordNet

BROADEST_HYPERNYM = 150  # the mean direction of more classes means nothing


@dataclass
class Concept:
    """A thing whose direction is known: a class, or a noun with classes below it."""

    synset_id: str
    names: list[str]
    direction: torch.Tensor


def principal_projection(class_weights: torch.Tensor, dimension: int) -> torch.Tensor:
    """Orthonormal columns that span the main differences between the classes."""
    centred = normalize(class_weights - class_weights.mean(0), dim=-1)
    _, _, right = torch.linalg.svd(centred, full_matrices=False)
    return right[:dimension].T.contiguous()


def class_directions(class_weights: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """The direction of every class in the embedding space."""
    return normalize((class_weights - class_weights.mean(0)) @ projection, dim=-1)


def hypernym_concepts(wordnet: WordNet, classes: list[Concept]) -> list[Concept]:
    """The general nouns above the classes, each with the mean direction of what is below it."""
    direction = {c.synset_id: c.direction for c in classes}
    concepts = []
    for node, below in wordnet.classes_below(list(direction)).items():
        if len(below) <= BROADEST_HYPERNYM:
            mean = torch.stack([direction[c] for c in below]).mean(0)
            concepts.append(Concept(node, wordnet.synsets[node].names, normalize(mean, dim=-1)))
    return concepts


def describe(wordnet: WordNet, synset_id: str) -> str:
    """The sentence that the teacher is asked with: a synset's first name and its definition."""
    synset = wordnet.synsets[synset_id]
    return f"{synset.names[0]}: {synset.definition}"


class KernelRidge:
    """Ridge regression with the kernel exp(-gamma |x - y|^2) on unit vectors."""

    def __init__(self, gamma: float = 1.5, ridge: float = 0.1):
        self.gamma = gamma
        self.ridge = ridge

    def fit(self, inputs: torch.Tensor, targets: torch.Tensor) -> "KernelRidge":
        """Solve for the coefficients of the training inputs."""
        self.inputs = inputs
        gram = self._kernel(inputs)
        gram.diagonal().add_(self.ridge)
        self.coefficients = torch.cholesky_solve(targets, torch.linalg.cholesky(gram))
        return self

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """Directions of other inputs, shorter the less they are like the training inputs."""
        return torch.cat([self._kernel(part) @ self.coefficients for part in inputs.split(4096)])

    def _kernel(self, inputs: torch.Tensor) -> torch.Tensor:
        squared_distance = 2 - 2 * inputs @ self.inputs.T
        return squared_distance.mul_(-self.gamma).exp_()


class Teacher:
    """A kernel ridge regression fitted to all names and the descriptions of known concepts."""

    def __init__(
        self,
        wordnet: WordNet,
        embeddings: dict[str, torch.Tensor],
        concepts: list[Concept],
        gamma: float,
        ridge: float,
    ):
        self.wordnet, self.embeddings = wordnet, embeddings
        texts, directions = [], []
        for concept in concepts:
            for text in [*concept.names, describe(wordnet, concept.synset_id)]:
                texts.append(text)
                directions.append(concept.direction)
        self.regression = KernelRidge(gamma, ridge)
        self.regression.fit(self._embed(texts), torch.stack(directions))

    def ask(self, synset_ids: list[str]) -> dict[str, torch.Tensor]:
        """The directions of these synsets by their descriptions, longer if the teacher is sure."""
        texts = [describe(self.wordnet, synset_id) for synset_id in synset_ids]
        return dict(zip(synset_ids, self.regression.predict(self._embed(texts)), strict=True))

    def _embed(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self.embeddings[text] for text in texts])
