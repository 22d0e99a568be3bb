"""The image tower: a published ImageNet classifier with a new head.

The features of all photographs share a large common part. The head subtracts it and projects the
rest to the embedding size, so that the direction of a feature depends on the class alone.
"""

from pathlib import Path

import timm
import torch
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo
from torchvision.transforms.functional import to_tensor

ARCHITECTURE = "tf_efficientnet_lite0"


def load_classifier(weights_file: Path) -> torch.nn.Module:
    """The 1,000-class EfficientNet-Lite0 as a timm model.

    The file's tensors have other names than timm's, but the same order and the same shapes.
    """
    source = torch.load(weights_file, map_location="cpu", weights_only=True)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    target = model.state_dict()
    if [tuple(t.shape) for t in source.values()] != [tuple(t.shape) for t in target.values()]:
        raise ValueError(f"{weights_file} does not hold the tensors of {ARCHITECTURE}")
    model.load_state_dict(dict(zip(target, source.values(), strict=True)))
    return model.eval()


@torch.no_grad()
def mean_feature(classifier: torch.nn.Module) -> torch.Tensor:
    """The mean pooled feature over the training images, from the weights alone.

    Batch norm makes every channel follow (bias, weight^2) over the training images; taken as a
    normal distribution, the mean after ReLU6 has a closed form.
    """
    mean, deviation = classifier.bn2.bias.double(), classifier.bn2.weight.double().abs()
    return (_relu_mean(mean, deviation) - _relu_mean(mean - 6, deviation)).float()


def class_ids() -> list[str]:
    """The synsets of the classifier's outputs, in their order."""
    return ImageNetInfo().label_names()


@torch.inference_mode()
def logit_scale(classifier: torch.nn.Module, mean: torch.Tensor, projection: torch.Tensor) -> float:
    """The factor that makes cosines spread like the classifier's own logits.

    A logit is |feature| |weight| cosine, so the factor is the product of the typical lengths of
    both after centring and projection. Patches of the sample photographs of scikit-learn give the
    length of a feature.
    """
    patches = []
    for image in load_sample_images().images:
        pixels = (to_tensor(image) - 0.5) / 0.5
        patches += list(
            pixels.unfold(1, 192, 96).unfold(2, 192, 96).permute(1, 2, 0, 3, 4).flatten(0, 1)
        )
    pooled = classifier.forward_head(
        classifier.forward_features(torch.stack(patches)), pre_logits=True
    )
    weights = classifier.classifier.weight
    feature_length = ((pooled - mean) @ projection).norm(dim=-1).mean()
    weight_length = ((weights - weights.mean(0)) @ projection).norm(dim=-1).mean()
    return (feature_length * weight_length).item()


def _relu_mean(mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """E[max(0, x)] of normal x."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = mean / deviation
    return mean * normal.cdf(z) + deviation * normal.log_prob(z).exp()
