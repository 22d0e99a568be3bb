"""The model card of an export, and the Python that loads it."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip

from clip_randlora.models import BUNDLED, DEFAULT_TAG, RANDOM

if TYPE_CHECKING:
    from clip_randlora.export.source import Description, Source

_SNIPPETS = {
    "adapter": """\
import clip_randlora as cr

model = cr.load_model({base})
adapter = cr.load_adapter(model.net, {path!r})
adapter.strength = 1.0  # 0: zero-shot, between: both
""",
    "open_clip": """\
import open_clip
import torch
from PIL import Image

name = "local-dir:{path}"
model, _, preprocess = open_clip.create_model_and_transforms(name)
tokenizer = open_clip.get_tokenizer(name)
model.eval()

prompts = {prompts}
image = preprocess(Image.open("image.jpg").convert("RGB"))[None]
with torch.inference_mode():
    image, text, scale = model(image, tokenizer(prompts))[:3]
print((scale * image @ text.T).softmax(dim=-1))
""",
    "transformers": """\
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained({path!r}).eval()
processor = CLIPProcessor.from_pretrained({path!r})

prompts = {prompts}
image = Image.open("image.jpg")
inputs = processor(text=prompts, images=image, padding=True, return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).logits_per_image.softmax(dim=-1))
""",
    "peft": """\
import warnings

from peft import PeftModel
from transformers import CLIPModel

# peft looks for the shared bases in every layer; the file has them once, which is enough
warnings.filterwarnings("ignore", message="Found missing adapter keys")

base = CLIPModel.from_pretrained({transformers_base!r}){base_remark}
model = PeftModel.from_pretrained(base, {path!r}, is_trainable=True)
""",
    "onnx": """\
import json

import numpy as np
import onnxruntime

image_encoder, text_encoder, classifier = (
    onnxruntime.InferenceSession(f"{path}/{{name}}.onnx")
    for name in ("image_encoder", "text_encoder", "classifier")
)
facts = classifier.get_modelmeta().custom_metadata_map
classes, size = json.loads(facts["classes"]), json.loads(facts["image_size"])

pixels = np.zeros((1, 3, size, size), np.float32)  # prepare images as classify.py does
print(classes, classifier.run(None, {{"pixels": pixels}})[0])
""",
    "head": """\
import json

from safetensors import safe_open

with safe_open("{path}/class_embeddings.safetensors", framework="numpy") as file:
    embeddings, scale = file.get_tensor("class_embeddings"), file.get_tensor("logit_scale")
    classes = json.loads(file.metadata()["classes"])


def logits(image_features):  # (N, E), of unit length, from the tuned image encoder
    return scale * image_features @ embeddings.T
""",
}
_LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers", "peft": "peft"}
_OPENAI_ON_HUB = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}
_OWN_BASE = "BASE"


def snippet(run: Description, format: str, path: str) -> str:
    """Return Python that loads an export of a run from ``path``."""
    first_prompts = [prompts[0] for prompts in run.prompts().values()]
    base = transformers_base(run)
    return _SNIPPETS[format].format(
        path=path,
        base=_load_arguments(run),
        prompts=pprint.pformat(first_prompts, width=88, compact=True),
        transformers_base=base or _OWN_BASE,
        base_remark="" if base else "  # an export: --format transformers --strength 0",
    )


def transformers_base(run: Description) -> str | None:
    """Name the repository that has a run's base model for transformers, if one is known."""
    name, tag = run.settings["model"].removesuffix("-quickgelu"), run.settings["pretrained"]
    if tag == "openai":
        return _OPENAI_ON_HUB.get(name)
    hub = (open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub", "").strip("/")
    return hub if hub.startswith("laion/CLIP-ViT-") else None


def write(source: Source, format: str, path: str, precision: str) -> str:
    """Return the README of an export."""
    run = source.description
    library = f"library_name: {_LIBRARIES[format]}\n" if format in _LIBRARIES else ""
    classes = ", ".join(f"`{name}`" for name in source.classes)
    results = "\n".join(map(_results, source.trained))
    return f"""---
{library}pipeline_tag: zero-shot-image-classification
tags: [clip, randlora]
---

# {base_name(run)} tuned on {_data_name(run)}, as {format}

Base model: {base_name(run)}, weights: {_weights(run)}.
Licence of the base: {_licence(run)}

{len(source.classes)} classes: {classes}.

| run | training images | test images | zero-shot top-1 | tuned top-1 | calibration error, tuned |
|---|---|---|---|---|---|
{results}

{_remark(source)}

## Load it

```python
{snippet(run, format, path).strip()}
```

## Settings

Written with clip-randlora, format {format}, {precision}, strength {source.strength:g}.

{_settings(source)}
"""


def base_name(run: Description) -> str:
    """Name a run's base model, without the folders above it if it is a local one."""
    name = run.settings["model"]
    return Path(name).name if name.startswith("local-dir:") else name


def _results(run: Description) -> str:
    metrics = run.metrics
    images, tuned = metrics["images"], metrics["tuned"]
    cells = [
        run.folder.resolve().name,
        f"{images['train']}",
        f"{images['test']}",
        f"{metrics['zero_shot']['top1']:.1%}",
        f"{tuned['top1']:.1%}",
        f"{tuned['ece']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _remark(source: Source) -> str:
    remarks = []
    if len(source.trained) > 1:
        terms = " + ".join(
            f"{weight:g} x {run.folder.resolve().name}"
            for weight, run in zip(source.weights, source.trained, strict=True)
        )
        remarks.append(
            f"The update is {terms}, added in weight space; the figures are each run's own, not "
            f"the sum's."
        )
    if source.strength != 1:
        remarks.append(
            f"The figures were measured at strength 1; this export has strength "
            f"{source.strength:g} (0 is zero-shot)."
        )
    return "\n".join(remarks) or "Measured with this package by the run itself, at strength 1."


def _settings(source: Source) -> str:
    rows = ["| setting | value |", "|---|---|"]
    for run in source.trained:
        train: Mapping[str, Any] = run.settings["train"]
        flat = {key: value for key, value in train.items() if not isinstance(value, dict)}
        flat |= {f"method.{key}": value for key, value in train["method"].items()}
        name = f"{run.folder.resolve().name}: " if len(source.trained) > 1 else ""
        rows += [f"| {name}{key} | {value} |" for key, value in flat.items() if value is not None]
    return "\n".join(rows)


def _load_arguments(run: Description) -> str:
    name, pretrained = run.settings["model"], run.settings["pretrained"]
    return repr(name) if pretrained == DEFAULT_TAG else f"{name!r}, {pretrained!r}"


def _data_name(run: Description) -> str:
    """Name the data without the folders above it, which are nobody else's business."""
    return Path(run.settings["data"].get("data", "images")).name


def _weights(run: Description) -> str:
    pretrained = run.settings["pretrained"]
    return "its own" if pretrained == DEFAULT_TAG else Path(pretrained).name


def _licence(run: Description) -> str:
    name, pretrained = run.settings["model"], run.settings["pretrained"]
    if name in BUNDLED:
        return "Apache-2.0; what it was made of is in clip-randlora's NOTICE."
    if pretrained == "openai":
        return "MIT (OpenAI's CLIP)."
    if pretrained.startswith("laion"):
        return "MIT (LAION's OpenCLIP models)."
    if RANDOM.fullmatch(pretrained):
        return "none; its weights are random."
    return "that of its weights applies; see where they come from."
