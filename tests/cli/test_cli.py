"""The command as a user runs it: its arguments, its output and its exit status."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import forks
from helpers.commands import command, process
from helpers.crash import OFTEN
from helpers.images import COLORS, write_colors
from PIL import Image


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 8})


@pytest.fixture(scope="module")
def run(tiny_folder, colors, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "colors"
    done = command(
        "train", colors, "--model", tiny_folder, "--shots", 4, "--steps", 30, "--rank", 4,
        "--learning-rate", 0.01, "--out", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Saved to {folder}" in done.stdout
    assert "held out" in done.stderr.lower()
    assert "trainable parameters" in done.stderr  # what is adapted is listed
    assert "on cpu" in done.stderr
    return folder


def recorded(run: Path) -> list[dict[str, str]]:
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.alone
def test_help_answers_within_a_second():
    process("--help")
    start = time.perf_counter()
    done = process("--help")
    took = time.perf_counter() - start
    assert done.returncode == 0
    for name in ("demo", "train", "eval", "predict", "models", "datasets"):
        assert name in done.stdout
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, clip_randlora.cli; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert imported.strip() == "False"
    assert took < 3  # a second on an idle machine; slack for a busy one


def test_predict_repeats_the_recorded_probabilities(run, colors):
    rows = recorded(run)
    images = [colors / row["image"] for row in rows]
    done = forks.run_command("predict", run, *images, "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["image"] for answer in answers] == [str(image) for image in images]
    for answer, row in zip(answers, rows, strict=True):
        for which in ("zero_shot", "tuned"):
            for name in COLORS:
                assert answer[which][name] == pytest.approx(
                    float(row[f"{which}: {name}"]), abs=1e-5
                )


def test_eval_repeats_the_recorded_metrics(run, colors):
    done = forks.run_command("eval", run, colors, "--json")
    assert done.returncode == 0, done.stderr
    got, metrics = json.loads(done.stdout), json.loads((run / "metrics.json").read_text())
    assert got["images"] == metrics["images"]["test"] == 6
    for which in ("zero_shot", "tuned"):
        assert got[which]["top1"] == metrics[which]["top1"]
        assert got[which]["ece"] == pytest.approx(metrics[which]["ece"], abs=1e-5)
    by_name = {row["image"]: row for row in recorded(run)}
    for answer in got["predictions"]:
        row = by_name[answer["image"]]
        assert answer["tuned"]["red"] == pytest.approx(float(row["tuned: red"]), abs=1e-5)


def test_eval_on_new_images_uses_all_of_them(run, tmp_path):
    for name in ("blue", "red"):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 40), COLORS[name]).save(tmp_path / "new" / name / f"{number}.png")
            Image.new("RGB", (40, 41), COLORS[name]).save(
                tmp_path / "new" / name / f"x{number}.png"
            )
    done = command("eval", run, tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 8


def test_eval_on_unknown_classes_is_an_error(run, tmp_path):
    for name in ("blue", "purple"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 40 + number)).save(tmp_path / name / f"{number}.png")
    done = command("eval", run, tmp_path)
    assert done.returncode == 2
    assert "does not know the class 'purple'; it knows blue, green, red" in done.stderr


def test_strength_and_figure(run, colors, tmp_path, fine_figures):
    image = colors / recorded(run)[0]["image"]
    done = command("predict", run, image, "--strength", 0, "--json", "--figure", tmp_path / "f.png")
    (answer,) = json.loads(done.stdout)
    assert answer["zero_shot"] == answer["tuned"]
    assert Image.open(tmp_path / "f.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "Missing argument 'DATA'"),
        (["train", "nowhere", "--out", "r"], "nowhere"),
        (["train", "clipart", "--out", "r", "--shots", "some"], "--shots some"),
        (["train", "clipart", "--out", "r", "--method", "oft"], "method"),
        (["train", "clipart", "--out", "r", "--rank", "0"], "rank"),
        (["train", "clipart", "--out", "r", "--template", "a photo"], "write {} once"),
        (["train", "clipart", "--out", "r", "--config", "none.yaml"], "none.yaml"),
        (["train", "clipart", "--out", "r", "--device", "quantum"], "device quantum"),
        (["predict", "nowhere", "image.png"], "nowhere: not a run folder"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_an_unreadable_image_is_named(run, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    done = command("predict", run, tmp_path / "broken.jpg")
    assert done.returncode == 2
    assert "broken.jpg" in done.stderr


@pytest.mark.slow
def test_the_choice_of_class_folders_stays_with_the_run(colors, tiny_folder, tmp_path):
    nested, out = tmp_path / "nested", tmp_path / "run"
    for name, group in {"red": "warm", "blue": "cold", "green": "cold"}.items():
        shutil.copytree(colors / name, nested / group / name)
    arguments = ("train", nested, "--model", tiny_folder, "--shots", 2, "--steps", 1, "--out", out)
    done = command(*arguments, "--class-folders", "leaves")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["classes"] == ["blue", "green", "red"]
    assert config["data"]["class_folders"] == "leaves"
    answer = json.loads(command("eval", out, nested, "--json").stdout)
    assert {row["label"] for row in answer["predictions"]} == {"blue", "green", "red"}
    done = command("eval", out, nested, "--class-folders", "top")
    assert done.returncode == 2
    assert "the run does not know the class 'cold'" in done.stderr
    (out / "metrics.json").unlink()
    done = command(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    done = command(*arguments[:-1], tmp_path / "other", "--class-folders", "middle")
    assert (done.returncode, done.stderr) == (
        2, "error: --class-folders middle: give top or leaves\n"
    )  # fmt: skip


def test_settings_from_a_file_and_from_a_run(run, colors, tiny_folder, tmp_path):
    done = command(
        "train", colors, "--model", tiny_folder, "--config", run / "config.yaml",
        "--steps", 2, "--out", tmp_path / "again",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["shots"]) == (2, 4)
    (tmp_path / "bad.yaml").write_text("shots: 4\nlearning_rat: 1\n")
    done = command("train", colors, "--config", tmp_path / "bad.yaml", "--out", tmp_path / "never")
    assert done.returncode == 2
    assert "learning_rat" in done.stderr


def test_ctrl_c_saves_and_resume_finishes(colors, tiny_folder, tmp_path):
    arguments = [
        "train", str(colors), "--model", str(tiny_folder), "--shots", "4", "--steps", "120",
        "--rank", "4", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    training = forks.of_the_package().start(OFTEN, arguments)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert training.poll() is None, training.communicate()
        time.sleep(0.02)
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("interrupted after step") and "--resume" in last
    assert "Traceback" not in errors
    done = command(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 120
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_datasets_and_models_are_listed():
    assert "clipart" in command("datasets").stdout
    listed = command("models").stdout
    assert "lite0" in listed
    assert "ViT-B-32" in listed


def test_train_shows_the_prompts_before_it_trains(tiny_folder, tmp_path):
    colors = {f"{n:02}_{name}": (20 * n, 9, 9) for n, name in enumerate("abcdef")}
    data = write_colors(tmp_path / "data", {"train": 1, "test": 1}, colors)
    options = ["train", data, "--model", tiny_folder, "--method", "zero_shot", "--out"]
    done = command(*options, tmp_path / "few")
    assert done.returncode == 0, done.stderr
    assert "  00_a: a photo of a a.\n" in done.stderr and "05_f" not in done.stderr
    assert "and 2 more classes (--prompts shows all)" in done.stderr
    both = ["--template", "a {}.", "--template", "the {}."]
    done = command(*options, tmp_path / "all", *both, "--prompts")
    for number, name in enumerate("abcdef"):
        assert f"  0{number}_{name}: a {name}. | the {name}.\n" in done.stderr


def test_train_refuses_two_classes_with_one_prompt(tiny_folder, tmp_path):
    data = write_colors(tmp_path / "data", {"": 2}, {"Cat": (9, 9, 9), "cat_": (200, 9, 9)})
    done = command("train", data, "--model", tiny_folder, "--out", tmp_path / "run")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "error: the classes 'Cat' and 'cat_' have the same prompt" in done.stderr
