"""Fixtures for the tests of exports: runs, made once, and their exports, written once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from helpers.difficult_images import write_difficult_images
from helpers.exports import architecture_run, files_in, some_drawings, train


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> Path:
    return some_drawings(tmp_path_factory.mktemp("drawings"), 3, training=2, test=4)


@pytest.fixture(scope="session")
def few_drawings(tmp_path_factory) -> Path:
    """As few as can be, for models of full size."""
    return some_drawings(tmp_path_factory.mktemp("few"), 2, training=1, test=1)


@pytest.fixture(scope="session")
def quick_folder(tiny_folder, tmp_path_factory) -> Path:
    """The small model with quick GELU, which OpenAI's weights were trained with.

    Its random weights are scaled so that different images, and turned ones, get other answers.
    """
    folder = tmp_path_factory.mktemp("quick") / "tiny"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "open_clip_model.safetensors")
    for name in ("visual.conv1.weight", "visual.positional_embedding"):
        weights[name] *= 30
    weights["logit_scale"] = torch.tensor(30.0).log()
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def lite0_run(drawings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lite0"
    return train(cr.load_model("lite0", device="cpu"), drawings, out, shots=2, steps=10)


@pytest.fixture(scope="session")
def tiny_run(quick_folder, drawings, tmp_path_factory) -> Path:
    """With several prompts for each class, four for one of them."""
    settings = {
        "method": {"method": "randlora", "rank": 5},
        "templates": ["a photo of a {}.", "art of a {}."],
        "prompts": {"bird": ["bird", "owl"]},
    }
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return train(cr.load_model(str(quick_folder)), drawings, out, spread=0.3, **settings)


@pytest.fixture(scope="session")
def vit_b_32_run(few_drawings, tmp_path_factory) -> Path:
    return architecture_run("ViT-B-32", few_drawings, tmp_path_factory.mktemp("vit_b_32"))


@pytest.fixture(scope="session")
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

    yield show
    for folder in known.values():
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes


@pytest.fixture(scope="session")
def difficult_images(drawings, tmp_path_factory) -> dict[str, list[str]]:
    """Images that are easily opened wrongly, by what is difficult about them."""
    drawing = Image.open(files_in(drawings / "test")[0])
    return write_difficult_images(tmp_path_factory.mktemp("difficult"), drawing)


@pytest.fixture(scope="session")
def photographs(drawings, difficult_images) -> list[str]:
    """The test images, and those that a script may get wrong."""
    return [
        *files_in(drawings / "test"),
        *(path for of in difficult_images.values() for path in of),
    ]
