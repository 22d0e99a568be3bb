"""Small models of real architectures, with random weights, in open_clip's own folder format."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

# the tests check the CPU's numbers, on machines with a GPU too; but for those marked cuda
ON_GPU = os.environ.get("CLIP_RANDLORA_TEST_CUDA") == "1"
if not ON_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:  # workers, and what they start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

import clip_randlora as cr
from clip_randlora.models import Model, load_model

pytest_plugins = ["apps", "export_runs"]


def pytest_collection_modifyitems(config, items) -> None:
    """Leave the tests of GPUs out, unless they were asked for."""
    if ON_GPU:
        return
    left_out = [item for item in items if item.get_closest_marker("cuda")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="session")
def coarse_figures():
    """Draw a run's figures small and without a layout, which takes a quarter of the time."""
    from clip_randlora import figures

    def save(figure, path) -> None:
        figures.FigureCanvasAgg(figure)
        figure.set_layout_engine("none")
        with figures.written_whole(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(temporary, format="png", dpi=30)

    fine = figures.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        yield fine


@pytest.fixture
def fine_figures(coarse_figures, monkeypatch) -> None:
    """Draw figures as a user gets them."""
    from clip_randlora import figures

    monkeypatch.setattr(figures, "save", coarse_figures)


COLORS = {"blue": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 3,
    },
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A ViT CLIP of 2.6 M weights as a local folder, random but always the same."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny0", TINY)


def write_model(folder: Path, config: dict) -> Path:
    """Write a model with random weights, always the same, in open_clip's folder format."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    torch.manual_seed(0)
    save_file(
        load_model(str(folder), pretrained=None).net.state_dict(),
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture
def tiny(tiny_folder) -> Model:
    return load_model(str(tiny_folder))


LARGE = os.environ.get("CLIP_RANDLORA_LARGE") == "1"
"""Whether load tests run at the size that docs/reliability.md states, and not small as in CI."""


def slow_cases(cases, *slow):
    """Mark some cases of a parametrised test as slow: one of the others stays in `make test`."""
    return [pytest.param(c, marks=pytest.mark.slow) if c in slow else c for c in cases]


def randomize(adapter, seed: int = 0, spread: float = 0.02) -> None:
    """Give an adapter random coefficients, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, spread, generator=generator))


def write_colors(
    root: Path, counts: Mapping[str, int], colors: Mapping[str, tuple[int, int, int]] = COLORS
) -> Path:
    """Write classes that are easy to learn, noisy images of one colour each; ``counts`` by split.

    A split "" is the root itself.
    """
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name, color in colors.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(color) + random.normal(0, 40, (40, 48, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def straight_and_resumed(model_folder: Path, data, config, out: Path) -> tuple[cr.Run, cr.Run]:
    """Train in one go, and again with a Ctrl-C after step 3 and a resumption."""

    def stop(step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    straight = cr.fit(cr.load_model(str(model_folder)), data, config)
    model = cr.load_model(str(model_folder))
    with pytest.raises(cr.Interrupted):
        cr.fit(model, data, config, out=out, on_step=stop)
    return straight, cr.fit(model, data, config, out=out, resume=True)
