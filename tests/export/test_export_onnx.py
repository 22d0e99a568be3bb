"""Encoders and classifier in ONNX Runtime, and the script beside them."""

import json
import sys

import pytest
import torch
from helpers.cases import LARGE
from helpers.exports import (
    COMPARE_ONNX,
    SLOW_LITE0,
    VIT_B_32,
    WITHOUT_TORCH,
    answers,
    elsewhere,
    run_script,
    snippet,
    top1,
    train,
)

import clip_randlora as cr
from clip_randlora.data import decode_image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


@pytest.mark.parametrize("run", ["tiny_run", SLOW_LITE0, *([VIT_B_32] if LARGE else [])])
def test_onnx_at_half_strength(run, request, exported, photographs, tmp_path):
    """Features and probabilities in batches of 1 and 7; the script answers as predict does."""
    run = request.getfixturevalue(run)
    out = exported(run, "onnx", tmp_path, strength=0.5)
    answers(run, tmp_path, strength=0.5)
    compare = COMPARE_ONNX.replace("TOLERANCE", "1e-4")
    elsewhere(WITHOUT_TORCH + snippet(tmp_path) + compare, tmp_path, torch_too=False)
    classifier = cr.Classifier.load(run, strength=0.5, device="cpu")
    predicted = top1(classifier.predict(photographs))
    assert run_script(tmp_path, photographs) == list(zip(photographs, predicted, strict=True))
    facts = onnx.load(out / "classifier.onnx").metadata_props
    facts = {prop.key: json.loads(prop.value) for prop in facts}
    model = classifier.model
    assert facts["classes"] == list(classifier.classes)
    assert facts["image_size"] == model.image_size
    assert facts["mean"] == list(model.net.visual.preprocess_cfg["mean"])
    assert (facts["strength"], facts["precision"]) == (0.5, "fp32")


def test_the_script_is_a_page_and_prepares_images_as_predict_does(
    tiny_run, exported, photographs, tmp_path
):
    """Its pixels, caught on their way into the session, are those of this package."""
    script = exported(tiny_run, "onnx", tmp_path, strength=0.5) / "classify.py"
    code = script.read_text()
    assert len(code.splitlines()) <= 40
    code = code.replace("session.run", "caught.append(pixels) or session.run")
    assert code.count("caught") == 1
    names = {"caught": [], "__file__": str(script)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["classify.py", *photographs])
        exec(code, names)
    model = cr.Classifier.load(tiny_run, device="cpu").model
    for path, pixels in zip(photographs, names["caught"], strict=True):
        ours = model.preprocess(decode_image(path))
        torch.testing.assert_close(torch.from_numpy(pixels[0]).float(), ours, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["tiny_run", "lite0_run", *(["vit_b_32_run"] if LARGE else [])])
def test_onnx_in_half_precision(run, request, exported, photographs, tmp_path):
    """The same top-1 on every test image, from files of about half the size."""
    run = request.getfixturevalue(run)
    out = exported(run, "onnx", tmp_path, precision="fp16")
    answers(run, tmp_path)
    compare = COMPARE_ONNX.replace("TOLERANCE", "2.5e-2")
    elsewhere(WITHOUT_TORCH + snippet(tmp_path) + compare, tmp_path, torch_too=False)
    predicted = top1(cr.Classifier.load(run, device="cpu").predict(photographs))
    assert run_script(tmp_path, photographs) == list(zip(photographs, predicted, strict=True))
    vision = cr.Classifier.load(run).model.net.visual.state_dict().values()
    graph = 300_000  # bytes, without weights
    assert (out / "classifier.onnx").stat().st_size < 2.1 * sum(t.numel() for t in vision) + graph


@pytest.mark.slow
@pytest.mark.parametrize("data", ["clipart", *(["digits"] if LARGE else [])])
def test_half_precision_on_every_bundled_test_image(data, exported, tmp_path):
    """fp16 gives the class that `predict` gives, but for ties of 0.002 of probability (digits)."""
    run = train(cr.load_model("lite0", device="cpu"), data, tmp_path / "run", shots=4, steps=20)
    items = cr.load_data(data).test.items[:: 1 if LARGE or data == "clipart" else 4]
    paths = [str(tmp_path / f"{index}.png") for index in range(len(items))]
    for item, path in zip(items, paths, strict=True):
        item.open().save(path)
    exported(run, "onnx", tmp_path, precision="fp16")
    rows = cr.Classifier.load(run, device="cpu").predict(paths)
    predicted = top1(rows)
    assert len(set(predicted)) > 1
    answered = [name for _, name in run_script(tmp_path, paths)]
    leads = [
        row["tuned"][expected] - row["tuned"][name]
        for row, expected, name in zip(rows, predicted, answered, strict=True)
    ]
    other = [lead for lead in leads if lead > 0]
    print(
        f"{len(paths)} images, {len(set(predicted))} classes, {len(other)} answered otherwise, by "
        f"{max(other, default=0):.4f} of probability at most"
    )
    if data == "clipart":
        assert not other
    else:  # no 16 bits tell classes apart that are as near as this
        assert len(other) <= 3 and max(other, default=0) < 0.002
