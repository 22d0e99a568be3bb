"""The YAML at the head of a model card, by which the Hugging Face hub finds and shows a model.

The fields are those of the hub's documentation, https://huggingface.co/docs/hub/model-cards, and of
its specification of evaluation results, ``modelcard.md`` in github.com/huggingface/hub-docs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import EvalResult, ModelCardData

from clip_randlora.clip.models import BUNDLED, RANDOM
from clip_randlora.data.dataset_spec import packaged_specs, read_dataset_spec
from clip_randlora.data.layouts import HUB as HUB_DATA
from clip_randlora.data.layouts import is_hub_name
from clip_randlora.utils.hub import HUB

_LITE0_IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
_MOST_LABELS = 100
# the hub's own example, as it stands in the cards of other CLIPs: no image of the user's is shown
_EXAMPLE = "https://huggingface.co/datasets/mishig/sample_images/resolve/main/cat-dog-music.png"


@dataclass(frozen=True)
class Licence:
    """A licence: the hub's identifier of it, and what a card says."""

    identifier: str
    words: str


def licence(settings: Mapping[str, Any]) -> Licence:
    """Return the licence of a run's base model, as far as it is known.

    Args:
        settings: of the run's ``config.yaml``.
    """
    name, pretrained = settings["model"], str(settings["pretrained"])
    if name in BUNDLED:
        return Licence("apache-2.0", "Apache-2.0; clip-randlora's NOTICE says what it was made of.")
    if pretrained == "openai":
        return Licence("mit", "MIT (OpenAI's CLIP).")
    if pretrained.startswith("laion"):
        return Licence("mit", "MIT (LAION's OpenCLIP models).")
    if RANDOM.fullmatch(pretrained):
        return Licence("unknown", "none; its weights are random.")
    kind = "other" if base_model(settings) else "unknown"
    return Licence(kind, "that of its weights applies; see where they come from.")


def base_model(settings: Mapping[str, Any]) -> str | None:
    """Return the hub's repository of a run's base model; None if it is not on the hub."""
    name, pretrained = settings["model"], str(settings["pretrained"])
    if name in BUNDLED:
        return _LITE0_IMAGE_TOWER
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    found = (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("hf_hub", "")
    return "/".join(found.split("/")[:2]) or None


def data_name(settings: Mapping[str, Any]) -> str:
    """Return the name of a run's training data, without a folder of this machine."""
    source = str(settings["data"].get("data") or "images")
    hub = hub_dataset(settings)
    return hub or Path(source.removeprefix(HUB_DATA)).name or "images"


def hub_dataset(settings: Mapping[str, Any]) -> str | None:
    """Return the hub's repository of a run's training data; None if it is not on the hub."""
    source = str(settings["data"].get("data"))
    if source in packaged_specs():
        return read_dataset_spec(packaged_specs()[source]).hub
    name = source.removeprefix(HUB_DATA).partition("@")[0]
    is_name = is_hub_name(source) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)
    return name if is_name else None


def card_metadata(
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    name: str,
    *,
    classes: Sequence[str],
    library: str | None,
    relation: str,
    base: str | None = None,
) -> str:
    """Return the YAML between two lines of ``---``.

    Args:
        settings: of the run's ``config.yaml``.
        metrics: of its ``metrics.json``.
        name: of the model.
        classes: the labels of the hub's widget.
        library: what loads it.
        relation: ``adapter`` or ``finetune`` of the base model.
        base: the hub's repository of the base model; by default that of `base_model`.
    """
    of_base, base = licence(settings), base or base_model(settings)
    link = f"https://huggingface.co/{base}"
    is_named_there = of_base.identifier == "other"
    more: dict[str, Any] = {}
    if base is not None:  # the image tower that lite0 was made of has another shape
        more["base_model_relation"] = "finetune" if settings["model"] in BUNDLED else relation
    labels = ", ".join(label.replace(",", " ") for label in classes[:_MOST_LABELS])
    more["widget"] = [{"src": _EXAMPLE, "candidate_labels": labels, "example_title": "Example"}]
    data, hub = data_name(settings), hub_dataset(settings)
    measured = {
        "accuracy": ("Top-1 accuracy", "top1"),
        "ece": ("Expected calibration error", "ece"),
    }
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=hub or "imagefolder",
            dataset_name=data,
            metric_type=kind,
            metric_name=title,
            metric_value=round(float(metrics["tuned"][key]), 4),
        )
        for kind, (title, key) in measured.items()
    ]
    content = ModelCardData(
        license=of_base.identifier,
        license_name="of-the-base-model" if is_named_there else None,
        license_link=link if is_named_there else None,
        library_name=library,
        base_model=base,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "few-shot", str(metrics["method"]).replace("_", "-")],
        datasets=[hub] if hub else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=results,
        **more,
    )
    return f"---\n{content.to_yaml()}\n---\n"
