"""Every method in every format: right there at half strength, or refused in one line."""

import open_clip
import pytest
import torch
from helpers.cases import LARGE
from helpers.exports import refused, train
from safetensors.torch import load_file

import clip_randlora as cr

onnxruntime = pytest.importorskip("onnxruntime")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

METHODS = [
    "randlora", "lora", "clip_lora", "vera", "nola", "dora", "kradapter", "norm_tuning", "full",
    "zero_shot",
]  # fmt: skip
HEADS = ["linear_probe", "anchored_head", "gda"]  # one format holds the linear ones
STRENGTH = 0.5


@pytest.fixture(scope="module")
def run_of(quick_folder, drawings, tmp_path_factory):
    """Train the small model once for each method, for a step, and spread its coefficients."""
    known = {}

    def run(method: str):
        if method not in known:
            out = tmp_path_factory.mktemp("methods") / method
            spread = 0 if method in (*HEADS, "tip_adapter_f") else 0.1
            model = cr.load_model(str(quick_folder))
            known[method] = train(model, drawings, out, spread=spread, method=method)
        return known[method]

    return run


def inputs(model) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, model.tokenizer(["a photo of a bird.", "two cats"])


def features_of_open_clip(net, model) -> list[torch.Tensor]:
    images, tokens = inputs(model)
    with torch.no_grad():
        return [net.encode_image(images, normalize=True), net.encode_text(tokens, normalize=True)]


def features_of_transformers(net, model) -> list[torch.Tensor]:
    images, tokens = inputs(model)
    with torch.no_grad():
        output = net.eval()(pixel_values=images, input_ids=tokens)
    return [output.image_embeds, output.text_embeds]


def answers_of_a_page(folder, model) -> list[torch.Tensor]:
    """Probabilities (N, C) before and after, of what the page runs."""
    pixels = model.normalize(inputs(model)[0]).numpy()
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    return [torch.from_numpy(p) for p in session.run(["before", "after"], {"pixels": pixels})]


def features_of(format: str, folder, model, base) -> list[torch.Tensor]:
    """Features of fixed images and texts (N, E) by what a format's own library loads."""
    if format == "open_clip":
        return features_of_open_clip(open_clip.create_model(f"local-dir:{folder}").eval(), model)
    if format == "adapter":
        fresh = cr.load_model(model.name)
        cr.load_adapter(fresh.net, folder)
        return features_of_open_clip(fresh.net, model)
    if format == "transformers":
        return features_of_transformers(transformers.CLIPModel.from_pretrained(folder), model)
    if format == "peft":
        net = transformers.CLIPModel.from_pretrained(base)
        return features_of_transformers(peft.PeftModel.from_pretrained(net, folder), model)
    names = ("image_encoder", "text_encoder")
    sessions = [onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names]
    return [
        torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given.numpy()})[0])
        for session, given in zip(sessions, inputs(model), strict=True)
    ]


# In `make test`, one method of each kind of update: other libraries are slow to load and to write.
# ONNX takes twenty seconds each and traces weights that are merged by then, so that the others of a
# kind add little.
QUICK = ("randlora", "lora", "zero_shot")
TRACED = ("onnx", "web")
FITS = [
    pytest.param(
        method,
        format,
        marks=[pytest.mark.slow] if format in TRACED or method not in QUICK else [],
    )
    for method in METHODS
    for format in cr.export_formats()
    if format != "peft" or method == "randlora"
    if format not in TRACED or method in QUICK or LARGE
]
REFUSED = [
    *((method, "peft", "is for one randlora run, and this is a") for method in METHODS[1:]),
    *(
        ("linear_probe", format, "leaves both encoders as they are; use head")
        for format in cr.export_formats()
        if format not in ("head", "web")
    ),
    ("tip_adapter_f", "head", "is not linear"),
]


@pytest.mark.parametrize(("method", "format"), FITS)
def test_a_method_is_right_in_a_format(method, format, run_of, exported, tmp_path):
    """`export_run` compares what it wrote with this package's answers; here once more."""
    run = run_of(method)
    out = cr.export_run(run, format, tmp_path / "out", strength=STRENGTH)
    classifier = cr.Classifier.load(run, strength=STRENGTH, device="cpu")
    if format == "head":
        got = [load_file(out / "class_embeddings.safetensors")["class_embeddings"]]
        with torch.no_grad():
            expected = [classifier.text.features()]
    elif format == "web":
        got = answers_of_a_page(out, classifier.model)
        images = inputs(classifier.model)[0]
        expected = classifier.side_by_side().probabilities(images)
    else:
        base = format == "peft" and exported(run, "transformers", tmp_path, "BASE", strength=0)
        got = features_of(format, out, classifier.model, base)
        expected = features_of_open_clip(classifier.model.net, classifier.model)
    tolerance = 1e-5 if format in ("open_clip", "adapter", "head") else 1e-4
    for one, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(one, wanted, atol=tolerance, rtol=0)
    if format == "web":  # which has the answers before, too
        return
    classifier.adapter.strength = 0
    before = features_of_open_clip(classifier.model.net, classifier.model)
    if format != "head":
        changed = any((a - b).abs().max() > 1e-3 for a, b in zip(before, got, strict=True))
        assert changed == (method != "zero_shot")


@pytest.mark.parametrize(("method", "format", "says"), REFUSED)
def test_a_method_that_a_format_cannot_hold_is_one_line(
    method, format, says, run_of, tmp_path, monkeypatch, capsys
):
    options = ["--format", format, "--out", tmp_path / "out"]
    assert says in refused(monkeypatch, capsys, "export", run_of(method), *options)
    assert not list(tmp_path.iterdir())


def test_all_methods_and_formats_are_in_this_table():
    assert {*METHODS, *HEADS, "tip_adapter_f"} == set(cr.METHODS)
    refused = {case[:2] for case in REFUSED if case[0] in METHODS}
    rare = {
        (method, format)
        for method in METHODS
        for format in TRACED
        if method not in QUICK and not LARGE
    }
    cells = {case.values for case in FITS} | refused | rare
    assert cells == {(method, format) for method in METHODS for format in cr.export_formats()}
    assert len(FITS) + len(refused) + len(rare) == len(METHODS) * len(cr.export_formats())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gda", "tip_adapter_f"])
def test_a_head_is_in_a_web_page(method, run_of, tmp_path):
    """With its own logits, at half strength too."""
    run = run_of(method)
    out = cr.export_run(run, "web", tmp_path / "out", strength=STRENGTH)
    classifier = cr.Classifier.load(run, strength=STRENGTH, device="cpu")
    got = answers_of_a_page(out, classifier.model)
    expected = classifier.side_by_side().probabilities(inputs(classifier.model)[0])
    for one, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", HEADS)
def test_a_linear_head_is_exported_as_class_embeddings(method, run_of, tmp_path):
    """The file's logits are the classifier's own, at half strength too."""
    run = run_of(method)
    out = cr.export_run(run, "head", tmp_path / "out", strength=STRENGTH)
    tensors = load_file(out / "class_embeddings.safetensors")
    assert ("bias" in tensors) == (method != "anchored_head")
    classifier = cr.Classifier.load(run, strength=STRENGTH, device="cpu")
    size = classifier.model.image_size
    images = torch.randint(
        0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        features = classifier.model.encode_image(images)
        _, expected = classifier.side_by_side().probabilities(images)
    logits = tensors["logit_scale"] * features @ tensors["class_embeddings"].T
    found = (logits + tensors.get("bias", 0)).softmax(dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
