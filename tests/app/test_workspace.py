"""A project's rules, without a browser: its split, dropped folders, and hostile projects."""

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.app import CLIPART, drawing
from PIL import Image

import clip_randlora as cr
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.estimates import Estimates
from clip_randlora.app.project_archive import open_project, save_project
from clip_randlora.app.uploads import Upload
from clip_randlora.app.workspace import Workspace
from clip_randlora.app.workspaces import Workspaces


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "mine", Settings(folder=tmp_path))


def add(workspace: Workspace, class_name: str, images: range) -> None:
    files = [sorted((CLIPART / "train" / class_name).iterdir())[i] for i in images]
    workspace.add_images(class_name, [Upload(file, file.name) for file in files])


def split(workspace: Workspace, class_name: str) -> dict[int, bool]:
    return {picture.number: picture.is_test for picture in workspace.pictures(class_name)}


def test_test_images_are_set_apart_once(workspace):
    add(workspace, "bird", range(10))
    add(workspace, "fruit", range(10))
    assert not any(split(workspace, "bird").values()), "nothing is set apart before a training"
    data = workspace.data("first")
    first = split(workspace, "bird")
    assert sum(first.values()) == 3 and [len(data.train), len(data.test)] == [14, 6]

    add(workspace, "bird", range(10, 20))
    workspace.data("second")
    second = split(workspace, "bird")
    assert {number: second[number] for number in first} == first, "no image changes its use"
    assert sum(second.values()) == 6, "of the new images, a share is set apart too"

    again = Workspace(workspace.folder, workspace.settings)  # after a restart
    again.data("third")
    assert split(again, "bird") == second

    workspace.set_held_out(0.5)
    assert not any(split(workspace, "bird").values())
    workspace.data("fourth")
    assert sum(split(workspace, "bird").values()) == 10


def test_given_test_images_stay_as_they_are(workspace, tmp_path):
    for part, count in (("train", 4), ("test", 1)):
        for name in ("bird", "fruit"):
            (tmp_path / "given" / part / name).mkdir(parents=True)
            for i in range(count):
                image = drawing(name, i + (10 if part == "test" else 0))
                (tmp_path / "given" / part / name / image.name).write_bytes(image.read_bytes())
    root = tmp_path / "given"
    files = [p for p in root.rglob("*.*") if p.is_file()]
    workspace.add_tree([Upload(p, p.relative_to(root).as_posix()) for p in files])
    data = workspace.data("first")
    assert [len(data.train), len(data.test)] == [8, 2]


def test_what_is_removed_during_a_training_is_still_trained_on(workspace):
    add(workspace, "bird", range(4))
    add(workspace, "fruit", range(4))
    data = workspace.data("first")
    workspace.remove_class("bird")
    assert all(item.open().mode == "RGB" for item in (*data.train, *data.test))


def test_a_removed_run_comes_back_in_its_place(workspace):
    for run in ("one", "two", "three"):
        (workspace.folder / "runs" / run).mkdir()
        (workspace.folder / "runs" / run / "adapter.safetensors").write_bytes(run.encode())
        workspace.runs.add(run)
    removal = workspace.remove_run("two")
    assert [entry.id for entry in workspace.project.runs] == ["one", "three"]
    assert not (workspace.folder / "runs" / "two").exists()
    assert workspace.undo(removal.token) == "Run 2"
    assert [entry.id for entry in workspace.project.runs] == ["one", "two", "three"]
    assert (workspace.folder / "runs/two/adapter.safetensors").read_bytes() == b"two"


def test_a_deleted_project_writes_nothing_any_more(tmp_path):
    """Its training may end later, when the same person has begun anew in the same folder."""
    workspaces = Workspaces(Settings(folder=tmp_path / "all"))
    old = workspaces.of("me")
    add(old, "bird", range(2))
    workspaces.delete(old)
    new = workspaces.of("me")
    new.add_class("hat")
    old.save()
    assert Workspaces(workspaces.settings).of("me").classes == ["hat"]


def test_dropped_folders_become_classes(workspace, tmp_path):
    image = drawing("bird", 1)
    other = drawing("bird", 2)
    for names, classes, unsorted in (
        (["cat/1.webp", "cat/2.webp"], {"cat": 2}, 0),  # one folder of images is one class
        (["DCIM/100APPLE/1.webp", "DCIM/100APPLE/2.webp"], {}, 2),  # but for one of any images
        (["photos/1.webp", "photos/2.webp"], {}, 2),
        (["pets/1.webp", "pets/cat/2.webp"], {"cat": 1}, 1),
        (["beside.webp", "cat/2.webp"], {"cat": 1}, 1),
        (["pets/dog/1.webp", "pets/fox/2.webp"], {"dog": 1, "fox": 1}, 0),
        (["loose.webp"], {}, 1),
        (["../../owl/1.webp", "../../owl/2.webp"], {"owl": 2}, 0),
    ):
        own = Workspace(tmp_path / names[0].replace("/", "-"), Settings(folder=tmp_path))
        uploads = [Upload(file, name) for file, name in zip((image, other), names, strict=False)]
        own.add_tree(uploads)
        assert {name: len(own.pictures(name)) for name in own.classes} == classes
        assert len(own.unsorted()) == unsorted
    assert not (tmp_path / "owl").exists()


def test_a_hostile_project_leaves_nothing_outside(workspace, tmp_path):
    """Paths that climb, other files, an unknown base model, class names that are no names."""
    add(workspace, "bird", range(2))
    project = {
        "classes": [{"name": "hat"}, {"name": "../x"}, {"name": "a/b"}],
        "runs": [{"id": "1", "number": 1}],
        "in_use": "1",
    }
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr("project.json", json.dumps(project))
        zipped.write(drawing("bird", 1), "images/train/hat/000001-a.webp")
        zipped.write(drawing("bird", 2), "images/train/hat/../../../../b.webp")
        zipped.writestr("images/train/hat/000002-b.sh", "#!/bin/sh")
        zipped.writestr("runs/1/config.yaml", "model: /etc\npretrained: null\nclasses: [a]\n")
        zipped.writestr("runs/1/adapter.safetensors", b"no adapter")
        zipped.writestr("runs/1/evil.py", "print(1)")
    token, notes = open_project(workspace, tmp_path / "evil.zip", "evil.zip")
    assert workspace.classes == ["hat"] and len(workspace.pictures()) == 1
    assert workspace.project.runs == []
    assert any("Run 1 was left out" in note for note in notes)
    assert any("b.sh was left out" in note for note in notes)
    assert not any(str(tmp_path) in note for note in notes)
    assert not list(tmp_path.rglob("*.sh")) and not list(tmp_path.rglob("evil.py"))
    workspace.undo(token)
    assert workspace.classes == ["bird"] and len(workspace.pictures("bird")) == 2


def test_a_run_in_a_project_may_not_have_a_path_as_its_id(workspace, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        runs = [{"id": "../../x", "number": 1}]
        zipped.writestr("project.json", json.dumps({"classes": [], "runs": runs}))
    with pytest.raises(cr.UserError, match="not a project of this version"):
        open_project(workspace, tmp_path / "evil.zip", "evil.zip")


def test_a_project_comes_back_as_it_was(workspace, tmp_path):
    add(workspace, "bird", range(6))
    add(workspace, "fruit", range(6))
    workspace.set_class("fruit", ["ripe fruit"], False)
    workspace.set_templates(["a drawing of a {}."])
    workspace.add_images(None, [Upload(drawing("tool", 1), "tool.webp")])
    add(workspace, "tool", range(3))
    workspace.data("first")
    archive = save_project(workspace)
    assert archive.name == "bird-fruit-tool.zip"
    other = Workspace(tmp_path / "other", Settings(folder=tmp_path))
    token, notes = open_project(other, archive, "mine.zip")
    assert token == "" and notes == []
    assert other.project == workspace.project
    for name in workspace.classes:
        assert split(other, name) == split(workspace, name)
        for ours, theirs in zip(workspace.pictures(name), other.pictures(name), strict=True):
            assert ours.path.read_bytes() == theirs.path.read_bytes()
    assert len(other.unsorted()) == 1


def test_estimates_learn_from_what_trainings_took(tmp_path):
    estimates = Estimates(tmp_path / "speed.json")
    config = cr.TrainConfig(steps=10)
    assert estimates.seconds("lite0", "lora", config, 20, 0) is None
    estimates.record("lite0", "lora", steps=50, images=32, seconds=160.0)  # 0.1 s an image
    again = Estimates(tmp_path / "speed.json")
    assert again.seconds("lite0", "lora", config, 20, 0) == pytest.approx(10 * 20 * 0.1 + 3)
    assert again.seconds("lite0", "lora", config, 100, 0) == pytest.approx(10 * 32 * 0.1 + 3)


def test_two_adapters_on_the_same_weights():
    """`Model.share_weights`: each adapter changes its own network; the tensors are there once."""
    model = cr.load_model("lite0", device="cpu")
    first, second = model.share_weights(), model.share_weights()
    adapters = [
        cr.attach(each.net, cr.LoRA(rank=1, towers=("text",), targets=("q",)))
        for each in (first, second)
    ]
    assert len(adapters) == 2
    ours = {t.data_ptr() for t in model.net.parameters()}
    for each in (first, second):
        shared = [t for t in each.net.parameters() if t.data_ptr() in ours]
        assert len(shared) == len(list(model.net.parameters()))
    assert not any("parametrizations" in name for name in model.net.state_dict())
    image = Image.new("RGB", (64, 64), "red")
    features = {
        float(each.net.encode_image(each.preprocess(image)[None]).sum())
        for each in (model, first, second)
    }
    assert len(features) == 1


def test_the_docs_name_every_endpoint(tmp_path):
    """`docs/app.md` and the README, in the order and with the arguments of the app."""
    from helpers.interface import endpoints

    from clip_randlora.app.page import build
    from clip_randlora.app.service import Service

    root = Path(cr.__file__).parents[1]
    said = (root / "docs/app.md").read_text(encoding="utf-8")
    said += (root / "README.md").read_text(encoding="utf-8")
    rows = {
        name: re.findall(r"`(\w+)`", args)
        for name, args in re.findall(r"(?m)^\| `(/\w+)` \| ([^|]*)\|", said)
    }
    asked = endpoints(build(Service(Settings(folder=tmp_path))))
    assert rows.keys() == asked.keys()
    for name, parameters in asked.items():
        named = [word for word in rows[name] if word in parameters]
        assert named == parameters, name


def test_a_photo_of_a_phone_is_read_or_named_in_words_for_the_page(
    workspace, tmp_path, monkeypatch
):
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "photo.heic")
    photo = Upload(tmp_path / "photo.heic", "photo.heic")
    assert workspace.add_images("hat", [photo]).images == 1
    (picture,) = workspace.pictures("hat")
    small = Image.open(workspace.thumbnails.path(picture))
    assert small.getpixel((9, 9))[0] > 200
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as without the extra
    (left_out,) = workspace.add_images("shoe", [photo]).skipped
    assert left_out.reason == "a HEIC image; convert it to JPEG"
