"""What a run was trained on never counts as a test image, whatever becomes of the folder."""

import csv
import hashlib
import json
import shutil
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.images import COLORS, write_colors
from PIL import Image

import clip_randlora as cr
from clip_randlora import cli
from clip_randlora.training.cache import Cache

PER_CLASS, SHOTS, HELD_OUT = 8, 4, 2  # of each of three classes; 2 are neither drawn nor held out


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("photos"), {"": PER_CLASS})


@pytest.fixture(scope="module")
def run(photos, tiny_folder, tmp_path_factory) -> Path:
    return fit(tiny_folder, photos, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copy(photos, tmp_path) -> Path:
    """The training folder in another place, to change."""
    return Path(shutil.copytree(photos, tmp_path / "moved"))


def settings(**more) -> cr.TrainConfig:
    method = {"method": "lora", "rank": 1, "targets": ["q"]}
    return cr.TrainConfig(**{"method": method, "shots": SHOTS, "steps": 2, **more})


def fit(model_folder: Path, data: Path, out: Path, test: Path | None = None, **more) -> Path:
    source = {"data": str(data), "test": test and str(test)}
    model = cr.load_model(str(model_folder))
    cr.fit(model, cr.load_data(data, test), settings(**more), out, source=source)
    return out


def recorded(run: Path, *uses: str) -> list[dict[str, str]]:
    with open(run / "images.csv", newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["use"] in uses]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def digests(images: cr.CountedImages) -> Counter:
    return Counter(item.digest()[:32] for item in images.split)


def held_out(run: Path) -> Counter:
    return Counter(row["digest"] for row in recorded(run, "held out"))


def names(run: Path, use: str, class_name: str) -> list[str]:
    return [row["image"] for row in recorded(run, use) if row["class"] == class_name]


def evaluate(capsys, *arguments) -> tuple[int, dict, str]:
    """Run ``eval``: its status, its JSON and what it said beside."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["clip-randlora", "eval", *map(str, arguments), "--json"])
        patch.setattr(cli.messages, "_width", 200)
        cli.main()
    printed = capsys.readouterr()
    return ended.value.code, json.loads(printed.out or "{}"), printed.err


def test_a_run_records_the_content_of_its_images(run, photos):
    trained, tested = recorded(run, "trained"), recorded(run, "held out")
    assert (len(trained), len(tested)) == (3 * SHOTS, 3 * HELD_OUT)
    for row in [*trained, *tested]:
        assert row["image"].startswith(row["class"] + "/")
        assert row["digest"] == digest(photos / row["image"])
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [row["image"] for row in tested]
    assert not {row["digest"] for row in trained} & {row["digest"] for row in tested}


def test_eval_on_the_training_folder_repeats_the_metrics(run, photos, capsys):
    status, got, said = evaluate(capsys, run, photos)
    metrics = json.loads((run / "metrics.json").read_text())
    assert status == 0
    assert (got["images"], got["left_out"], got["others_left_out"]) == (6, 12, 6)
    assert got["tuned"]["top1"] == metrics["tuned"]["top1"]
    assert "Counted 6 of the 6 images that the run held out." in said
    assert "Left out 12 images that the run was trained on (--count all counts them)." in said
    assert "neither trained on nor held out (--count unseen counts them)." in said
    status, got, said = evaluate(capsys, run, photos, "--count", "unseen")
    assert (got["images"], got["left_out"], got["others_left_out"]) == (12, 12, 0)
    status, got, said = evaluate(capsys, run, photos, "--count", "all")
    assert (got["images"], got["left_out"], got["others_left_out"]) == (24, 0, 0)
    assert "The run was trained on 12 of these 24 images" in said
    status, got, said = evaluate(capsys, run, photos, "--count", "some")
    assert status == 2 and "error: --count some: choose held-out, unseen, all" in said


def add_images(folder: Path, run: Path) -> None:
    write_colors(folder / "more", {"": 1}, {"red": (250, 0, 0), "blue": (0, 0, 250)})
    for name in ("red", "blue"):
        (folder / "more" / name / "0.png").rename(folder / name / "00 first.png")
        (folder / "more" / name).rmdir()
    (folder / "more").rmdir()


def copy_trained(folder: Path, run: Path) -> None:
    shutil.copy(folder / names(run, "trained", "red")[0], folder / "red" / "another name.png")
    shutil.copy(folder / names(run, "trained", "red")[0], folder / "blue" / "0 wrong class.png")


def copy_held_out(folder: Path, run: Path) -> None:
    shutil.copy(folder / names(run, "held out", "red")[0], folder / "blue" / "0.copy.png")


def delete_trained(folder: Path, run: Path) -> None:
    for name in COLORS:
        (folder / names(run, "trained", name)[0]).unlink()


def delete_others(folder: Path, run: Path) -> None:
    known = {row["image"] for row in recorded(run, "trained", "held out")}
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).as_posix() not in known:
            path.unlink()


def rename(folder: Path, run: Path) -> None:
    for name in COLORS:  # 0.png gets the name of 7.png, and so on
        for path in list((folder / name).iterdir()):
            path.rename(path.with_name(f"{PER_CLASS - 1 - int(path.stem)} new.png"))
        for path in list((folder / name).iterdir()):
            path.rename(path.with_name(path.name.replace(" new", "")))


def archive(folder: Path, run: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as zipped:
        for path in folder.rglob("*.png"):
            zipped.write(path, f"inside/{path.relative_to(folder).as_posix()}")
    return folder.with_suffix(".zip")


@pytest.mark.parametrize(
    ("change", "left_out", "others"),
    [
        (lambda folder, run: None, 12, 6),
        (add_images, 12, 8),
        (copy_trained, 14, 6),
        (copy_held_out, 12, 7),
        (delete_trained, 9, 6),
        (delete_others, 12, 0),
        (rename, 12, 6),
        (archive, 12, 6),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_same_images_count_whatever_became_of_the_folder(run, copy, change, left_out, others):
    source = change(copy, run) or copy
    found = cr.find_test_images(run, source)
    assert digests(found) == held_out(run)
    assert (found.left_out, found.others_left_out) == (left_out, others)
    home = {row["digest"]: row["class"] for row in recorded(run, "held out")}
    classes = cr.read_task(run).classes
    assert all(classes[i.label] == home[i.digest()[:32]] for i in found.split)


def test_what_is_left_of_the_held_out_images_is_counted(run, copy):
    gone = names(run, "held out", "green")[0]
    (copy / gone).unlink()
    found = cr.find_test_images(run, copy)
    assert len(found.split) == 5 and gone not in {item.name for item in found.split}
    assert "Counted 5 of the 6 images that the run held out." in found.notes


def test_some_of_the_classes(run, photos, copy, capsys, tmp_path):
    status, got, _ = evaluate(capsys, run, photos / "red")  # the folder is the class
    assert status == 0 and list(got["per_class"]) == ["red"]
    assert (got["images"], got["left_out"]) == (HELD_OUT, SHOTS)
    shutil.rmtree(copy / "blue")
    assert len(cr.find_test_images(run, copy).split) == 2 * HELD_OUT
    shutil.rmtree(copy / "green")  # a folder with one class folder
    found = cr.find_test_images(run, copy)
    assert {item.name.split("/")[0] for item in found.split} == {"red"}
    (tmp_path / "red").mkdir()
    for number in range(2):  # new images, in folders below the class
        path = tmp_path / "red" / f"day {number}" / "1.png"
        path.parent.mkdir()
        Image.new("RGB", (40, 40 + number), COLORS["red"]).save(path)
    found = cr.find_test_images(run, tmp_path / "red")
    assert (len(found.split), found.left_out, found.others_left_out) == (2, 0, 0)
    status, _, said = evaluate(capsys, run, tmp_path / "red" / "day 0")
    assert status == 2 and said.startswith("error: ") and "no class folders" in said


def test_a_run_with_test_images_of_its_own(photos, tiny_folder, tmp_path, capsys):
    write_colors(tmp_path / "test", {"": 2}, {n: (c[2], c[0], c[1]) for n, c in COLORS.items()})
    shots = fit(tiny_folder, photos, tmp_path / "shots", tmp_path / "test")
    assert len(recorded(shots, "tested")) == 6 and not recorded(shots, "held out")
    found = cr.find_test_images(shots, photos)
    assert (len(found.split), found.left_out) == (3 * (PER_CLASS - SHOTS), 3 * SHOTS)
    shutil.copy(photos / names(shots, "trained", "red")[0], tmp_path / "test" / "red" / "x.png")
    found = cr.find_test_images(shots, tmp_path / "test")
    assert (len(found.split), found.left_out, found.others_left_out) == (6, 1, 0)


def test_a_folder_of_training_images_alone_is_refused(run, copy, capsys):
    known = {row["image"] for row in recorded(run, "trained")}
    for path in copy.rglob("*.png"):
        if path.relative_to(copy).as_posix() not in known:
            path.unlink()
    status, _, said = evaluate(capsys, run, copy)
    assert status == 2
    assert said.strip() == (
        f"error: {copy}: the run was trained on every image there (12); give others, or count "
        f"them with --count all"
    )
    assert evaluate(capsys, run, copy, "--count", "all")[1]["images"] == 12


def test_of_a_test_split_only_what_was_trained_on_is_left_out(run, photos, tmp_path):
    write_colors(tmp_path / "set", {"train": 1})
    for name in COLORS:
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        for use in ("trained", "held out"):
            shutil.copy(photos / names(run, use, name)[0], tmp_path / "set" / "test" / name)
        Image.new("RGB", (40, 40), COLORS[name]).save(tmp_path / "set" / "test" / name / "x.png")
    found = cr.find_test_images(run, tmp_path / "set")
    assert (len(found.split), found.left_out, found.others_left_out) == (6, 3, 0)


def test_an_unreadable_image_is_named(run, copy):
    (copy / "red" / "broken.png").write_bytes(b"no image")
    found = cr.find_test_images(run, copy)
    assert [entry.name for entry in found.skipped] == ["red/broken.png"]
    assert digests(found) == held_out(run)


def test_a_run_without_a_record_says_so(run, photos, copy, capsys, tmp_path):
    old = Path(shutil.copytree(run, tmp_path / "old"))
    (old / "images.csv").unlink()
    status, got, said = evaluate(capsys, old, photos)
    assert (status, got["images"], got["left_out"]) == (0, 6, None)
    assert "There is no images.csv beside the run's adapter" in said
    assert len(cr.find_test_images(old, copy).split) == 24  # another folder, as far as it knows
    alone = Path(shutil.copy(run / "adapter.safetensors", tmp_path / "a.safetensors"))
    assert cr.find_test_images(alone, copy).left_out is None
    assert cr.find_test_images(run / "adapter.safetensors", copy).left_out == 12


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "use,class,image,digest\ntrained,red,red/1.png,12\n"]
)
def test_a_damaged_record_is_refused(run, photos, text, tmp_path):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "images.csv").write_text(text)
    with pytest.raises(cr.UserError, match=r"images\.csv: damaged"):
        cr.find_test_images(broken, photos)


def interrupted(model_folder: Path, data: cr.Data, out: Path, **more) -> None:
    def stop(step) -> None:
        if step.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(cr.Interrupted):
        cr.fit(cr.load_model(str(model_folder)), data, settings(**more), out, on_step=stop)


def test_resuming_keeps_the_images_that_the_run_began_with(run, copy, tiny_folder, tmp_path):
    unreadable = copy / names(run, "trained", "red")[1]
    whole = unreadable.read_bytes()
    unreadable.write_bytes(whole[: len(whole) // 2])  # its header is in order: drawn, then replaced
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(copy)
    straight = cr.fit(model, data, settings(), tmp_path / "straight")
    interrupted(tiny_folder, data, tmp_path / "run")
    before = (tmp_path / "run" / "images.csv").read_bytes()
    assert before == (tmp_path / "straight" / "images.csv").read_bytes()
    add_images(copy, run)
    delete = names(tmp_path / "run", "held out", "blue")[0]
    (copy / delete).unlink()
    (copy / names(tmp_path / "run", "trained", "blue")[0]).rename(copy / "blue" / "renamed.png")
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(copy)
    resumed = cr.fit(model, data, settings(), tmp_path / "run", resume=True)
    for name, tensor in straight.adapter.named_parameters():
        assert torch.equal(tensor, dict(resumed.adapter.named_parameters())[name])
    assert resumed.predictions.names == [n for n in straight.predictions.names if n != delete]
    assert "The held-out images are those that the run began with (5 of 6 are there)." in (
        resumed.notes
    )
    assert not any("No test split" in note for note in resumed.notes)
    skipped = [entry.name for entry in resumed.skipped]
    assert skipped == [unreadable.relative_to(copy).as_posix()]
    assert (tmp_path / "run" / "images.csv").read_bytes() == before


def test_resuming_without_a_training_image_is_refused(copy, tiny_folder, tmp_path):
    interrupted(tiny_folder, cr.load_data(copy), tmp_path / "run")
    gone = names(tmp_path / "run", "trained", "red")[2]
    (copy / gone).unlink()
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(copy)
    with pytest.raises(cr.UserError, match=f"cannot resume, .*{gone} is missing or changed"):
        cr.fit(model, data, settings(), tmp_path / "run", resume=True)


def test_images_in_memory_are_known_by_their_pixels_and_read_once(tiny_folder, tmp_path):
    model, data = cr.load_model(str(tiny_folder)), cr.load_data("digits")
    data = replace(data, test=replace(data.test, items=data.test.items[::30]))  # to be quick
    cache = Cache(model, data)
    for seed in (1, 2):
        out = tmp_path / f"{seed}"
        cr.fit(model, data, settings(seed=seed, shots=1), out, cache=cache).adapter.detach()
    one, two = (recorded(tmp_path / seed, "trained") for seed in ("1", "2"))
    assert len(one) == len(two) == 10 and one != two
    assert recorded(tmp_path / "1", "held out") == recorded(tmp_path / "2", "held out")
    items = {item.name: item for item in data.train}
    assert all(items[row["image"]].digest()[:32] == row["digest"] for row in [*one, *two])
    found = cr.find_test_images(tmp_path / "2", "digits")
    assert [item.name for item in found.split] == [item.name for item in data.test]
    assert found.left_out >= 10


def test_of_a_published_set_the_training_images_are_recorded(tiny_folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])}
    )
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 2)):
        rows = [
            {"image": Image.new("RGB", (40, 40 + n), COLORS[name]), "label": name}
            for name in ("red", "blue")
            for n in range(count)
        ]
        made = datasets.Dataset.from_list(rows, features=kinds)
        made.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "set.yaml").write_text("name: set\nhub: ./hub\ntrain: train\ntest: test\n")
    fit(tiny_folder, tmp_path / "set.yaml", tmp_path / "run", shots=3)
    assert len(recorded(tmp_path / "run", "trained")) == 6
    assert not recorded(tmp_path / "run", "tested", "held out")
    with pytest.raises(cr.UserError, match="trained on every image there"):
        cr.find_test_images(tmp_path / "run", tmp_path / "set.yaml")  # all test images are copies


def test_the_app_shows_held_out_images_by_their_content(photos, run, tmp_path):
    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.run_results import results
    from clip_randlora.app.uploads import Upload
    from clip_randlora.app.workspace import Workspace

    workspace = Workspace(tmp_path / "mine", Settings(folder=tmp_path))
    for name in COLORS:
        files = [Upload(file, file.name) for file in sorted((photos / name).iterdir())]
        workspace.add_images(name, files)
    shutil.copytree(run, workspace.folder / "runs" / "1")
    workspace = Workspace(workspace.folder, workspace.settings)

    def shown() -> Counter:
        found = [row["number"] for row in results(workspace, None)["images"]]
        here = [workspace.picture(number).path for number in found if number is not None]
        return Counter(map(digest, here))

    assert shown() == held_out(run)
    removed = next(row["number"] for row in results(workspace, None)["images"])
    gone = digest(workspace.picture(removed).path)
    workspace.remove_images([removed])
    another = photos / names(run, "trained", "red")[0]
    workspace.add_images("red", [Upload(another, "under its name.png")])
    assert shown() == held_out(run) - Counter([gone])
