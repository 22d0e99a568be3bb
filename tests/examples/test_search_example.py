"""The scripts in `examples/`, run as a reader runs them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.exports import files_in

import clip_randlora as cr

EXAMPLES = Path(cr.__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("library", ["numpy", "faiss"])
def test_a_search_finds_what_is_most_alike(
    tiny_run, drawings, tmp_path, monkeypatch, capsys, library
):
    if library == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.chdir(tmp_path)
    search, photos = load("search"), drawings / "test"
    arguments = [str(tiny_run), str(photos), "zebra", "a bird", "--first", "3"]
    search.main(arguments)
    said = capsys.readouterr().out
    assert said.startswith("test.parquet: 12 images, 0 could not be read\n\nzebra\n  zero_shot ")
    classifier, files = cr.Classifier.load(tiny_run), files_in(photos)
    expected = []
    for query in ("zebra", "a bird"):
        for strength in (0, 1):
            cosines = classifier.similarity(files, query, strength)[:, 0].numpy()
            expected += [files[place] for place in np.argsort(-cosines)[:3]]
    assert [line.split()[2] for line in said.splitlines() if line.startswith("  ")] == expected
    search.main(arguments)  # the features are there
    assert capsys.readouterr().out == said.partition("\n")[2]
