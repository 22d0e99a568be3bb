"""Images of none of the classes: the score, its threshold, and who says so."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import command
from helpers.images import write_classes, write_colors

import clip_randlora as cr
from clip_randlora.clip.none_of_these import is_none_of_these
from clip_randlora.confidence.unknown import detection, lower_quantile, margins, nearest

FAST = {"method": cr.RandLoRA(rank=4), "steps": 20, "batch_size": 12, "learning_rate": 1e-2}


def test_the_scores_terms_by_hand():
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(margins(logits), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(margins(logits.log_softmax(1)), margins(logits))
    features = torch.eye(3)[[0, 1, 0]]
    assert nearest(features, torch.eye(3)[:1]).tolist() == [1, 0, 1]
    assert nearest(features, features, same=True).tolist() == [1, 0, 1]  # the copy, not itself


def test_detection_by_hand():
    known, unknown = torch.tensor([0.9, 0.8, 0.4]), torch.tensor([0.5, 0.1])
    # of the six pairs only (0.4, 0.5) is the wrong way round; all known reach 0.4
    assert detection(known, unknown) == pytest.approx({"auroc": 5 / 6, "fpr95": 1 / 2})
    assert lower_quantile(torch.arange(100.0), 0.95) == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_background", True),
        ("none of these", True),
        ("None_of_the_above", True),
        ("__none-of-them__", True),
        ("background", False),
        ("nun of these", False),
        ("stones of these", False),
    ],
)
def test_the_names_of_the_class(name, expected):
    assert is_none_of_these(name) is expected


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "colors"
    write_colors(root, {"train": 6, "test": 4})
    return root


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Images of none of the classes: noise of all colours."""
    return write_classes(tmp_path_factory.mktemp("noise"), ["any"], images=6) / "any"


@pytest.fixture(scope="module")
def run(tiny_folder, colors, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    cr.fit(cr.load_model(str(tiny_folder)), cr.load_data(colors), cr.TrainConfig(**FAST), out)
    return out


def test_predict_says_unknown(run, colors, noise):
    classifier = cr.Classifier.load(run)
    plain = classifier.predict(colors / "test")
    answers = classifier.predict(colors / "test", reject=True)
    assert [{k: v for k, v in answer.items() if k != "unknown"} for answer in answers] == plain
    # the network is random, so what a head says of the encoders is far from right
    assert sum(answer["unknown"] for answer in answers) <= 6  # of 12
    assert all(answer["unknown"] for answer in classifier.predict(noise, reject=True))
    both = classifier.predict([noise, colors / "test"], reject=True)
    assert both[6:] == answers


def test_a_run_without_a_threshold_says_so(run, noise, tmp_path):
    old = shutil.copytree(run, tmp_path / "run")
    (old / "confidence.safetensors").unlink()
    with pytest.raises(cr.UserError, match="reject: the run has no threshold"):
        cr.Classifier.load(old).predict(noise, reject=True)
    with pytest.raises(cr.UserError, match="reject: the run has no threshold"):
        cr.label_images(cr.Classifier.load(old), noise, reject=True)
    (old / "confidence.safetensors").write_bytes(b"no tensors")
    with pytest.raises(cr.UserError, match=r"confidence\.safetensors: damaged"):
        cr.Classifier.load(old)


def test_the_commands_say_unknown_and_how_well(run, colors, noise, tmp_path):
    answers = json.loads(command("predict", run, noise, "--reject", "--json").stdout)
    assert [answer["unknown"] for answer in answers] == [True] * 6
    command("predict", run, noise, "--reject", "--csv", tmp_path / "answers.csv")
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    assert [row["unknown"] for row in rows] == ["true"] * 6
    assert "unknown" not in json.loads(command("predict", run, noise, "--json").stdout)[0]

    answered = tmp_path / "labels.csv"
    done = command(
        "label", run, noise, "--reject", "--csv", answered, "--into", tmp_path / "in", "--next", 1
    )
    assert (done.returncode, "none of these" in done.stdout) == (0, True), done.stderr
    rows = list(csv.DictReader(answered.open()))
    assert [(row["label"], row["answer"]) for row in rows] == [("", "unknown")] * 6
    assert not list((tmp_path / "in").glob("*/*"))
    command("label", run, noise, "--csv", tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert all(row["label"] == row["answer"] != "unknown" for row in rows) and len(rows) == 6

    both = tmp_path / "both"
    shutil.copytree(colors / "test", both)
    plain = json.loads(command("eval", run, both, "--json").stdout)
    shutil.copytree(noise, both / "none of these")
    metrics = json.loads(command("eval", run, both, "--json").stdout)
    assert metrics["none_of_these"]["images"] == 6
    assert metrics["none_of_these"]["rejected"] == metrics["none_of_these"]["auroc"] == 1
    assert metrics["tuned"] == plain["tuned"]
    assert "none_of_these" not in plain


def test_a_folder_none_of_these_is_a_class_whose_answer_is_unknown(tiny, colors, noise, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(colors, data)
    for split in ("train", "test"):
        (data / split / "_background").mkdir()
        for number, file in enumerate(sorted(noise.iterdir())):
            if (split == "train") == (number < 4):
                shutil.copy(file, data / split / "_background" / file.name)
    run = cr.fit(tiny, cr.load_data(data), cr.TrainConfig(**FAST), tmp_path / "run")
    assert run.text.classes[0] == "_background"
    run.adapter.detach()
    classifier = cr.Classifier.load(tmp_path / "run")
    (answer, *_) = classifier.predict(data / "test" / "_background", reject=True)
    assert next(iter(answer["tuned"])) == "_background"
    assert answer["unknown"]
    prompts = cr.read_task(tmp_path / "run").prompts["_background"]
    assert "a photo of a thing." in prompts and len(prompts) > 1
