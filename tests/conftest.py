"""Small models of real architectures, with random weights, in open_clip's own folder format."""

import os
from pathlib import Path

from helpers.models import TINY, write_model

# the tests check the CPU's numbers, on machines with a GPU too; but for those marked cuda
ON_GPU = os.environ.get("CLIP_RANDLORA_TEST_CUDA") == "1"
if not ON_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:  # workers, and what they start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from clip_randlora.clip.models import Model, load_model

pytest_plugins = ["helpers.chromium", "helpers.clusters", "helpers.export_runs", "helpers.hub"]


def pytest_collection_modifyitems(config, items) -> None:
    """Leave the tests of GPUs out, unless they were asked for."""
    if ON_GPU:
        return
    left_out = [item for item in items if item.get_closest_marker("cuda")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="session")
def coarse_figures():
    """Draw a run's figures in a quarter of the time."""
    from helpers import coarse_figures

    from clip_randlora.runs import figures

    fine = figures.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", coarse_figures.save)
        yield fine


@pytest.fixture
def fine_figures(coarse_figures, monkeypatch) -> None:
    """Draw figures as a user gets them."""
    from clip_randlora.runs import figures

    monkeypatch.setattr(figures, "save", coarse_figures)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A ViT CLIP of 2.6 M weights as a local folder, random but always the same."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny0", TINY)


@pytest.fixture
def tiny(tiny_folder) -> Model:
    return load_model(str(tiny_folder))
