"""Data sets of the Hugging Face hub as DATA, and objects of ``datasets`` and of data frames."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas
import pyarrow
import pytest
from helpers.images import expand, write_images
from PIL import Image

from clip_randlora.data import Data, load_data
from clip_randlora.errors import UserError

ANIMALS = datasets.ClassLabel(names=["dog", "cat"])
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Empty caches, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    datasets.disable_progress_bars()

    def no_network(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)


def make(labels: list, kind: object = ANIMALS, start: int = 0, **more: object) -> datasets.Dataset:
    """Rows with pictures whose red is their number."""
    pictures = [Image.new("RGB", (4, 4), (start + n, 0, 0)) for n in range(len(labels))]
    features = {"picture": datasets.Image(), "animal": kind}
    features |= {name: datasets.Value("string") for name in more}
    rows = {"picture": pictures, "animal": labels, **more}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def write_hub(root: Path) -> Path:
    """Write parquet as the hub has it, with a test split without labels, as some have."""
    (root / "data").mkdir(parents=True)
    for split, labels, start in (("train", [0, 1, 1, 0], 0), ("test", [-1, -1], 10),
                                 ("validation", [1, 0], 20)):  # fmt: skip
        made = make(labels, start=start, caption=["a"] * len(labels))
        made.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def reds(split) -> dict[str, list[int]]:
    """The red of each image, by class."""
    found: dict[str, list[int]] = {}
    for item in split:
        found.setdefault(split.classes[item.label], []).append(item.open().getpixel((0, 0))[0])
    return found


def check_hub(data: Data) -> None:
    assert data.classes == ("dog", "cat")
    assert reds(data.train) == {"dog": [0, 3], "cat": [1, 2]}
    assert reds(data.test) == {"dog": [21], "cat": [20]}
    assert any(note.startswith("2 rows of test have no label") for note in data.notes)
    assert any("images are in the column picture, the labels in animal" in n for n in data.notes)


def test_a_local_folder_in_the_hubs_form(tmp_path, monkeypatch):
    write_hub(tmp_path / "animals")
    monkeypatch.chdir(tmp_path)
    check_hub(load_data("hub:./animals"))
    one = load_data("hub:./animals@train")
    assert one.held_out
    assert len(one.train) + len(one.test) == 4


def test_the_cache_of_huggingface_hub(tmp_path):
    """Its layout: blobs, and snapshots of links to them."""
    write_hub(tmp_path / "made")
    repository = tmp_path / "hub/datasets--org--animals"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for number, file in enumerate(sorted((tmp_path / "made/data").iterdir())):
        (repository / "blobs").mkdir(exist_ok=True)
        (snapshot / "data").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, repository / "blobs" / str(number))
        os.symlink(f"../../../blobs/{number}", snapshot / "data" / file.name)
    check_hub(load_data("hub:org/animals"))


def test_the_cache_of_datasets(tmp_path):
    write_hub(tmp_path / "animals")
    made = datasets.load_dataset(str(tmp_path / "animals"), split="train")
    prepared = Path(made.cache_files[0]["filename"]).parent
    shutil.copytree(prepared, tmp_path / "datasets/org___animals/default/0.0.0" / COMMIT)
    check_hub(load_data("hub:org/animals"))


def test_a_local_image_folder(tmp_path):
    """Its rows hold paths, which are followed into the folder alone."""
    write_images(tmp_path / "set", "{train,test}/{cat,dog}/{1..2}.png")
    data = load_data(f"hub:{tmp_path / 'set'}")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (4, 4)
    assert data.train.items[0].open().size == (1, 1)


@pytest.mark.parametrize(
    ("source", "columns", "says"),
    [
        ("hub:./nothing", None, "hub:./nothing: no such folder"),
        ("hub:a/b/c", None, "hub:a/b/c: no name of a data set; give hub:ORG/NAME"),
        ("hub:", None, "hub:: no name of a data set"),
        ("hub:./animals@dev", None, "no split 'dev', only train"),
        ("hub:./animals", "label=breed", "no column 'breed', only picture, animal, caption"),
        ("hub:./animals", "path=caption", "the column 'caption' does not hold images"),
        ("hub:./animals", "split=caption", "it has splits of its own"),
        ("hub:org/nothing", None, "org/nothing cannot be fetched from the Hugging Face hub"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, source, columns, says):
    write_hub(tmp_path / "animals")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_data(source, columns=columns)
    assert says in str(error.value) and "\n" not in str(error.value)


# --- objects


def test_a_dataset_of_selected_and_shuffled_rows():
    rows = make([0, 1] * 10)
    chosen = rows.select(range(4, 16)).shuffle(seed=3)
    expected = {"dog": [], "cat": []}
    for number in chosen["animal"][:], [image.getpixel((0, 0))[0] for image in chosen["picture"]]:
        last = number
    for label, red in zip(chosen["animal"][:], last, strict=True):
        expected[("dog", "cat")[label]].append(red)
    data = load_data(chosen)
    found = {name: reds(data.train).get(name, []) + reds(data.test)[name] for name in expected}
    assert {name: sorted(values) for name, values in found.items()} == {
        name: sorted(values) for name, values in expected.items()
    }
    assert all(item.content.size == len(item.content.read()) for item in data.train)


def test_a_dataset_dict_with_names_and_a_said_column():
    splits = datasets.DatasetDict(
        train=make(["tabby", "pug", "tabby"], datasets.Value("string"), place=["in", "out", "in"]),
        test=make(["pug"], datasets.Value("string"), start=9, place=["out"]),
    )
    with pytest.raises(UserError, match="none may be the label; say which is with --columns"):
        load_data(splits)
    data = load_data(splits, columns={"label": "animal"})
    assert reds(data.train) == {"pug": [1], "tabby": [0, 2]}
    assert reds(data.test) == {"pug": [9]}
    assert reds(load_data(splits, columns={"label": "place"}).train) == {"in": [0, 2], "out": [1]}


def test_numbers_without_names_are_the_names(tmp_path):
    """A row may hold a path, which is followed: whoever has the object made it."""
    write_images(tmp_path, "{1..4}.png")
    rows = {"image": [str(tmp_path / f"{n}.png") for n in range(1, 5)], "label": [7, 10**12] * 2}
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data = load_data(made)
    assert data.classes == ("7", "1000000000000")
    assert any("only numbers" in note for note in data.notes)
    assert data.train.items[0].open().size == (1, 1)


@pytest.mark.parametrize("value", [3, None, datasets.DatasetDict(), np.zeros(3)])
def test_other_objects_are_refused(value):
    with pytest.raises(UserError, match="give"):
        load_data(value)


@pytest.fixture
def table(tmp_path, monkeypatch) -> pandas.DataFrame:
    write_images(tmp_path, "images/{1..6}.png")
    monkeypatch.chdir(tmp_path)
    return pandas.DataFrame(
        {
            "id": range(6),
            "image": [Path("images") / f"{n}.png" for n in range(1, 7)],
            "kind": pandas.Series(["cat"] * 3 + ["dog"] * 3, dtype="category"),
            "fold": [0.0, 1.0, np.nan] * 2,
            "is_test": np.array([0, 0, 1] * 2, dtype=bool),
        }
    )


def test_a_data_frame_of_pandas(table):
    data = load_data(table)
    assert data.classes == ("cat", "dog")
    assert [item.name for item in data.test] == ["images/3.png", "images/6.png"]
    assert [item.name for item in data.train] == expand("images/{1,2,4,5}.png")
    folds = load_data(table.drop(columns="is_test"), columns={"label": "fold"})
    assert folds.classes == ("0", "1")
    assert any("2 images have an empty label" in note for note in folds.notes)
    apart = load_data(table.iloc[[0, 1, 3, 4]], test=table.iloc[[2, 5]])
    assert [item.name for item in apart.test] == ["images/3.png", "images/6.png"]
    with pytest.raises(UserError, match=r"the table: no column names files of images"):
        load_data(table.assign(image="x"))


def test_a_table_of_arrow_as_polars_and_duckdb_give_it(table):
    class Frame:
        """Has nothing but the protocol, which polars' data frames have too."""

        def __arrow_c_stream__(self, requested_schema=None):
            columns = {name: list(map(str, table[name])) for name in ("image", "kind", "is_test")}
            return pyarrow.table(columns).__arrow_c_stream__(requested_schema)

    assert [item.name for item in load_data(Frame()).test] == ["images/3.png", "images/6.png"]
