"""A split is a data set of torch's; images, labels and answers are tables of pandas'."""

import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.images import encoded, picture
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import clip_randlora as cr
from clip_randlora.evaluation import Predictions

GREYS = {
    "train/cat/1.png": 10, "train/cat/2.png": 20, "train/dog/1.png": 30,
    "test/cat/3.png": 40, "test/dog/2.png": 50, "test/dog/3.png": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of one grey each; their sizes differ."""
    root = tmp_path_factory.mktemp("greys")
    for name, grey in GREYS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (grey, grey + 1), (grey,) * 3).save(root / name)
    return root


@pytest.fixture(scope="module")
def data(folder) -> cr.Data:
    return cr.load_data(folder)


def grey(image: Image.Image) -> torch.Tensor:
    return torch.tensor(image.getpixel((0, 0))[0])


def test_a_split_is_indexed_as_torchs_data_sets_are(data):
    test = data.test
    assert isinstance(test, Dataset) and len(test) == 3
    image, label = test[0]
    assert (image.mode, image.size, label) == ("RGB", (40, 41), 0)
    assert [test[index][0].size[0] for index in (-3, -1, np.int64(1), torch.tensor(2))] == [
        40, 60, 50, 60,
    ]  # fmt: skip
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"index {index}: there are 3 images"):
            test[index]
    with pytest.raises(TypeError):
        test["cat"]
    assert [item.name for item in test] == ["test/cat/3.png", "test/dog/2.png", "test/dog/3.png"]


def test_a_data_loader_takes_splits_as_they_are(data):
    train, test = (split.with_transform(grey) for split in (data.train, data.test))
    assert train.transform is grey and data.train.transform is None
    batches = [(images.tolist(), labels.tolist()) for images, labels in DataLoader(test, 2)]
    assert batches == [([40, 50], [0, 1]), ([60], [1])]
    both = DataLoader(ConcatDataset([train, test]), 6)
    assert [images.tolist() for images, _ in both] == [[10, 20, 30, 40, 50, 60]]


def test_the_models_preprocessing_makes_batches(data, tiny):
    [(images, labels)] = DataLoader(data.test.with_transform(tiny.preprocess), 3)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    one = tiny.preprocess(Image.open(data.to_pandas()["path"][3]))
    torch.testing.assert_close(images[0], one)
    assert labels.tolist() == [0, 1, 1]


def test_an_image_that_cannot_be_decoded_is_named(data, tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(len(name))))
    train = cr.load_data(tmp_path / "train", test=tmp_path / "train", check=False).train
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(cr.UserError, match=r"dog/2\.png: broken or truncated"):
        train[3]


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_processes_read_an_archive_each_for_itself(tmp_path):
    """Forked processes have the archive's open file in common, and would read from wrong places."""
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for number in range(40):
            name = f"train/{'cat' if number % 2 else 'dog'}/{number:02}.png"
            archive.writestr(name, encoded(picture(number, 64)))
            archive.writestr(name.replace("train", "test"), encoded(picture(100 + number, 8)))
    data = cr.load_data(tmp_path / "data.zip")
    assert data.to_pandas()["path"].tolist() == [None] * 80  # no image has a file of its own
    train = data.train.with_transform(np.asarray)
    alone = [train[number][0] for number in range(len(train))]
    loader = DataLoader(train, 5, num_workers=2, multiprocessing_context="fork")
    together = [image for images, _ in loader for image in images.numpy()]
    sent = pickle.loads(pickle.dumps(train))  # as processes that are spawned get it
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert (one == other).all() and (one == sent[number][0]).all()


def test_to_pandas_has_a_row_for_each_image(folder, data):
    table = data.to_pandas()
    assert list(table.columns) == ["image", "path", "label", "split"]
    assert table["image"].tolist() == list(GREYS)
    assert table["path"].tolist() == [str(folder / name) for name in GREYS]
    assert table["label"].tolist() == ["cat", "cat", "dog", "cat", "dog", "dog"]
    assert table["split"].value_counts().to_dict() == {"train": 3, "test": 3}


def test_to_pandas_and_back_is_the_same_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = data.to_pandas()
    again = cr.load_data(frame)
    assert again.classes == ("cat", "dog")
    for split in ("train", "test"):
        before, now = getattr(data, split), getattr(again, split)
        assert list(now.with_transform(grey)[0]) == list(before.with_transform(grey)[0])
        assert [item.open().size for item in now] == [item.open().size for item in before]
        assert now.labels.tolist() == before.labels.tolist()
    few = cr.load_data(frame[frame["image"] != "test/dog/3.png"])
    assert len(few.test) == 2


def test_predictions_are_a_table():
    predictions = Predictions(
        classes=("cat", "dog"),
        names=["a.png", "b.png"],
        labels=torch.tensor([0, 1]),
        zero_shot=torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
        tuned=torch.tensor([[1.0, 0.0], [0.125, 0.875]]),
    )
    expected = pd.DataFrame(
        {
            "image": ["a.png", "b.png"],
            "label": ["cat", "dog"],
            "zero_shot": ["dog", "cat"],
            "tuned": ["cat", "dog"],
            "zero_shot: cat": [0.25, 0.5],
            "zero_shot: dog": [0.75, 0.5],
            "tuned: cat": [1.0, 0.125],
            "tuned: dog": [0.0, 0.875],
        }
    )
    got = predictions.to_pandas()
    pd.testing.assert_frame_equal(got, expected, check_dtype=False)
    assert (got["tuned"] == got["label"]).mean() == 1


def test_a_runs_predictions_are_those_of_its_file(data, tiny, tmp_path):
    run = cr.fit(tiny, data, cr.TrainConfig(method="zero_shot"), tmp_path / "run")
    written = pd.read_csv(tmp_path / "run" / "predictions.csv")
    got = run.predictions.to_pandas()
    pd.testing.assert_frame_equal(got, written, check_dtype=False)
    answers = cr.Classifier.load(tmp_path / "run").predict(data.to_pandas()["path"][3:].tolist())
    flat = pd.json_normalize(answers, sep=": ")
    pd.testing.assert_series_equal(flat["tuned: cat"], got["tuned: cat"], check_dtype=False)
