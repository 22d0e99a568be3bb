"""Every export as its user meets it: loaded in a process that cannot import this package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import randomize
from PIL import Image
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora import cli, export
from clip_randlora.data import decode_image
from clip_randlora.export import hub
from clip_randlora.models import Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

# run before a check's own code: importing this package is an error, as where it is not installed
WITHOUT_PACKAGE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "clip_randlora":
            raise ImportError("this process has no clip_randlora")

sys.meta_path.insert(0, Refuse())
try:
    import clip_randlora
except ImportError:
    pass
else:
    raise SystemExit("clip_randlora could be imported")

import torch
torch.set_num_threads(1)
"""


def elsewhere(code: str, folder: Path, *, torch_too: bool = True) -> str:
    """Run code in another process, in ``folder``, where this package cannot be imported."""
    prelude = WITHOUT_PACKAGE if torch_too else WITHOUT_PACKAGE.split("import torch")[0]
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # the largest differences: pytest -rP shows them
    return done.stdout


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.*")) if path.is_file()]


# ---------------------------------------------------------------- runs to export


def some_drawings(root: Path, classes: int, training: int, test: int) -> Path:
    """Copy the first classes of the bundled drawings, and the first images of each."""
    bundled = Path(cr.__file__).parent / "bundled" / "clipart"
    for split, count in (("train", training), ("test", test)):
        for folder in sorted((bundled / split).iterdir())[:classes]:
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy(image, root / split / folder.name)
    return root


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    return some_drawings(tmp_path_factory.mktemp("drawings"), 3, training=2, test=4)


@pytest.fixture(scope="module")
def few_drawings(tmp_path_factory) -> Path:
    """As few as can be, for models of full size."""
    return some_drawings(tmp_path_factory.mktemp("few"), 2, training=1, test=1)


def train(model: Model, data: Path, out: Path, spread: float = 0, **settings) -> Path:
    """Train for a step or a few; with a spread, put random coefficients into the run after it."""
    config = cr.TrainConfig(**{"shots": 1, "steps": 1, **settings})
    run = cr.fit(model, cr.load_data(str(data)), config, out=out)
    if spread:
        randomize(run.adapter, spread=spread)
        run.adapter.save(out / "adapter.safetensors")
    return out


@pytest.fixture(scope="module")
def tiny_folder(tiny_folder, tmp_path_factory) -> Path:
    """The small model with quick GELU, which OpenAI's weights were trained with."""
    folder = tmp_path_factory.mktemp("quick") / "tiny"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def lite0_run(drawings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lite0"
    return train(cr.load_model("lite0", device="cpu"), drawings, out, shots=2, steps=10)


@pytest.fixture(scope="module")
def tiny_run(tiny_folder, drawings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    method = {"method": "randlora", "rank": 5}
    return train(cr.load_model(str(tiny_folder)), drawings, out, spread=0.1, method=method)


@pytest.mark.parametrize("method", ["vera", "nola", "clip_lora", "full", "zero_shot"])
@pytest.mark.parametrize("format", ["open_clip", "adapter"])
def test_every_method_of_the_encoders_exports(tiny_folder, drawings, method, format, tmp_path):
    """At half strength, on disk and loaded back: `export_run` compares, and here once more."""
    model = cr.load_model(str(tiny_folder))
    run = train(model, drawings, tmp_path / "run", spread=0.02, method=method)
    cr.export_run(run, format, tmp_path / "out", strength=0.5)
    classifier = cr.Classifier.load(run, strength=0.5)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if format == "open_clip":
        net = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    else:
        net = cr.load_model(str(tiny_folder)).net
        cr.load_adapter(net, tmp_path / "out")
    with torch.no_grad():
        got, expected = (each.encode_image(image) for each in (net, classifier.model.net))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def architecture_run(name: str, drawings: Path, folder: Path, **method) -> Path:
    """A run on an architecture with random weights, kept in a file, and random coefficients."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(cr.load_model(name, None, "cpu").net.state_dict(), weights)
    method = {"method": "randlora", "rank": 6, **method}
    model = cr.load_model(name, weights, "cpu")
    return train(model, drawings, folder / "run", spread=0.01, method=method)


@pytest.fixture(scope="module")
def vit_b_32_run(few_drawings, tmp_path_factory) -> Path:
    return architecture_run("ViT-B-32", few_drawings, tmp_path_factory.mktemp("vit_b_32"))


def answers(run: Path, folder: Path, strength: float = 1.0) -> None:
    """Write this package's features for some images and texts to ``answers.safetensors``."""
    classifier = cr.Classifier.load(run, strength=strength, device="cpu")
    model, size = classifier.model, classifier.model.image_size
    generator = torch.Generator().manual_seed(3)
    pixels = model.normalize(torch.rand(7, 3, size, size, generator=generator))
    texts = ["a photo of a bird.", "Two cats & a dog's bone, 1999", "x", "", "7", "a cat", "🐦"]
    tokens = model.tokenizer(texts)
    with torch.inference_mode():
        images = model.net.encode_image(pixels, normalize=True)
        texts = model.net.encode_text(tokens, normalize=True)
        logits = model.logit_scale() * images @ classifier.text.features().T
    expected = {
        "pixels": pixels,
        "images": images,
        "tokens": tokens,
        "texts": texts,
        "probabilities": logits.softmax(dim=-1),
    }
    save_file(expected, folder / "answers.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a run once for all tests, and show it to one of them as ``exported`` in its folder."""
    known = {}

    def show(run: Path, format: str, folder: Path, name: str = "exported", **options) -> Path:
        key = (run, format, *options.items())
        if key not in known:
            known[key] = tmp_path_factory.mktemp("exports") / "exported"
            assert cr.export_run(run, format, known[key], **options) == known[key]
        (folder / name).symlink_to(known[key])
        return folder / name

    return show


def snippet(folder: Path) -> str:
    """The Python in the export's README, and an image for it."""
    Image.radial_gradient("L").convert("RGB").save(folder / "image.jpg")
    (code,) = re.findall(
        r"```python\n(.*?)```", (folder / "exported" / "README.md").read_text(), re.S
    )
    return code


SLOW_LITE0, VIT_B_32 = (
    pytest.param(run, marks=pytest.mark.slow) for run in ("lite0_run", "vit_b_32_run")
)

EXPECTED = """
from safetensors.torch import load_file
expected = load_file("answers.safetensors")
"""

COMPARE = """
def compare(what, got, wanted, tolerance):
    difference = float(abs(got - wanted).max())
    assert difference < tolerance, (what, difference)
    print(f"{what} differ by {difference:.1e}")
"""

COMPARE_OPEN_CLIP = f"""{COMPARE}
with torch.inference_mode():
    images = model.encode_image(expected["pixels"], normalize=True)
    texts = model.encode_text(expected["tokens"], normalize=True)
compare("image features", images, expected["images"], 1e-5)
compare("text features", texts, expected["texts"], 1e-5)
"""

COMPARE_TRANSFORMERS = f"""{COMPARE}
model.eval()
with torch.inference_mode():
    got = model(pixel_values=expected["pixels"], input_ids=expected["tokens"])
compare("image features", got.image_embeds, expected["images"], 1e-4)
compare("text features", got.text_embeds, expected["texts"], 1e-4)
"""

STEP_IN_PEFT = """
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
model(
    pixel_values=expected["pixels"][:2], input_ids=expected["tokens"][:2]
).logits_per_image.diagonal().sum().backward()
optimizer.step()
after = model.state_dict()
changed = {name for name in before if not torch.equal(before[name], after[name])}
assert changed == {n for n in before if "randlora_lambda" in n or "randlora_gamma" in n}
assert changed
"""

COMPARE_ONNX = f"""{COMPARE}
from safetensors.numpy import load_file

expected = load_file("answers.safetensors")
for session, takes, gives in (
    (image_encoder, "pixels", "images"),
    (text_encoder, "tokens", "texts"),
    (classifier, "pixels", "probabilities"),
):
    for count in (1, 7):
        (got,) = session.run(None, {{takes: expected[takes][:count]}})
        compare(f"{{gives}}, batch {{count}},", got, expected[gives][:count], TOLERANCE)
"""

WITHOUT_TORCH = """
class RefuseTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "transformers", "open_clip"):
            raise ImportError(name)

sys.meta_path.insert(0, RefuseTorch())
"""


# ---------------------------------------------------------------- equal features elsewhere


@pytest.mark.parametrize("run", ["lite0_run", VIT_B_32])
def test_open_clip(run, request, exported, tmp_path):
    run = request.getfixturevalue(run)
    exported(run, "open_clip", tmp_path)
    answers(run, tmp_path)
    elsewhere(snippet(tmp_path) + EXPECTED + COMPARE_OPEN_CLIP, tmp_path)


@pytest.mark.parametrize("run", ["tiny_run", VIT_B_32])
def test_transformers(run, request, exported, drawings, tmp_path):
    """Features, and the processor's tokens and pixels."""
    run = request.getfixturevalue(run)
    exported(run, "transformers", tmp_path)
    answers(run, tmp_path)
    model = cr.Classifier.load(run).model
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
    run = architecture_run("ViT-L-14", few_drawings, tmp_path, blocks=2)
    out = exported(run, "transformers", tmp_path)
    answers(run, tmp_path)
    load = snippet(tmp_path) + EXPECTED
    elsewhere(load + COMPARE_TRANSFORMERS, tmp_path)
    shutil.rmtree(out.resolve())  # gigabytes


@pytest.mark.slow
def test_quick_gelu_elsewhere(few_drawings, exported, tmp_path):
    run = architecture_run("ViT-B-32-quickgelu", few_drawings, tmp_path)
    answers(run, tmp_path)
    exported(run, "transformers", tmp_path)
    elsewhere(snippet(tmp_path) + EXPECTED + COMPARE_TRANSFORMERS, tmp_path)
    (tmp_path / "exported").unlink()
    exported(run, "open_clip", tmp_path)
    elsewhere(snippet(tmp_path) + EXPECTED + COMPARE_OPEN_CLIP, tmp_path)


def test_quick_gelu_is_in_both_configurations(tiny_run, exported, tmp_path):
    theirs = exported(tiny_run, "transformers", tmp_path) / "config.json"
    for tower in ("text_config", "vision_config"):
        assert json.loads(theirs.read_text())[tower]["hidden_act"] == "quick_gelu"
    ours = exported(tiny_run, "open_clip", tmp_path, "open_clip") / "open_clip_config.json"
    assert json.loads(ours.read_text())["model_cfg"]["quick_gelu"] is True


@pytest.mark.slow  # in one process, and quick: test_peft.py
@pytest.mark.parametrize("run", ["tiny_run", "vit_b_32_run"])
def test_peft(run, request, exported, tmp_path):
    run = request.getfixturevalue(run)
    exported(run, "transformers", tmp_path, "BASE", strength=0)
    exported(run, "peft", tmp_path)
    answers(run, tmp_path)
    load = snippet(tmp_path) + EXPECTED
    elsewhere(load + COMPARE_TRANSFORMERS + STEP_IN_PEFT, tmp_path)


@pytest.mark.slow
def test_the_adapter_is_a_tenth_of_what_peft_saves(tmp_path):
    """On one block of each tower of ViT-B-32; both files grow with every further block alike."""
    from peft import PeftConfig, PeftModel, get_peft_model
    from transformers import CLIPConfig, CLIPModel

    net = cr.load_model("ViT-B-32", None, "cpu").net
    adapter = cr.attach(net, cr.RandLoRA(rank=6, blocks=1))
    adapter.save(tmp_path / "adapter.safetensors")
    cr.save_peft_adapter(adapter, tmp_path / "compact")
    loaded = PeftModel.from_pretrained(CLIPModel(CLIPConfig()), tmp_path / "compact")
    loaded.save_pretrained(tmp_path / "theirs")
    config = PeftConfig.from_pretrained(tmp_path / "compact")
    config.save_projection = False
    get_peft_model(CLIPModel(CLIPConfig()), config).save_pretrained(tmp_path / "bare")
    ours = (tmp_path / "adapter.safetensors").stat().st_size
    theirs, bare = (
        (tmp_path / name / "adapter_model.safetensors").stat().st_size
        for name in ("theirs", "bare")
    )
    shutil.rmtree(tmp_path / "theirs")
    print(f"ours {ours}, peft's {theirs} (1/{theirs / ours:.1f}), without bases {bare}")
    assert ours * 10 <= theirs
    assert ours < 1.02 * bare  # which only peft can load, with the same torch


def run_script(folder: Path, paths: list[str]) -> list[tuple[str, str]]:
    """Run the script beside the ONNX files, without this package; return (image, top-1) pairs."""
    code = (
        f"{WITHOUT_TORCH}\nimport runpy\nsys.argv = ['classify.py', *{paths!r}]\n"
        f"runpy.run_path('exported/classify.py', run_name='__main__')"
    )
    printed = elsewhere(code, folder, torch_too=False).splitlines()
    return [tuple(line.split("\t")[:2]) for line in printed]


def top1(predictions: list[dict]) -> list[str]:
    return [next(iter(answer["tuned"])) for answer in predictions]


@pytest.fixture(scope="module")
def photographs(drawings, tmp_path_factory) -> list[str]:
    """The test images, and one each of what a script may get wrong: turned, transparent, thin."""
    folder = tmp_path_factory.mktemp("photographs")
    drawing = Image.open(files_in(drawings / "test")[0]).convert("RGBA").resize((420, 301))
    image = drawing.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "transparent.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    drawing.convert("RGB").save(folder / "turned.jpg", exif=turned)
    drawing.convert("L").crop((0, 0, 420, 30)).save(folder / "thin.png")
    return [*files_in(drawings / "test"), *files_in(folder)]


@pytest.mark.parametrize("run", ["tiny_run", SLOW_LITE0, VIT_B_32])
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


def test_the_script_is_twenty_lines_and_prepares_images_as_predict_does(
    tiny_run, exported, photographs, tmp_path
):
    """Its pixels, caught on their way into the session, are those of this package."""
    script = exported(tiny_run, "onnx", tmp_path, strength=0.5) / "classify.py"
    code = script.read_text()
    assert len(code.splitlines()) <= 20
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
@pytest.mark.parametrize("run", ["tiny_run", "lite0_run", "vit_b_32_run"])
def test_onnx_in_half_precision(run, request, exported, photographs, tmp_path):
    """The same top-1 on every test image, from files of about half the size."""
    run = request.getfixturevalue(run)
    out = exported(run, "onnx", tmp_path, precision="fp16")
    answers(run, tmp_path)
    compare = COMPARE_ONNX.replace("TOLERANCE", "2e-2")
    elsewhere(WITHOUT_TORCH + snippet(tmp_path) + compare, tmp_path, torch_too=False)
    predicted = top1(cr.Classifier.load(run, device="cpu").predict(photographs))
    assert run_script(tmp_path, photographs) == list(zip(photographs, predicted, strict=True))
    vision = cr.Classifier.load(run).model.net.visual.state_dict().values()
    graph = 300_000  # bytes, without weights
    assert (out / "classifier.onnx").stat().st_size < 2.1 * sum(t.numel() for t in vision) + graph


def test_head(lite0_run, exported, tmp_path):
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
    printed = elsewhere(WITHOUT_TORCH + snippet(tmp_path) + compare, tmp_path, torch_too=False)
    assert json.loads(printed) == list(cr.Classifier.load(lite0_run).classes)


# ---------------------------------------------------------------- adapters and sums


def test_an_adapter_at_half_strength(tiny_run, tiny_folder, tmp_path):
    cr.export_run(tiny_run, "adapter", tmp_path / "half", strength=0.5)
    whole = cr.load_adapter(cr.load_model(str(tiny_folder)).net, tiny_run / "adapter.safetensors")
    half = cr.load_adapter(cr.load_model(str(tiny_folder)).net, tmp_path / "half")
    for name, delta in whole.deltas().items():
        torch.testing.assert_close(half.deltas()[name], 0.5 * delta)


def test_runs_are_added_in_weight_space(tiny_run, tiny_folder, drawings, tmp_path):
    # another seed has other bases: only the updates can be added, not the coefficients
    method = {"method": "randlora", "rank": 3, "seed": 9}
    model = cr.load_model(str(tiny_folder))
    other = train(model, drawings, tmp_path / "other", spread=0.1, method=method)

    def deltas(path: Path) -> dict[str, torch.Tensor]:
        return cr.load_adapter(cr.load_model(str(tiny_folder)).net, path).deltas()

    first, second = (deltas(run / "adapter.safetensors") for run in (tiny_run, other))
    cr.export_run(tiny_run, "adapter", tmp_path / "average", add=[other])
    cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[other], weights=[1.0, -0.5])
    for name, delta in deltas(tmp_path / "average").items():
        torch.testing.assert_close(delta, (first[name] + second[name]) / 2)
    for name, delta in deltas(tmp_path / "sum").items():
        torch.testing.assert_close(delta, first[name] - 0.5 * second[name])
    assert "1 x tiny + -0.5 x other" in (tmp_path / "sum" / "README.md").read_text()
    cr.export_run(
        tiny_run, "open_clip", tmp_path / "merged", add=[other], weights=[1, -0.5], strength=0.5
    )
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    merged = load_file(tmp_path / "merged" / "open_clip_model.safetensors")[name]
    base = load_file(tiny_folder / "open_clip_model.safetensors")[name]
    torch.testing.assert_close(merged - base, 0.5 * (first[name] - 0.5 * second[name]))
    with pytest.raises(cr.UserError, match="is for one randlora run"):
        cr.export_run(tiny_run, "peft", tmp_path / "peft", add=[other])


def test_runs_that_cannot_be_added_are_named(tiny_run, tiny_folder, drawings, lite0_run, tmp_path):
    with pytest.raises(
        cr.UserError, match=r"lite0.*trained on lite0.*and the model here is local-dir"
    ):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[lite0_run])
    method = {"method": "randlora", "rank": 5, "towers": ["vision"]}
    model = cr.load_model(str(tiny_folder))
    other = train(model, drawings, tmp_path / "other", method=method)
    with pytest.raises(cr.UserError, match=r"adapts other weights .*towers"):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[other])
    with pytest.raises(cr.UserError, match="3 for 2 adapters"):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[tiny_run], weights=[1, 2, 3])
    assert not (tmp_path / "sum").exists()


# ---------------------------------------------------------------- strength


def test_strength_0_is_the_base_model(lite0_run, tmp_path):
    cr.export_run(lite0_run, "open_clip", tmp_path / "exported", strength=0)
    merged = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    base = cr.load_model("lite0", device="cpu").net.state_dict()
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[key], tensor) for key, tensor in base.items())


def test_half_strength_answers_as_predict_does_at_half_strength(
    tiny_run, exported, drawings, tmp_path
):
    folder = exported(tiny_run, "open_clip", tmp_path, strength=0.5)
    name, paths = f"local-dir:{folder}", files_in(drawings / "test")
    net, _, preprocess = open_clip.create_model_and_transforms(name)
    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths])
    classifier = cr.Classifier.load(tiny_run, strength=0.5, device="cpu")
    tokens = open_clip.get_tokenizer(name)([f"a photo of a {c}." for c in classifier.classes])
    with torch.inference_mode():
        images, texts, scale = net.eval()(images, tokens)[:3]
    answers = (scale * images @ texts.T).softmax(dim=-1)
    for answer, predicted in zip(answers, classifier.predict(paths), strict=True):
        wanted = [predicted["tuned"][name] for name in classifier.classes]
        torch.testing.assert_close(answer, torch.tensor(wanted), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- cards


@pytest.mark.parametrize("format", list(cr.export_formats()))
def test_the_card_says_what_it_is(format, tiny_run, exported, tmp_path):
    options = {"strength": 0.5} if format == "onnx" else {}  # shared with the other tests
    card = (exported(tiny_run, format, tmp_path, **options) / "README.md").read_text()
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for said in (
        f"{metrics['zero_shot']['top1']:.1%}",
        f"{metrics['tuned']['top1']:.1%}",
        "Base model: ",
        "Licence of the base: ",
        "method.rank | 5",
        "classes: `bird`, `computer`, `dessert`.",
    ):
        assert said in card
    assert cr.loading_snippet(tiny_run, format, "exported").strip() in card
    if format != "adapter":  # whose base has to be found again
        assert str(tmp_path.parent) not in card  # it may be published: no path of this machine
    written = {path.suffix for path in (tmp_path / "exported").resolve().iterdir()}
    assert written <= {".safetensors", ".json", ".md", ".onnx", ".py"}  # no pickle


def test_the_adapters_snippet_runs(tiny_run, exported, tmp_path, monkeypatch):
    exported(tiny_run, "adapter", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(tmp_path), names)
    assert names["adapter"].strength == 1


def test_formats_are_listed_in_order():
    formats = cr.export_formats()
    assert list(formats) == ["adapter", "open_clip", "transformers", "peft", "onnx", "head"]
    assert all(sentence.endswith(".") for sentence in formats.values())


# ---------------------------------------------------------------- what is refused


def refused(monkeypatch, capsys, *arguments) -> str:
    """Run the command, which must end with status 2 and one line; return the line."""
    monkeypatch.setattr(sys, "argv", ["clip-randlora", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_bad_input_is_one_line_and_status_2(tiny_run, lite0_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_run, unfinished)
    (unfinished / "metrics.json").unlink()
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    for run, options, says in (
        (lite0_run, ["--format", "transformers", "--out", out], "has no place for visual.trunk"),
        (lite0_run, ["--format", "peft", "--out", out], "use open_clip or onnx for lite0"),
        (tiny_run, ["--format", "gguf", "--out", out], "--format gguf: there is adapter, open_cl"),
        (tiny_run, ["--format", "head", "--out", out, "--strength", "2"], "--strength 2"),
        (tiny_run, ["--format", "head", "--out", out, "--precision", "fp16"], "--precision fp16"),
        (tiny_run, ["--format", "head", "--out", out, "--weights", "1,2"], "one run only"),
        (tiny_run, ["--format", "head", "--out", out, "--weights", "a"], "--weights a"),
        (tiny_run, ["--format", "head", "--out", tmp_path / "taken"], "exists; choose another"),
        (tiny_run, ["--format", "head", "--out", tmp_path / "file" / "x"], "cannot be written"),
        (unfinished, ["--format", "head", "--out", out], "the run is not finished"),
        (tmp_path / "no", ["--format", "head", "--out", out], "not a run folder"),
    ):
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def padding_run(tiny_folder, drawings, tmp_path_factory) -> Path:
    """A run on a model that pads its images, which only open_clip can do."""
    folder = tmp_path_factory.mktemp("padding") / "padding"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"resize_mode": "longest"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return train(cr.load_model(str(folder)), drawings, folder.parent / "run")


FORMATS = list(cr.export_formats())


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_refuses_in_one_line(format, tiny_run, tmp_path, monkeypatch, capsys):
    """Incomplete and damaged runs, and paths that are taken or cannot be written."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("metrics.json", "adapter.safetensors", "config.yaml"):
        shutil.copytree(tiny_run, tmp_path / f"without {name}")
        (tmp_path / f"without {name}" / name).unlink()
        shutil.copytree(tiny_run, tmp_path / f"half a {name}")
        half = (tiny_run / name).read_bytes()
        (tmp_path / f"half a {name}" / name).write_bytes(half[: len(half) // 2])
    before = sorted(tmp_path.rglob("*"))
    for run, out, says in (
        (tmp_path / "without metrics.json", "out", "the run is not finished"),
        (tmp_path / "without adapter.safetensors", "out", "the run is not finished"),
        (tmp_path / "without config.yaml", "out", "not a run folder"),
        (tmp_path / "half a metrics.json", "out", "damaged, not the metrics"),
        (tmp_path / "half a adapter.safetensors", "out", "not a readable adapter file"),
        (tmp_path / "half a config.yaml", "out", "half a config.yaml: damaged"),
        (tmp_path / "no", "out", "not a run folder"),
        (tiny_run, "taken", "exists; choose another"),
        (tiny_run, "file", "exists; choose another"),
        (tiny_run, "link", "exists; choose another"),
        (tiny_run, "file/x", "cannot be written"),
        (tiny_run, "x" * 300, "cannot be written"),
        (tiny_run, Path("/proc/out"), "--out /proc/out: cannot be"),  # even root cannot write there
    ):
        options = ["--format", format, "--out", tmp_path / out]
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_that_does_not_fit_is_one_line(
    format, lite0_run, padding_run, tmp_path, monkeypatch, capsys
):
    """adapter, open_clip and head fit every model, and are written for these too."""
    refusals = {
        "transformers": [(lite0_run, "has no place for visual.trunk"), (padding_run, "pads")],
        "peft": [(lite0_run, "has no place for visual.trunk"), (padding_run, "pads")],
        "onnx": [(padding_run, "pads")],
    }
    for run, says in refusals.get(format, []):
        options = ["--format", format, "--out", tmp_path / "out"]
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert not list(tmp_path.iterdir())
    if format not in refusals:
        assert cr.export_run(padding_run, format, tmp_path / "out").is_dir()


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_leaves_what_does_not_load_back(format, tiny_run, tmp_path, monkeypatch):
    """Every file of weights is cut in half before the check."""
    writer = export._load(format)
    written = writer.write

    def write_half(source, folder, precision):
        written(source, folder, precision)
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.onnx")]:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    monkeypatch.setattr(writer, "write", write_half)
    with pytest.raises(cr.UserError) as told:
        cr.export_run(tiny_run, format, tmp_path / "deep" / "exported")
    assert len(str(told.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_if_the_check_fails(tiny_run, tmp_path, monkeypatch):
    from clip_randlora.export import open_clip_model

    written = open_clip_model.write

    def write_damaged(source, folder, precision):
        written(source, folder, precision)
        path = folder / "open_clip_model.safetensors"
        weights = load_file(path)
        weights["visual.proj"] *= -1
        save_file(weights, path)

    monkeypatch.setattr(open_clip_model, "write", write_damaged)
    with pytest.raises(cr.UserError, match="nothing written: image features of the export differ"):
        cr.export_run(tiny_run, "open_clip", tmp_path / "deep" / "exported")
    assert not list(tmp_path.iterdir())


def test_a_library_that_fails_is_told_in_one_line(tiny_run, tmp_path, monkeypatch):
    from clip_randlora.export import head

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head, "write", full)
    with pytest.raises(cr.UserError, match=r"nothing written \(No space left on device\); choose"):
        cr.export_run(tiny_run, "head", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_a_run_on_random_weights_is_exported(tiny_folder, drawings, tmp_path):
    model = cr.load_model(str(tiny_folder), pretrained=None)
    run = train(model, drawings, tmp_path / "run", spread=0.1)
    cr.export_run(run, "open_clip", tmp_path / "exported", strength=0)
    merged = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    base = cr.load_model(model.name, model.pretrained).net.state_dict()
    assert all(torch.equal(merged[key], tensor) for key, tensor in base.items())
    assert "none; its weights are random" in (tmp_path / "exported" / "README.md").read_text()


# ---------------------------------------------------------------- the hub


def test_push_to_without_a_token_says_what_is_needed(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    options = ["--format", "head", "--out", tmp_path / "exported", "--push-to", "someone/birds"]
    line = refused(monkeypatch, capsys, "export", tiny_run, *options)
    assert "--push-to: needs a Hugging Face token that may write; run `hf auth login`" in line
    assert not (tmp_path / "exported").exists()


def test_push_uploads_the_folder(tiny_run, tmp_path, monkeypatch):
    """The hub's client is the boundary: what it is asked to do is recorded, nothing is sent."""
    from huggingface_hub import HfApi

    asked = []
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **options: asked.append(name) or f"hub/{name}"
    )
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **options: asked.append(options) or "done"
    )
    folder = cr.export_run(tiny_run, "head", tmp_path / "exported")
    assert export.push(folder, "someone/birds") == "hub/someone/birds"
    assert asked == ["someone/birds", {"repo_id": "someone/birds", "folder_path": folder}]
    assert (folder / "README.md").exists()


def test_push_reports_what_the_hub_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(cr.UserError, match="--push-to not a name"):
        export.push(tmp_path, "not a name")
