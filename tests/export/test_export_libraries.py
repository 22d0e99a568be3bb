"""Encoders in open_clip, transformers and peft, and the head: equal features there."""

import json

import open_clip
import pytest
import torch
from helpers.exports import (
    COMPARE_OPEN_CLIP,
    COMPARE_TRANSFORMERS,
    EXPECTED,
    STEP_IN_PEFT,
    WITHOUT_TORCH,
    answers,
    elsewhere,
    files_in,
    snippet,
    train,
)
from helpers.models import write_model
from PIL import Image
from safetensors.torch import save_file

import clip_randlora as cr

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


def test_open_clip(lite0_run, exported, tmp_path):
    exported(lite0_run, "open_clip", tmp_path)
    answers(lite0_run, tmp_path)
    elsewhere(snippet(tmp_path) + EXPECTED + COMPARE_OPEN_CLIP, tmp_path)


def test_transformers(tiny_run, exported, drawings, tmp_path):
    """Features, and the processor's tokens and pixels."""
    exported(tiny_run, "transformers", tmp_path)
    answers(tiny_run, tmp_path)
    model = cr.Classifier.load(tiny_run).model
    noise = torch.randint(0, 256, (300, 200, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "tall.png")
    Image.fromarray(noise).resize((640, 480)).save(tmp_path / "wide.png")
    images = [*files_in(drawings)[:12], "tall.png", "wide.png"]
    texts = ["a photo of a cat.", "Hello, World! it's 1999 & naïve café   x", "日本語 text 😀", ""]
    pixels = [model.preprocess(Image.open(tmp_path / path).convert("RGB")) for path in images]
    prepared = {"prepared": torch.stack(pixels), "texts_as_tokens": model.tokenizer(texts)}
    save_file(prepared, tmp_path / "prepared.safetensors")
    compare = f"""
prepared = load_file("prepared.safetensors")
images = [Image.open(path).convert("RGB") for path in {images!r}]
got = processor(text={texts!r}, images=images, padding="max_length", return_tensors="pt")
compare("pixels", torch.as_tensor(got["pixel_values"]), prepared["prepared"], 1e-3)
for ours, theirs in zip(prepared["texts_as_tokens"], got["input_ids"], strict=True):
    end = int(ours.argmax())
    assert ours[: end + 1].tolist() == theirs[: end + 1].tolist()
"""
    load = snippet(tmp_path) + EXPECTED
    elsewhere(load + COMPARE_TRANSFORMERS + compare, tmp_path)


@pytest.mark.slow
def test_transformers_of_vit_l_14(few_drawings, exported, tmp_path):
    """Its widths, heads and patches, in a block a tower."""
    config = open_clip.get_model_config("ViT-L-14")
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
    model = cr.load_model(str(write_model(tmp_path / "model", config)))
    method = {"method": "randlora", "rank": 6}
    run = train(model, few_drawings, tmp_path / "run", spread=0.1, method=method)
    exported(run, "transformers", tmp_path)
    answers(run, tmp_path)
    elsewhere(snippet(tmp_path) + EXPECTED + COMPARE_TRANSFORMERS, tmp_path)


def test_quick_gelu_is_in_both_configurations(tiny_run, exported, tmp_path):
    theirs = exported(tiny_run, "transformers", tmp_path) / "config.json"
    for tower in ("text_config", "vision_config"):
        assert json.loads(theirs.read_text())[tower]["hidden_act"] == "quick_gelu"
    ours = exported(tiny_run, "open_clip", tmp_path, "open_clip") / "open_clip_config.json"
    assert json.loads(ours.read_text())["model_cfg"]["quick_gelu"] is True


@pytest.mark.slow  # in one process, and quick: test_peft.py
def test_peft(tiny_run, exported, tmp_path):
    exported(tiny_run, "transformers", tmp_path, "BASE", strength=0)
    exported(tiny_run, "peft", tmp_path)
    answers(tiny_run, tmp_path)
    load = snippet(tmp_path) + EXPECTED
    elsewhere(load + COMPARE_TRANSFORMERS + STEP_IN_PEFT, tmp_path)


def test_head(lite0_run, exported, tmp_path):
    """The head alone needs neither torch nor open_clip; the rest of the snippet is an encoder."""
    exported(lite0_run, "head", tmp_path)
    answers(lite0_run, tmp_path)
    compare = """
import numpy as np
from safetensors.numpy import load_file

expected = load_file("answers.safetensors")
exponentials = np.exp(logits(expected["images"]))
probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
assert probabilities.shape == (7, len(classes))
assert np.abs(probabilities - expected["probabilities"]).max() < 1e-5
print(json.dumps(classes))
"""
    head, encoder = snippet(tmp_path).split("# That encoder")
    assert "image.jpg" in encoder
    printed = elsewhere(WITHOUT_TORCH + head + compare, tmp_path, torch_too=False)
    assert json.loads(printed) == list(cr.Classifier.load(lite0_run).classes)
