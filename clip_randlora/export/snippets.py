"""The Python in a model card, which loads an export and classifies an image with it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import open_clip

from clip_randlora.export.export_source import RunInfo

_OPENAI_ON_HUB = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}


def snippet(run: RunInfo, format: str, path: str) -> str:
    """Return Python that classifies an image with the export of a run at ``path``."""
    base = transformers_base(run)
    return _SNIPPETS[format].format(
        path=_quoted(path),
        open_image=_function("open_image"),
        square=_function("square"),
        transformers_base=_quoted(base or "BASE"),
        scale="scale" if format == "peft" else "model.logit_scale.exp()",
        base_remark="" if base else "  # BASE: an export with --format transformers --strength 0",
    )


def as_on_hub(card: str, path: str, repository: str) -> str:
    """Return a card whose code loads the export from the hub in place of ``path``."""
    download = f"snapshot_download({_quoted(repository)})"
    folder = re.compile(rf"^(folder(?:, base)?) = {re.escape(_quoted(path))}", re.M)
    code = folder.sub(rf"\g<1> = {download}", card, count=1)
    start = "```python\n"
    return code.replace(start, f"{start}from huggingface_hub import snapshot_download\n", 1)


def transformers_base(run: RunInfo) -> str | None:
    """Return the hub repository with a run's base model for transformers, or None."""
    name, tag = run.settings["model"].removesuffix("-quickgelu"), run.settings["pretrained"]
    if tag == "openai":
        return _OPENAI_ON_HUB.get(name)
    hub = (open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub", "").strip("/")
    return hub if hub.startswith("laion/CLIP-ViT-") else None


def _quoted(text: str) -> str:
    """Return a string literal of Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _function(name: str) -> str:
    """Return the source of a function in ``classify.py``, the script beside ONNX files."""
    script = Path(__file__).with_name("classify.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(script).body if getattr(node, "name", None) == name)
    return ast.get_source_segment(script, found) or ""


# for a CLIPModel ``model`` and its ``processor``
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
    logits = {scale} * image @ classes.T
    probabilities = logits.softmax(dim=-1)[0]
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
scale = json.loads(Path(folder, "logit_scale.json").read_text("utf-8"))
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
    "web": """\
# Upload the folder to any static host. Or look at it here: http://127.0.0.1:8000
import functools
import http.server

folder = {path}
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
""",
    "head": """\
import json

from safetensors import safe_open

folder = {path}
with safe_open(f"{{folder}}/class_embeddings.safetensors", framework="numpy") as file:
    embeddings, scale = file.get_tensor("class_embeddings"), file.get_tensor("logit_scale")
    bias = file.get_tensor("bias") if "bias" in file.keys() else 0  # some linear heads have one
    classes = json.loads(file.metadata()["classes"])


def logits(image_features):  # (N, E), of unit length, from the run's image encoder
    return scale * image_features @ embeddings.T + bias


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
