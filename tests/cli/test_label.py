"""The command label: a run or class names, and images without labels."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import command
from helpers.images import write_colors


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 4, "test": 2})


@pytest.fixture(scope="module")
def run(tiny_folder, colors, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "colors"
    done = command(
        "train", colors, "--model", tiny_folder, "--method", "anchored_head", "--out", folder
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def photos(colors, tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((colors / "test").rglob("*.png"))):
        shutil.copy(path, folder / f"{number}.png")
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_class_folders_and_what_to_label_next(run, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    done = command(
        "label", run, photos, "--csv", tmp_path / "out.csv", "--into", tmp_path / "sorted",
        "--next", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "broken.png" in done.stderr and "1 of 7 images could not be read" in done.stderr
    rows = read(tmp_path / "out.csv")
    assert {Path(row["image"]).name for row in rows} == {f"{number}.png" for number in range(6)}
    in_order = [float(row["probability"]) for row in rows]
    assert in_order == sorted(in_order, reverse=True)
    assert sorted(row["label_next"] for row in rows) == [""] * 4 + ["1", "2"]
    for row in rows:
        assert (tmp_path / "sorted" / row["label"] / Path(row["image"]).name).is_file()
    assert "label next" in done.stdout
    assert "6 images copied" in done.stderr

    done = command("label", run, photos, "--into", tmp_path / "sorted")
    assert done.returncode == 0 and "6 were there before" in done.stderr
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 6


def test_the_folder_itself_is_not_sorted_again(run, photos):
    for _ in range(2):
        done = command("label", run, photos, "--into", photos / "sorted", "--link")
        assert done.returncode == 0, done.stderr
    assert "Left out 6 images" in done.stderr
    assert len(list((photos / "sorted").rglob("*.png"))) == 6


def test_below_the_line_no_folder_but_a_row(run, photos, tmp_path):
    done = command(
        "label", run, photos, "--csv", tmp_path / "o.csv", "--into", tmp_path / "s", "--move",
        "--above", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "o.csv")) == 6 == len(list(photos.iterdir()))
    assert "below 1" in done.stdout and not list((tmp_path / "s").rglob("*.png"))


def test_json_has_every_answer_and_the_counts(run, photos):
    (photos / "broken.png").write_bytes(b"no image")
    done = command("label", run, photos, "--json", "--next", 1)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["classes"] == ["blue", "green", "red"]
    assert sum(answer["counts"].values()) == len(answer["images"]) == 6
    assert [image["label_next"] for image in answer["images"]].count(1) == 1
    assert all(image["label"] == image["answer"] for image in answer["images"])
    assert len(answer["errors"]) == 1 and "broken.png" in answer["errors"][0]


def test_classes_without_training(tiny_folder, photos, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("\ufeffblue thing\n\nred, green\n", encoding="utf-8")
    for number, classes in enumerate((names, "blue thing,red")):
        out = tmp_path / f"{number}.csv"
        done = command("label", photos, "--classes", classes, "--model", tiny_folder, "--csv", out)
        assert done.returncode == 0, done.stderr
        known = {"blue thing", "red, green" if number == 0 else "red"}
        assert {row["label"] for row in read(out)} <= known and len(read(out)) == 6


def test_labelled_images_of_the_run_or_of_data(run, photos, colors, tmp_path):
    mine = command("label", run, photos, "--next", 1)
    assert mine.returncode == 0 and "not found" not in mine.stderr
    given = command("label", run, photos, "--next", 1, "--labelled", colors / "train")
    assert given.stdout == mine.stdout
    shutil.copytree(run, tmp_path / "run")
    config = (tmp_path / "run/config.yaml").read_text().replace(str(colors), "/gone")
    (tmp_path / "run/config.yaml").write_text(config)
    done = command("label", tmp_path / "run", photos, "--next", 1)
    assert done.returncode == 0 and "training images are not found" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to do"),
        (["--next", 1, "--link"], "--into FOLDER"),
        (["--into", "s", "--link", "--move"], "give one of them"),
        (["--csv", "exists.csv"], "exists; choose another"),
        (["--next", 1, "--classes", "hat"], "at least two are needed"),
        (["--next", 1, "--above", 2], "--above"),
    ],
)
def test_one_line_for_a_mistake(photos, tmp_path, monkeypatch, tiny_folder, options, said):
    monkeypatch.chdir(tmp_path)
    Path("exists.csv").touch()
    if "--classes" not in options:
        options = [*options, "--classes", "a,b"]
    done = command("label", photos, *options, "--model", tiny_folder)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_run_is_needed_or_classes(run, photos):
    done = command("label", photos, "--next", 1)
    assert done.returncode == 2 and "not a run folder" in done.stderr
    done = command("label", run, photos, "--classes", "a,b", "--next", 1)
    assert done.returncode == 2 and "leave out the run or --classes" in done.stderr
    done = command("label", run, "--next", 1)
    assert done.returncode == 2 and "no images given" in done.stderr
