"""Sweeps that test on further classes: base-to-novel, other data sets, shifted ImageNets."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers.images import write_classes, write_colors

import clip_randlora as cr
from clip_randlora import cli
from clip_randlora.data import select_classes
from clip_randlora.errors import UserError
from clip_randlora.sweep import SweepFolder, read_sweep, run_sweep

CLASSES = {"ant": (20, 20, 20), "bee": (220, 200, 40), "cat": (150, 90, 40), "dog": (90, 60, 30)}
BASE, NOVEL = ("ant", "bee"), ("cat", "dog")
LORA = "tiny--beasts--lora--2-shots--seed-1"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set of four classes, one of three others, and shifted images of three of ImageNet's."""
    root = tmp_path_factory.mktemp("further")
    write_colors(root / "beasts", {"train": 2, "test": 3}, CLASSES)
    write_colors(root / "colours", {"train": 1, "test": 2})
    write_classes(root / "images", ["n01440764", "n01443537", "n15075141"], 2, 32)
    spec = {"name": "shifted", "folder": "images", "test_only": True, "class_folders": "top"}
    spec |= {"classes": "open_clip:imagenet", "templates": ["a sketch of a {}."]}
    (root / "shifted.yaml").write_text(yaml.safe_dump(spec))
    return root


def write(root: Path, model: Path, **changes) -> Path:
    settings = {
        "datasets": ["beasts"],
        "classes": "base",
        "also_test": ["colours", "shifted.yaml"],
        "models": [{"name": str(model), "label": "tiny"}],
        "methods": ["zero_shot", {"method": "lora", "rank": 2}],
        "shots": [2],
        "training": {"steps": 2, "learning_rate": 0.01, "precision": "fp32"},
    }
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


@pytest.fixture(scope="module")
def sweep(root, tiny_folder) -> Path:
    progress = run_sweep(read_sweep(write(root, tiny_folder)), root / "out")
    assert len(progress.done) == 2 and not progress.failed
    return root / "out"


def metrics_of(sweep: Path, cell: str = LORA) -> dict:
    return json.loads((sweep / "cells" / cell / "metrics.json").read_text())


def share_right(classifier: cr.Classifier, data: cr.Data) -> dict[str, float]:
    """The accuracy of a classifier's answers, image by image."""
    answers = classifier.predict([item.open() for item in data.test])
    return {
        which: sum(
            next(iter(answer[which])) == data.classes[item.label]
            for answer, item in zip(answers, data.test, strict=True)
        )
        / len(answers)
        for which in ("zero_shot", "tuned")
    }


def test_each_further_test_is_answered_among_its_own_classes(sweep, root):
    metrics = metrics_of(sweep)
    assert tuple(metrics["per_class"]) == BASE and metrics["images"] == {"train": 4, "test": 6}
    counts = {name: (row["classes"], row["images"]) for name, row in metrics["also_test"].items()}
    assert counts == {"novel": (2, 6), "colours": (3, 6), "shifted": (3, 6)}
    classifier = cr.Classifier.load(sweep / "cells" / LORA)
    assert classifier.classes == BASE
    beasts, shifted = cr.load_data(root / "beasts"), cr.load_data(root / "shifted.yaml")
    assert shifted.classes == ("tench", "goldfish", "toilet paper")
    sketches = {"templates": shifted.templates, "names": shifted.prompts}
    for name, data, words in (
        ("novel", select_classes(beasts, "novel"), {}),
        ("colours", cr.load_data(root / "colours"), {}),
        ("shifted", shifted, sketches),
    ):
        row, right = (
            metrics["also_test"][name],
            share_right(classifier.for_classes(data.classes, **words), data),
        )
        assert {which: row[which]["top1"] for which in right} == pytest.approx(right), name
    zero_shot = metrics_of(sweep, "tiny--beasts--zero_shot")["also_test"]
    assert {name: row["tuned"] for name, row in zero_shot.items()} == {
        name: row["zero_shot"] for name, row in metrics["also_test"].items()
    }


def test_a_run_of_base_classes_says_so_and_other_tests_are_other_settings(sweep, root, tiny_folder):
    settings = yaml.safe_load((sweep / "cells" / LORA / "config.yaml").read_text())
    assert settings["data"]["classes"] == "base" and tuple(settings["classes"]) == BASE
    folder = SweepFolder(sweep)
    assert folder.begin(list(read_sweep(write(root, tiny_folder)).cells())) == []
    fewer = read_sweep(write(root, tiny_folder, also_test=["colours"]))
    with pytest.raises(UserError, match=r"was run with other settings \(also_test"):
        folder.begin(list(fewer.cells()))


def test_a_resumed_run_has_the_results_of_one_without_a_break(sweep, root, tiny, tmp_path):
    beasts, colours = cr.load_data(root / "beasts"), cr.load_data(root / "colours")
    (cell,) = (cell for cell in SweepFolder(sweep).asked() if cell.id == LORA)
    base, further = select_classes(beasts, "base"), {"colours": colours}

    def stop(step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, base, cell.train_config(), tmp_path / "run", on_step=stop, also_test=further)
    run = cr.fit(tiny, base, cell.train_config(), tmp_path / "run", resume=True, also_test=further)
    whole = metrics_of(sweep)
    assert run.metrics["tuned"] == pytest.approx(whole["tuned"])
    resumed, expected = (each["also_test"]["colours"] for each in (run.metrics, whole))
    assert resumed["tuned"] == pytest.approx(expected["tuned"])


def test_a_data_set_that_is_trained_on_is_not_tested_on_twice(root, tiny_folder):
    config = read_sweep(
        write(root, tiny_folder, datasets=["beasts", "colours"], also_test=["colours", "beasts"])
    )
    also = {cell.data_label: list(cell.also_test) for cell in config.cells()}
    assert also == {"beasts": ["colours"], "colours": ["beasts"]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": "novel"}, "classes: "),
        ({"also_test": "colours"}, r"also_test: give a list, as \[colours\]"),
        ({"also_test": ["nowhere"]}, "also_test: nowhere: neither a path"),
        ({"also_test": ["colours", "./colours"]}, "also_test: two tests would be called colours"),
        ({"methods": ["lora", "linear_probe"]}, "methods: linear_probe: its head answers only for"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_in_one_line(root, tiny_folder, changes, says):
    path = write(root, tiny_folder, **changes)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {says}") as error:
        read_sweep(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "cells", "tests"),
    [("base-to-novel", 110, 0), ("cross-dataset", 10, 10), ("imagenet-shift", 10, 4)],
)
def test_the_packaged_sweeps_are_in_order(name, cells, tests):
    config = read_sweep(name)
    assert len(list(config.cells())) == cells
    assert all(len(cell.also_test) == tests for cell in config.cells())
    assert all((cell.classes == "base") == (tests == 0) for cell in config.cells())


def test_lite0_is_trained_on_one_set_and_tested_on_another(root):
    beasts, colours = cr.load_data(root / "beasts"), cr.load_data(root / "colours")
    settings = {"shots": 1, "steps": 2, "method": {"method": "lora", "rank": 1}}
    settings |= {"prompts": {"ant": ["black"], "red": ["scarlet"]}}  # one class of each set
    model = cr.load_model("lite0")
    run = cr.fit(model, beasts, cr.TrainConfig(**settings), also_test={"colours": colours})
    row = run.metrics["also_test"]["colours"]
    assert (row["classes"], row["images"], run.metrics["steps"]) == (3, 6, 2)
    assert 0 <= row["tuned"]["top1"] <= 1
    run.adapter.detach()
    alone = cr.TrainConfig(method="zero_shot", prompts={"red": ["scarlet"]})
    assert row["zero_shot"] == pytest.approx(cr.fit(model, colours, alone).metrics["zero_shot"])


def test_a_head_is_refused_before_anything_is_trained(root, tiny, tmp_path):
    beasts, colours = cr.load_data(root / "beasts"), cr.load_data(root / "colours")
    config = cr.TrainConfig(method="linear_probe", shots=1)
    with pytest.raises(UserError, match="linear_probe: its head answers only for the classes it"):
        cr.fit(tiny, beasts, config, tmp_path / "run", also_test={"colours": colours})
    assert not (tmp_path / "run").exists()
    run = cr.fit(tiny, beasts, config)
    with pytest.raises(UserError, match=r"linear_probe: its head .* trained on \(ant, bee, cat"):
        cr.Classifier(tiny, run.adapter, run.text).for_classes(colours.classes)


def evaluate(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["clip-randlora", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code, *capsys.readouterr()


def test_eval_answers_for_other_classes_if_asked_to(sweep, root, monkeypatch, capsys):
    run = sweep / "cells" / LORA
    code, _, errors = evaluate(monkeypatch, capsys, run, root / "colours")
    assert code == 2 and "the run does not know the class 'blue'" in errors
    assert "--own-classes answers among the classes of" in errors
    code, out, errors = evaluate(
        monkeypatch, capsys, run, root / "colours", "--own-classes", "--json"
    )
    metrics, expected = json.loads(out), metrics_of(sweep)["also_test"]["colours"]
    assert (
        code == 0
        and metrics["images"] == 6
        and set(metrics["per_class"]) == {"blue", "green", "red"}
    )
    assert metrics["tuned"] == pytest.approx(expected["tuned"])
    assert "Answered among the 3 classes of" in errors and "run was trained on none." in " ".join(
        errors.split()
    )
    code, out, errors = evaluate(monkeypatch, capsys, run, root / "beasts", "--own-classes")
    assert code == 0 and "run was trained on 2." in " ".join((out + errors).split())
