"""Exports at strength 0 are the base model, and at half strength what predict answers there."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import forks
from helpers.cases import LARGE
from helpers.exports import (
    COMPARE,
    COMPARE_ONNX,
    COMPARE_OPEN_CLIP,
    COMPARE_TRANSFORMERS,
    EXPECTED,
    WITHOUT_TORCH,
    elsewhere,
    files_in,
    snippet,
)
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import decode_image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

# each leaves the classifier's answers for expected["pixels"] in `got`
ANSWER_OPEN_CLIP = """
with torch.inference_mode():
    images = model.encode_image(expected["pixels"], normalize=True)
    got = (model.logit_scale.exp() * images @ classes.T).softmax(dim=-1)
"""
ANSWER_TRANSFORMERS = """
with torch.inference_mode():
    images = model(pixel_values=expected["pixels"], input_ids=expected["tokens"]).image_embeds
    factor = globals().get("scale", model.logit_scale.exp())  # peft's has a file of its own
    got = (factor * images @ classes.T).softmax(dim=-1)
"""
ANSWER_ONNX = """
(got,) = classifier.run(None, {"pixels": expected["pixels"]})
"""
ANSWER_HEAD = """
with torch.inference_mode():
    images = model.encode_image(expected["pixels"], normalize=True)
got = torch.from_numpy(logits(images.numpy())).softmax(dim=-1)
"""
COMPARE_ANSWERS = """
compare("probabilities", got, expected["probabilities"], 1e-4)
"""
# a head has the features of its classes alone
COMPARE_HEAD = f"""{COMPARE}
class_features = torch.from_numpy(embeddings)
compare("class features", class_features, expected["class_features"], 1e-5)
"""
PROGRAMS = {
    "open_clip": EXPECTED + COMPARE_OPEN_CLIP + ANSWER_OPEN_CLIP,
    "transformers": EXPECTED + COMPARE_TRANSFORMERS + ANSWER_TRANSFORMERS,
    "peft": EXPECTED + COMPARE_TRANSFORMERS + ANSWER_TRANSFORMERS,
    "onnx": COMPARE_ONNX.replace("TOLERANCE", "1e-4") + ANSWER_ONNX,
    "head": EXPECTED + COMPARE_HEAD + ANSWER_HEAD,
}

# a web page answers in a browser: test_export_web.py
FORMATS = [format for format in cr.export_formats() if format != "web"]
FITTING = [
    *(("tiny_run", format) for format in FORMATS),
    *(("lite0_run", format) for format in ("adapter", "open_clip", "onnx", "head")),
]
VIT_B_32 = [
    pytest.param("vit_b_32_run", format, marks=pytest.mark.slow)
    for format in (FORMATS if LARGE else ("transformers",))
]
QUICK = [("tiny_run", format) for format in ("adapter", "open_clip", "head")]


CELLS = [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in FITTING]


@cache
def predicted(run: Path, strength: float, *paths: str) -> list[dict]:
    """What the command prints, in a process of its own."""
    options = ["--strength", strength, "--device", "cpu", "--json"]
    done = forks.run_command("predict", run, *paths, *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["image"] for row in rows] == list(paths)
    return rows


def column(rows: list[dict], which: str, classes: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[row[which][name] for name in classes] for row in rows])


def write_answers(
    folder: Path, model: cr.Model, paths: list[str], task: cr.Task, wanted: torch.Tensor
) -> None:
    """Write inputs, a model's features for them, and the wanted probabilities (N, C)."""
    pixels = torch.stack([model.preprocess(decode_image(path)) for path in paths])
    prompts = make_prompts(task.classes, task.templates, task.prompts)
    tokens = model.tokenizer([prompt for of_class in prompts for prompt in of_class])
    with torch.inference_mode():
        classes = TextClassifier(model, task.classes, prompts).features()
        images = model.net.encode_image(pixels, normalize=True)
        texts = model.net.encode_text(tokens, normalize=True)
    expected = {
        "pixels": pixels,
        "images": images,
        "tokens": tokens,
        "texts": texts,
        "class_features": classes,
        "probabilities": wanted,
    }
    save_file(expected, folder / "answers.safetensors")


def check(
    run: Path, format: str, strength: float, exported, folder: Path, tuned: torch.Tensor, paths
) -> None:
    """Let the export answer, where this package is missing unless the export is for it."""
    out = exported(run, format, folder, strength=strength)
    if format == "adapter":
        classifier = cr.Classifier.load(out / "adapter.safetensors", device="cpu")
        got = column(classifier.predict(paths), "tuned", classifier.classes)
        torch.testing.assert_close(got, tuned, rtol=0, atol=1e-5)
        return
    if format == "peft":
        exported(run, "transformers", folder, "BASE", strength=0)
    if format == "head":
        exported(run, "open_clip", folder, "ENCODER", strength=strength)
    without = WITHOUT_TORCH if format == "onnx" else ""
    program = without + snippet(folder) + PROGRAMS[format] + COMPARE_ANSWERS
    elsewhere(program, folder, torch_too=not without)


@pytest.mark.parametrize(
    ("run", "format"), [cell for cell in CELLS if LARGE or cell.values != ("lite0_run", "onnx")]
)
def test_strength_0_is_the_base_model_in_every_format(
    run, format, request, exported, drawings, tmp_path
):
    """Features are those of the base as loaded anew, answers are predict's zero-shot ones."""
    run, paths = request.getfixturevalue(run), files_in(drawings / "test")[:7]
    task = cr.read_task(run)
    base = cr.load_model(task.model, task.pretrained, "cpu")
    rows = predicted(run, 0, *paths)
    zero_shot = column(rows, "zero_shot", task.classes)
    assert torch.equal(column(rows, "tuned", task.classes), zero_shot)
    write_answers(tmp_path, base, paths, task, zero_shot)
    check(run, format, 0, exported, tmp_path, zero_shot, paths)
    out, weights = tmp_path / "exported", base.net.state_dict()
    if format == "adapter":
        deltas = cr.load_adapter(base.net, out).deltas()
        assert deltas and not any(delta.any() for delta in deltas.values())
    elif format == "peft":
        assert json.loads((out / "adapter_config.json").read_text())["randlora_alpha"] == 0
    elif format in ("open_clip", "transformers"):
        named = to_transformers(weights) if format == "transformers" else weights
        (file,) = out.glob("*.safetensors")
        written = load_file(file)
        assert written.keys() == named.keys()
        # the logit scale has the temperature of zero-shot
        moved = {key for key, tensor in named.items() if not torch.equal(written[key], tensor)}
        assert moved <= {"logit_scale"}


@pytest.mark.parametrize(("run", "format"), [*CELLS, *VIT_B_32])
def test_half_strength_is_predict_at_half_strength_in_every_format(
    run, format, request, exported, drawings, tmp_path
):
    """Answers are the numbers that the command prints with ``--strength 0.5``."""
    run, paths = request.getfixturevalue(run), files_in(drawings / "test")[:7]
    classifier = cr.Classifier.load(run, strength=0.5, device="cpu")
    rows = predicted(run, 0.5, *paths)
    tuned, zero_shot = (column(rows, key, classifier.classes) for key in ("tuned", "zero_shot"))
    moved = float((tuned - zero_shot).abs().max())
    print(f"probabilities at half strength are up to {moved:.2f} from zero-shot")
    assert moved > 1e-2  # an export may be off by a hundredth of that
    write_answers(tmp_path, classifier.model, paths, cr.read_task(run), tuned)
    check(run, format, 0.5, exported, tmp_path, tuned, paths)


def test_strength_0_is_the_base_model(lite0_run, tmp_path):
    cr.export_run(lite0_run, "open_clip", tmp_path / "exported", strength=0)
    merged = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    base = cr.load_model("lite0", device="cpu").net.state_dict()
    assert merged.keys() == base.keys()
    moved = {key for key, tensor in base.items() if not torch.equal(merged[key], tensor)}
    assert moved <= {"logit_scale"}  # which has the temperature of zero-shot
