"""Data sets downloaded from the hub, as DATA."""

from __future__ import annotations

import datasets
import pytest
from helpers import hub as loopback
from PIL import Image

import clip_randlora as cr

NAME = "someone/animals"


@pytest.fixture(autouse=True)
def own_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    datasets.disable_progress_bars()


def parquet(folder, labels: list[int], start: int = 0) -> bytes:
    """A file with pictures whose red is their number."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    pictures = [Image.new("RGB", (4, 4), (start + n, 0, 0)) for n in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    rows.to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


def test_it_is_downloaded_once(hub, tmp_path):
    train, test = parquet(tmp_path, [0, 1, 1, 0]), parquet(tmp_path, [1, 0], 10)
    files = {
        "data/train-00000-of-00001.parquet": train,
        "data/test-00000-of-00001.parquet": test,
        "setup.py": b"raise SystemExit",  # a program, which is not asked for
    }
    hub.add(NAME, files, "dataset")
    data = cr.load_data(f"hub:{NAME}")
    assert data.classes == ("dog", "cat")
    found = [(data.classes[item.label], item.open().getpixel((0, 0))[0]) for item in data.train]
    assert sorted(found) == [("cat", 1), ("cat", 2), ("dog", 0), ("dog", 3)]
    assert len(data.test) == 2
    assert hub.asked("GET", ".py") == []
    hub.requests.clear()
    assert len(cr.load_data(f"hub:{NAME}").train) == 4
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "more", "says"),
    [
        (None, {"private": True}, "there is no such repository, or it is private; correct the"),
        (None, {"gated": True}, f"/datasets/{NAME}, then log in with `hf auth login`"),
        ("hf_wrong", {}, "the hub refuses the token; make another one"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, monkeypatch, token, more, says):
    hub.add(NAME, {}, "dataset", **more)
    loopback.use(hub, tmp_path / "other", monkeypatch, token)
    with pytest.raises(cr.UserError) as error:
        cr.load_data(f"hub:{NAME}")
    assert says in str(error.value) and "\n" not in str(error.value)
