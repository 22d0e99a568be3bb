"""The notebooks, run by Jupyter's own kernel, but for the cells that install the package."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "saved with outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    check(path.stem, notebook)


def check(name: str, notebook) -> None:
    """What a reader is to see."""
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1].outputs[-1]
    if name == "first_steps":
        assert "image/png" in last["data"]
    elif name == "own_training_loop":
        assert float(last["data"]["text/plain"]) < 1e-5
    else:
        assert "randlora" in last["data"]["text/markdown"]
