"""Zero-shot figures on a folder of photographs, one for each class, named by its synset."""

from pathlib import Path

import torch
from open_clip import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer
from PIL import Image
from torch.nn.functional import normalize

from lite0.student import END, START

PROMPT = "a photo of a {}."


@torch.inference_mode()
def pooled_features(classifier, photos: list[Path], size: int) -> torch.Tensor:
    """Features before the classification layer, at the given image size."""
    preprocess = preprocessing(size)
    features = []
    for start in range(0, len(photos), 50):
        images = [preprocess(Image.open(p).convert("RGB")) for p in photos[start : start + 50]]
        maps = classifier.forward_features(torch.stack(images))
        features.append(classifier.forward_head(maps, pre_logits=True))
    return torch.cat(features)


def preprocessing(size: int):
    """open_clip's preprocessing of an image for this model."""
    return image_transform_v2(PreprocessCfg(size=size, mean=(0.5,) * 3, std=(0.5,) * 3), False)


@torch.inference_mode()
def prompt_features(tower: TextTransformer, names: list[str]) -> torch.Tensor:
    """Unit text features of a photo prompt for every name."""
    tokenizer = SimpleTokenizer()
    rows = [[START, *tokenizer.encode(PROMPT.format(name)), END] for name in names]
    tokens = torch.zeros(len(rows), tower.context_length, dtype=torch.long)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return normalize(torch.cat([tower(part) for part in tokens.split(100)]), dim=-1)


def top1(images: torch.Tensor, texts: torch.Tensor, classes: list[int]) -> float:
    """Share of the classes' photographs whose most similar text, of these classes, is right."""
    best = (images[classes] @ texts[classes].T).argmax(1)
    return (best == torch.arange(len(classes))).float().mean().item()


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15):
    """Mean distance of confidence and accuracy over equal bins of confidence."""
    confidence, best = logits.softmax(-1).max(-1)
    correct = (best == labels).float()
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        (confidence[bin_index == i].sum() - correct[bin_index == i].sum()).abs()
        for i in range(bins)
    ]
    return (sum(gaps) / len(labels)).item()
