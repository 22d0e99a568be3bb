"""What works without the optional dependencies, and what is said where one is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import forks

from clip_randlora.runs.tracking import TRACKERS

BLOCKED = """
import runpy, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
runpy.run_module("clip_randlora", run_name="__main__", alter_sys=True)
"""
"""The command, as if some libraries were not installed."""

EXTRAS = {
    "app": ("gradio", "gradio_client", "fastapi", "starlette", "uvicorn"),
    "cluster": ("ray",),
    "data": ("datasets", "pyarrow"),
    "export": ("onnx", "onnxruntime", "onnxscript", "peft", "transformers"),
    "heic": ("pillow_heif",),
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def train(out: Path) -> list:
    return ["train", "clipart", "--shots", 1, "--steps", 1, "--preset", "fast", "--out", out]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = forks.run_command(*train(out))
    assert done.returncode == 0, done.stderr
    return out


def test_a_training_needs_no_extra(tmp_path):
    code = BLOCKED.format(blocked={name for names in EXTRAS.values() for name in names})
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, train(tmp_path / "run"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Saved to" in done.stdout


@pytest.mark.parametrize(
    ("extra", "arguments", "says"),
    [
        ("app", ["app"], "the app needs gradio"),
        (
            "data",
            ["train", "cub200", "--out", "{out}"],
            "a data set of the Hugging Face hub needs datasets",
        ),
        (
            "data",
            ["datasets", "cub200", "--download"],
            "a data set of the Hugging Face hub needs datasets",
        ),
        (
            "data",
            ["embed", "{run}", "--text", "cat", "--out", "{out}.parquet"],
            "a .parquet file needs pyarrow",
        ),
        (
            "cluster",
            ["sweep", "offline", "--engine", "ray", "--out", "{out}"],
            "--engine ray needs ray",
        ),
        ("cluster", ["eval", "{run}", "clipart", "--engine", "ray"], "--engine ray needs ray"),
        (
            "export",
            ["export", "{run}", "--format", "onnx", "--out", "{out}"],
            "--format onnx needs onnx",
        ),
        (
            "export",
            ["export", "{run}", "--format", "peft", "--out", "{out}"],
            "--format peft needs peft",
        ),
        *(
            (
                name,
                ["train", "clipart", "--out", "{out}", "--track", name],
                f"--track {name} needs {name}",
            )
            for name in TRACKERS
        ),
    ],
)
def test_a_missing_extra_is_named_in_one_line(extra, arguments, says, run, tmp_path):
    arguments = [word.format(run=run, out=tmp_path / "out") for word in arguments]
    code = BLOCKED.format(blocked=set(EXTRAS[extra]))
    done = forks.of_the_package().run(code, arguments)
    error = f"error: {says}: pip install 'clip-randlora[{extra}]'\n"
    assert (done.returncode, done.stderr) == (2, error)
    assert not (tmp_path / "out").exists()


def test_data_sets_are_listed_without_the_library_that_keeps_some():
    done = forks.of_the_package().run(BLOCKED.format(blocked=set(EXTRAS["data"])), ["datasets"])
    assert done.returncode == 0, done.stderr
    assert "clipart" in done.stdout and "cub200" in done.stdout
