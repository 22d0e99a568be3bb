"""`check_images` on a small folder whose problems are known."""

import shutil
from dataclasses import replace

import pytest
from helpers.images import encoded, picture, write_colors
from PIL import Image

import clip_randlora as cr


@pytest.fixture(scope="module")
def lite0():
    return cr.load_model("lite0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_colors(tmp_path_factory.mktemp("data") / "colors", {"train": 8, "test": 3})
    shutil.copy(root / "train/red/0.png", root / "train/blue/wrong.png")
    Image.open(root / "train/red/1.png").save(root / "test/red/copy.jpg", quality=80)
    (root / "train/red/bad.png").write_bytes(b"no image")
    Image.new("RGB", (50, 50), (9, 9, 9)).save(root / "train/green/blank.png")
    Image.open(root / "train/green/3.png").resize((20, 17)).save(root / "train/green/small.png")
    return root


@pytest.fixture(scope="module")
def findings(folder, lite0):
    data = cr.load_data(folder, check=False)
    items = [replace(i, label=0) if i.name == "test/red/2.png" else i for i in data.test]
    return cr.check_images(replace(data, test=replace(data.test, items=tuple(items))), lite0)


def names(findings, indices):
    return [findings.items[index].name for index in indices]


def test_wrong_labels_of_all_splits_are_named_with_the_class_that_they_should_have(findings):
    wrong = {
        findings.items[found.index].name: (
            findings.classes[found.given],
            findings.classes[found.suggested],
        )
        for found in findings.wrong_labels
    }
    exchanged = ("train/blue/wrong.png", "test/red/2.png")
    assert wrong == dict.fromkeys(exchanged, ("blue", "red"))  # and no right label is listed
    certainties = [found.certainty for found in findings.wrong_labels]
    assert certainties == sorted(certainties, reverse=True)
    assert min(certainties) > 0.2  # 0.05 is what is assumed of any label


def test_copies_are_grouped_and_those_across_splits_come_first(findings):
    groups = {group.where: names(findings, group.indices) for group in findings.duplicates}
    assert groups["splits"] == ["train/red/1.png", "test/red/copy.jpg"]
    assert groups["classes"] == ["train/blue/wrong.png", "train/red/0.png"]
    assert findings.duplicates[0].where == "splits"


def test_bad_files_are_named(findings):
    assert [entry.name for entry in findings.unreadable] == ["train/red/bad.png"]
    assert names(findings, findings.blank) == ["train/green/blank.png"]
    assert names(findings, [small.index for small in findings.tiny]) == ["train/green/small.png"]
    assert findings.tiny[0].size == (20, 17)
    assert findings.splits[findings.blank[0]] == "train"


def test_blank_images_are_neither_judged_nor_outliers(findings):
    blank = findings.blank[0]
    assert blank not in [found.index for found in findings.wrong_labels]
    assert blank not in [found.index for found in findings.outliers]


def test_a_single_split_can_be_checked(folder, lite0):
    split = cr.load_data(folder, check=False).test
    found = cr.check_images(split, lite0)
    assert len(found.items) == len(split)
    assert found.duplicates == ()


def test_a_class_with_one_image_is_not_judged(tmp_path, lite0):
    root = write_colors(tmp_path / "colors", {"": 6})
    (root / "odd").mkdir()
    (root / "odd" / "1.png").write_bytes(encoded(picture(1)))
    (root / "odd" / "copy.png").write_bytes(encoded(picture(1)))  # one image, twice
    found = cr.check_images(cr.load_data(root, check=False), lite0)
    assert found.wrong_labels == ()
    assert [names(found, group.indices) for group in found.duplicates] == [
        ["odd/copy.png", "odd/1.png"]
    ]


def test_an_image_like_no_other_is_an_outlier(tmp_path, lite0):
    root = write_colors(tmp_path / "colors", {"": 8})
    drawing = next(iter(cr.load_data("clipart").test)).open()
    drawing.save(root / "red" / "drawing.png")
    found = cr.check_images(cr.load_data(root, check=False), lite0)
    assert found.items[found.outliers[0].index].name == "red/drawing.png"


def test_nothing_readable_is_an_error(tmp_path, lite0):
    root = write_colors(tmp_path / "colors", {"": 2})
    data = cr.load_data(root)
    shutil.rmtree(root)
    with pytest.raises(cr.UserError, match="no image to check can be decoded"):
        cr.check_images(data, lite0)
