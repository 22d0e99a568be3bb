"""What the tests of exports share: programs that run where this package is missing, and answers."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clip_randlora as cr
from clip_randlora import cli
from clip_randlora.clip.models import Model
from clip_randlora.runs.confidence_file import read_confidence, write_confidence
from helpers import forks
from helpers.models import randomize

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
LIBRARIES = "import open_clip, transformers\nfrom transformers import CLIPModel, CLIPProcessor\n"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@cache
def server_of_libraries() -> forks.ForkServer:
    """Forks that cannot import this package, and have imported what loads its exports."""
    return forks.ForkServer(WITHOUT_PACKAGE + LIBRARIES, **OFFLINE)


def elsewhere(code: str, folder: Path, *, torch_too: bool = True) -> str:
    """Run code in another process, in ``folder``, where this package cannot be imported."""
    if torch_too:
        done = server_of_libraries().run("import sys, torch\n" + code, folder=folder)
    else:
        prelude = WITHOUT_PACKAGE.split("import torch")[0]
        done = subprocess.run(
            [sys.executable, "-c", prelude + code],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **OFFLINE},
        )
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # the largest differences: pytest -rP shows them
    return done.stdout


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.*")) if path.is_file()]


def some_drawings(root: Path, classes: int, training: int, test: int) -> Path:
    """Copy the first classes of the bundled drawings, and the first images of each."""
    bundled = Path(cr.__file__).parent / "bundled" / "clipart"
    for split, count in (("train", training), ("test", test)):
        for folder in sorted((bundled / split).iterdir())[:classes]:
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy(image, root / split / folder.name)
    return root


def train(model: Model, data: Path | str, out: Path, spread: float = 0, **settings) -> Path:
    """Train for a step or a few; with a spread, put random coefficients into the run after it."""
    config = cr.TrainConfig(**{"shots": 1, "steps": 1, **settings})
    run = cr.fit(model, cr.load_data(str(data)), config, out=out)
    if spread:
        randomize(run.adapter, spread=spread)
        run.adapter.save(out / "adapter.safetensors")
        # those of a random network are so high that images which are opened wrongly would not show
        temperatures = {"zero_shot": 1.25, "tuned": 0.8}
        write_confidence(out, read_confidence(out).model_copy(update=temperatures))
    return out


def architecture_run(name: str, drawings: Path, folder: Path, **method) -> Path:
    """A run on an architecture with random weights, kept in a file, and random coefficients."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(cr.load_model(name, None, "cpu").net.state_dict(), weights)
    method = {"method": "randlora", "rank": 6, **method}
    model = cr.load_model(name, weights, "cpu")
    return train(model, drawings, folder / "run", spread=0.1, method=method)


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
        scale = model.logit_scale() / classifier.confidence.temperature_at(strength)
        logits = scale * images @ classifier.text.features().T
    expected = {
        "pixels": pixels,
        "images": images,
        "tokens": tokens,
        "texts": texts,
        "probabilities": logits.softmax(dim=-1),
    }
    save_file(expected, folder / "answers.safetensors")


def snippet(folder: Path) -> str:
    """The Python in the export's README, and an image for it."""
    Image.radial_gradient("L").convert("RGB").save(folder / "image.jpg")
    (code,) = re.findall(
        r"```python\n(.*?)```", (folder / "exported" / "README.md").read_text(), re.S
    )
    return code


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


def refused(monkeypatch, capsys, *arguments) -> str:
    """Run the command, which must end with status 2 and one line; return the line."""
    # a slow machine would have lines of progress before it
    monkeypatch.setattr("clip_randlora.cli.progress_bars._SECONDS_UNSEEN", 1e9)
    monkeypatch.setattr(sys, "argv", ["clip-randlora", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


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
