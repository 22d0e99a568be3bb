"""Projects of the app, as folders and as zips: classes, prompts and split come from the project."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import clip_randlora as cr


def make_project(folder: Path, **changes) -> Path:
    """Write a project: hat and shoe with 2 + 1 images, scarf with 1, glove without any."""
    number = 0
    for name, train, test in (("hat", 2, 1), ("shoe", 2, 1), ("scarf", 1, 0)):
        for split, count in (("train", train), ("test", test)):
            for _ in range(count):
                number += 1
                path = folder / "images" / split / name / f"{number:06d}-a.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    (folder / "runs" / "1").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "runs" / "1" / "confusion.png")
    project = {
        "format": "clip-randlora project",
        "version": 1,
        "classes": [
            {"name": "shoe", "prompts": ["sneaker", "trainer"]},
            {"name": "hat"},
            {"name": "scarf", "is_on": False},
            {"name": "glove"},
        ],
        "templates": ["a drawing of a {}."],
        "runs": [{"id": "1"}],
        **changes,
    }
    (folder / "project.json").write_text(json.dumps(project))
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder"])
def test_a_project_is_a_data_set(tmp_path, form):
    source = make_project(tmp_path / "mine")
    if form != "folder":
        root = source if form == "zip" else tmp_path
        inside = None if form == "zip" else "mine"
        source = Path(shutil.make_archive(str(tmp_path / "out"), "zip", root, inside))
    data = cr.load_data(source)
    assert data.classes == ("shoe", "hat"), "in the order of the project"
    assert [len(data.train), len(data.test)] == [4, 2]
    assert not data.held_out
    assert data.templates == ("a drawing of a {}.",)
    assert data.prompts == {"shoe": ("sneaker", "trainer")}
    assert "scarf is switched off and left out." in data.notes
    assert "glove has no training images and is left out." in data.notes
    assert not data.skipped


def test_a_project_without_test_images_is_shared_out(tmp_path):
    source = make_project(tmp_path / "mine")
    shutil.rmtree(source / "images" / "test")
    data = cr.load_data(source, held_out=0.5)
    assert data.held_out and [len(data.train), len(data.test)] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "not a project of this version of clip-randlora"),
        ({"format": "other"}, "not a project of this version of clip-randlora"),
        ({"classes": "x"}, "not a project of this version of clip-randlora"),
        ({"classes": []}, "the project has no class with training images"),
        ({"classes": [{"name": "hat"}]}, 'only one class \\("hat"\\)'),
    ],
)
def test_a_project_that_cannot_be_used_is_one_line(tmp_path, changes, says):
    with pytest.raises(cr.UserError, match=says):
        cr.load_data(make_project(tmp_path / "mine", **changes))


def test_a_damaged_project_is_one_line(tmp_path):
    source = make_project(tmp_path / "mine")
    (source / "project.json").write_text("{")
    with pytest.raises(cr.UserError, match="not a project of this version"):
        cr.load_data(source)
    archive = shutil.make_archive(str(tmp_path / "out"), "zip", source)
    with zipfile.ZipFile(archive) as zipped:
        assert "project.json" in zipped.namelist()
    with pytest.raises(cr.UserError, match="not a project of this version"):
        cr.load_data(archive)
