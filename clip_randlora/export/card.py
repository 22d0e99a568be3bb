"""The model card of an export, and the Python that loads it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip

from clip_randlora.clip.models import BUNDLED, DEFAULT_TAG, RANDOM

if TYPE_CHECKING:
    from clip_randlora.export.export_source import Description, Source

# ``classes``, of a CLIPModel ``model`` and its ``processor``, and the answer for an image
_ANSWER_OF_TRANSFORMERS = """\
prompts = json.loads(Path(folder, "prompts.json").read_text("utf-8"))


{open_image}


{square}


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


with torch.no_grad():
    classes = []
    for of_class in prompts.values():  # a class is the mean of its prompts
        tokens = processor.tokenizer(of_class, padding=True, truncation=True, return_tensors="pt")
        texts = model.text_projection(model.text_model(**tokens).pooler_output)
        classes.append(unit(texts).mean(dim=0))
    classes = unit(torch.stack(classes))


@torch.no_grad()
def classify(path):
    cut = processor.image_processor
    size, keeps_shape = cut.crop_size["height"], cut.do_center_crop
    image = square(open_image(path), size, keeps_shape, cut.resample)
    pixels = cut(image, return_tensors="pt")["pixel_values"]
    image = unit(model.visual_projection(model.vision_model(pixels).pooler_output))
    probabilities = (model.logit_scale.exp() * image @ classes.T).softmax(dim=-1)[0]
    return dict(zip(prompts, probabilities.tolist()))


print(classify("image.jpg"))
"""
_SNIPPETS = {
    "adapter": """\
import clip_randlora as cr

folder = {path}
classifier = cr.Classifier.load(f"{{folder}}/adapter.safetensors")
classifier.adapter.strength = 1.0  # 0: zero-shot, between: both
print(classifier.predict(["image.jpg"])[0]["tuned"])
""",
    "open_clip": """\
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps

folder = {path}
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
model.eval()
prompts = json.loads(Path(folder, "prompts.json").read_text("utf-8"))


{open_image}


with torch.no_grad():
    texts = [model.encode_text(tokenizer(of), normalize=True) for of in prompts.values()]
    classes = torch.stack([of_class.mean(dim=0) for of_class in texts])
    classes /= classes.norm(dim=-1, keepdim=True)


@torch.no_grad()
def classify(path):
    image = model.encode_image(preprocess(open_image(path))[None], normalize=True)
    probabilities = (model.logit_scale.exp() * image @ classes.T).softmax(dim=-1)[0]
    return dict(zip(prompts, probabilities.tolist()))


print(classify("image.jpg"))
""",
    "transformers": """\
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

folder = {path}
model = CLIPModel.from_pretrained(folder).eval()
processor = CLIPProcessor.from_pretrained(folder)
"""
    + _ANSWER_OF_TRANSFORMERS,
    "peft": """\
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

# peft looks for the shared bases in every layer; the file has them once, which is enough
warnings.filterwarnings("ignore", message="Found missing adapter keys")

folder, base = {path}, {transformers_base}{base_remark}
model = CLIPModel.from_pretrained(base)
model = PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
processor = CLIPProcessor.from_pretrained(base)
"""
    + _ANSWER_OF_TRANSFORMERS,
    "onnx": """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = {path}
image_encoder, text_encoder, classifier = (
    onnxruntime.InferenceSession(f"{{folder}}/{{name}}.onnx")
    for name in ("image_encoder", "text_encoder", "classifier")
)
facts = classifier.get_modelmeta().custom_metadata_map
facts = {{key: json.loads(value) for key, value in facts.items()}}
classes, size = facts["classes"], facts["image_size"]
keeps_shape = facts["resize_mode"] == "shortest"


{open_image}


{square}


def classify(path):
    image = square(open_image(path), size, keeps_shape, facts["resample"])
    pixels = (np.asarray(image) / 255 - facts["mean"]) / facts["std"]
    pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    probabilities = classifier.run(None, {{"pixels": pixels}})[0][0]
    return dict(zip(classes, probabilities.tolist()))


print(classify("image.jpg"))
""",
    "head": """\
import json

from safetensors import safe_open

folder = {path}
with safe_open(f"{{folder}}/class_embeddings.safetensors", framework="numpy") as file:
    embeddings, scale = file.get_tensor("class_embeddings"), file.get_tensor("logit_scale")
    classes = json.loads(file.metadata()["classes"])


def logits(image_features):  # (N, E), of unit length, from the tuned image encoder
    return scale * image_features @ embeddings.T


# That encoder, where you do not run it yet: the same run's export to open_clip, at this strength
import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:ENCODER")
model.eval()


{open_image}


@torch.no_grad()
def classify(path):
    image = model.encode_image(preprocess(open_image(path))[None], normalize=True)
    probabilities = torch.from_numpy(logits(image.numpy())).softmax(dim=-1)[0]
    return dict(zip(classes, probabilities.tolist()))


print(classify("image.jpg"))
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
    """Return Python that classifies an image with an export of a run that is at ``path``."""
    base = transformers_base(run)
    return _SNIPPETS[format].format(
        path=_quoted(path),
        open_image=_function("open_image"),
        square=_function("square"),
        transformers_base=_quoted(base or _OWN_BASE),
        base_remark="" if base else "  # BASE: an export with --format transformers --strength 0",
    )


def _quoted(text: str) -> str:
    """Return a string as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _function(name: str) -> str:
    """Return the source of a function of the script that goes with ONNX files."""
    script = Path(__file__).with_name("classify.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(script).body if getattr(node, "name", None) == name)
    return ast.get_source_segment(script, found)


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
