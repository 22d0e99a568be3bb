"""CoOp's splits: small sets in the format of its files, and the draws that its seeds give."""

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml
from helpers.images import encoded, picture

from clip_randlora.data import (
    DiskFile,
    decode_shots,
    draw_shots,
    draw_validation,
    find_dataset_spec,
    load_data,
    select_classes,
)
from clip_randlora.errors import UserError

# in the file's order: the labels neither start at the first class nor follow each other
LABELS = {"train": [2, 0, 1, 0, 2, 1, 2, 0, 1, 2, 0, 2], "val": [1, 0, 2, 1, 0, 1, 1, 1, 1]}
LABELS["test"] = [0, 1, 2, 2]
NAMES = ["american_bulldog", "St. Bernard", "zebra"]


def write_split(root: Path, labels=LABELS, names=NAMES, images: str = "images") -> dict:
    """Write a data set as CoOp's authors do, and return what its file says."""
    rows = {
        split: [(f"{split}/{n}.png", label, names[label]) for n, label in enumerate(own)]
        for split, own in labels.items()
    }
    number = 0
    for own in rows.values():
        for path, *_ in own:
            file = root / images / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(number, 32)))
            number += 1
    (root / "split_zhou_Beasts.json").write_text(json.dumps(rows))
    return rows


def coops_draw(rows: dict, shots: int, seed: int) -> tuple[dict[int, list[str]], ...]:
    """What CoOp draws: its algorithm, step by step with Python's own generator."""
    random.seed(seed)
    drawn = []
    for own, count in ((rows["train"], shots), (rows["val"], min(shots, 4))):
        by_label = defaultdict(list)
        for path, label, _ in own:
            by_label[label].append(path)
        drawn.append(
            {
                label: random.sample(paths, count)
                if len(paths) >= count
                else random.choices(paths, k=count)
                for label, paths in by_label.items()
            }
        )
    return tuple(drawn)


@pytest.fixture
def beasts(tmp_path) -> Path:
    write_split(tmp_path / "beasts")
    return tmp_path / "beasts"


def test_a_folder_with_such_a_file_is_loaded_by_it(beasts):
    data = load_data(beasts)
    assert data.classes == tuple(NAMES)
    assert data.prompts["american_bulldog"] == ("american bulldog",)
    assert data.prompts["St. Bernard"] == ("St. Bernard",)
    for split, name in ((data.train, "train"), (data.validation, "val"), (data.test, "test")):
        assert sorted(split.labels.tolist()) == sorted(LABELS[name])
        for item in split:
            number = int(item.name.split("/")[1].removesuffix(".png"))
            assert item.name.startswith(f"{name}/") and item.label == LABELS[name][number]
            assert item.open().size == (32, 32)
    assert not data.held_out
    assert any("split_zhou_Beasts.json (CoOp)" in note for note in data.notes)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 3, 4, 16])  # a class has 3 to 5 images: 16 repeats them
def test_the_draw_is_coops_image_by_image(beasts, shots, seed):
    rows = json.loads((beasts / "split_zhou_Beasts.json").read_text())
    train, validation = coops_draw(rows, shots, seed)
    data = load_data(beasts)
    drawn = draw_shots(data.train, shots, seed)
    assert {label: [item.name for item in items[:shots]] for label, items in drawn.items()} == train
    batch = decode_shots(data.train, shots, seed, black)
    assert sorted(batch.names) == sorted(name for names in train.values() for name in names)
    by_class = draw_validation(data.validation, shots, seed).by_class()
    assert {label: [item.name for item in items] for label, items in by_class.items()} == validation


def black(image) -> torch.Tensor:
    return torch.zeros(3, image.height, image.width, dtype=torch.uint8)


def test_an_image_that_is_missing_is_named_and_leaves_the_other_draws(beasts):
    rows = json.loads((beasts / "split_zhou_Beasts.json").read_text())
    before = draw_shots(load_data(beasts).train, 2, 1)
    gone = before[0][0].name
    (beasts / "images" / gone).unlink()
    (beasts / "images" / "test/0.png").unlink()
    data = load_data(beasts)
    assert f"2 of its 25 images are missing: {gone} and test/0.png." in data.notes
    now = draw_shots(data.train, 2, 1)
    assert now[0][0].name == before[0][1].name
    assert [now[label] for label in (1, 2)] == [before[label] for label in (1, 2)]
    assert len(data.train) == len(rows["train"]) - 1 and len(data.test) == 3


def test_a_described_set_is_loaded_by_its_file_if_that_is_there(tmp_path):
    write_split(tmp_path / "coop", images="pictures")
    for name in ("a", "b"):
        for number in range(4):
            file = tmp_path / "photos" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(100 + number + 10 * (name == "b"), 32)))
    spec = {
        "name": "mine",
        "folder": "photos",
        "templates": ["a beast: {}."],
        "coop_split": {
            "file": "coop/split_zhou_Beasts.json",
            "images": ["nowhere", "coop/pictures"],
        },
    }
    described = tmp_path / "mine.yaml"
    described.write_text(yaml.safe_dump(spec))
    data = load_data(described)
    assert (data.classes, data.templates) == (tuple(NAMES), ("a beast: {}.",))
    (tmp_path / "coop/pictures").rename(tmp_path / "coop/elsewhere")
    with pytest.raises(UserError, match=r"its images are not there; put them into .*nowhere or "):
        load_data(described)
    (tmp_path / "coop/split_zhou_Beasts.json").unlink()
    assert load_data(described).classes == ("a", "b")


@pytest.mark.parametrize("name", ["oxford_pets", "dtd", "flowers102"])
def test_a_packaged_set_takes_the_file_from_coops_own_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    spec = find_dataset_spec(name)
    file = tmp_path / spec.coop_split.file
    images = tmp_path / spec.coop_split.images[0]
    write_split(file.parent, images=str(images.relative_to(file.parent)))
    (file.parent / "split_zhou_Beasts.json").rename(file)
    data = load_data(name)
    assert (data.classes, data.templates) == (tuple(NAMES), spec.templates)
    assert data.validation is not None and file.name in spec.how_to_get


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON, or cut short"),
        ("[]", "no list 'train', as a split has"),
        ({"train": [], "val": [], "test": []}, "train has no images"),
        ({"val": None}, "no list 'val'"),
        ({"train": [["a.png", 0]]}, r"train, row 1: \['a.png', 0\], not \[image, label, class"),
        ({"train": [["a.png", "0", "cat"]]}, r"train, row 1: .*not \[image, label, class name\]"),
        ({"test": [["a.png", True, "cat"]]}, "test, row 1: "),
        ({"test": [["../../secret.png", 0, "zebra"]]}, "test, row 1: .*leaves the folder"),
        ({"test": [["/etc/passwd", 0, "zebra"]]}, "test, row 1: .*leaves the folder"),
        ({"test": [["a.png", 0, "zebra"]]}, "label 0 is american_bulldog, and zebra at a.png"),
        ({"test": [["a.png", 7, "lion"]]}, "label 7 is no class of a training image, and lion"),
        ({"train": [["train/0.png", 0, "cat"], ["b.png", 1, "cat"]]}, "labels 0 and 1 are both"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(beasts, content, says):
    file = beasts / "split_zhou_Beasts.json"
    if isinstance(content, dict):
        rows = json.loads(file.read_text()) | content
        if "train" in content and len(content["train"]) == 2:
            rows |= {"val": [], "test": [["b.png", 1, "cat"]]}
        content = json.dumps(rows)
    file.write_text(content)
    with pytest.raises(UserError, match=says) as error:
        load_data(beasts)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_images_elsewhere_and_two_files_are_errors(beasts):
    file = beasts / "split_zhou_Beasts.json"
    (beasts / "images" / "train").rename(beasts / "gone")
    for split in ("test", "val"):
        (beasts / "images" / split).rename(beasts / "images" / f"{split}_")
    with pytest.raises(
        UserError, match=r"its images are neither in .*beasts nor in a folder there"
    ):
        load_data(beasts)
    (beasts / "split_zhou_Other.json").write_text(file.read_text())
    with pytest.raises(
        UserError, match=r"split_zhou_Beasts\.json and split_zhou_Other\.json are spl"
    ):
        load_data(beasts)


def test_the_draw_reads_no_image(beasts, monkeypatch):
    monkeypatch.setattr(DiskFile, "read", None)
    assert draw_shots(load_data(beasts).train, 2, 1)[0]


@pytest.mark.parametrize("half", ["base", "novel"])
def test_classes_are_chosen_after_the_draw_as_in_coop(tmp_path, half):
    labels = {"train": [3, 1, 0, 2] * 4, "val": [0, 3, 1, 2] * 2, "test": [0, 1, 2, 3]}
    rows = write_split(tmp_path / "four", labels, ["elk", "dog", "cat", "bee"])
    train, validation = coops_draw(rows, 2, 1)
    data = load_data(tmp_path / "four")
    chosen = select_classes(data, half)
    places = {"base": (0, 1), "novel": (2, 3)}[half]
    assert chosen.classes == tuple(["elk", "dog", "cat", "bee"][place] for place in places)
    drawn = draw_shots(chosen.train, 2, 1)
    assert [[item.name for item in drawn[n]][:2] for n in (0, 1)] == [train[n] for n in places]
    by_class = draw_validation(chosen.validation, 2, 1).by_class()
    assert [[item.name for item in by_class[n]] for n in (0, 1)] == [validation[n] for n in places]
