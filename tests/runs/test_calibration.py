"""A run's temperatures: where they come from, where they are kept, and who uses them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.runs.confidence_file import read_confidence

FAST = {"method": cr.RandLoRA(rank=4), "steps": 20, "batch_size": 12, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 4, "test": 3})


@pytest.fixture(scope="module")
def runs(tiny_folder, colors, tmp_path_factory) -> dict[bool, cr.Run]:
    """The same training with temperatures and without."""
    found, out = {}, tmp_path_factory.mktemp("runs")
    for calibrate in (True, False):
        model, config = cr.load_model(str(tiny_folder)), cr.TrainConfig(**FAST, calibrate=calibrate)
        found[calibrate] = cr.fit(model, cr.load_data(colors), config, out / str(calibrate))
    return found


def test_the_answers_keep_their_order_and_the_metrics_have_both_errors(runs):
    with_it, without = runs[True], runs[False]
    assert with_it.confidence.tuned != 1 != with_it.confidence.zero_shot
    for which in ("zero_shot", "tuned"):
        ours, plain = (getattr(run.predictions, which) for run in (with_it, without))
        assert torch.equal(ours.argmax(dim=1), plain.argmax(dim=1))
        temperature = getattr(with_it.confidence, which)
        torch.testing.assert_close(ours, (plain.log() / temperature).softmax(dim=1))
        assert with_it.metrics["temperature"][which] == temperature
        got, before = with_it.metrics[which], without.metrics[which]
        assert got["top1"] == before["top1"]
        assert got["ece_uncalibrated"] == pytest.approx(before["ece"], abs=1e-5)
        assert "ece_uncalibrated" not in before
    assert not (without.folder / "confidence.json").exists()


def test_a_classifier_answers_with_the_runs_temperature(runs, colors):
    run = runs[True]
    assert read_confidence(run.folder) == run.confidence
    item = cr.load_data(colors).test.items[0]
    row = run.predictions.names.index(item.name)
    classifier = cr.Classifier.load(run.folder)
    (answer,) = classifier.predict([item.open()])
    for which in ("zero_shot", "tuned"):
        expected = dict(zip(run.text.classes, getattr(run.predictions, which)[row].tolist()))  # noqa: B905
        assert answer[which] == pytest.approx(expected, abs=1e-5)
    assert classifier.predict_split(cr.load_data(colors).test).temperatures == pytest.approx(
        (run.confidence.zero_shot, run.confidence.tuned)
    )
    classifier.adapter.strength = 0
    assert classifier.predict([item.open()])[0]["tuned"] == answer["zero_shot"]
    # the temperature was fitted for the run's classes
    assert classifier.for_classes(["cat", "dog"]).side_by_side().temperatures == (1, 1)


def test_a_run_without_the_file_answers_at_temperature_1(runs, colors, tmp_path):
    image = cr.load_data(colors).test.items[0].open()
    expected = cr.Classifier.load(runs[False].folder).predict([image])
    old = shutil.copytree(runs[True].folder, tmp_path / "run")
    (old / "confidence.json").unlink()
    assert cr.Classifier.load(old).predict([image]) == expected
    alone = shutil.copy(runs[True].folder / "adapter.safetensors", tmp_path)
    assert cr.Classifier.load(alone).confidence == runs[True].confidence


@pytest.mark.parametrize("content", ["{", '{"tuned": 0}', '{"tuned": "warm"}', "[]"])
def test_a_damaged_file_is_one_line(runs, tmp_path, content):
    run = shutil.copytree(runs[True].folder, tmp_path / "run")
    (run / "confidence.json").write_text(content)
    with pytest.raises(cr.UserError, match=r"confidence\.json: damaged, .*copy it again"):
        cr.Classifier.load(run)


@pytest.mark.parametrize("method", ["anchored_head", "linear_probe", "gda"])
def test_a_head_is_asked_out_of_fold(tiny, colors, method):
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(method=method))
    assert run.confidence.fitted_on == "12 training images, in folds"
    assert run.confidence.tuned != 1


def test_a_training_of_no_effect_has_the_temperature_of_zero_shot(tiny, colors):
    config = cr.TrainConfig(**FAST | {"steps": 1, "learning_rate": 1e-9})
    run = cr.fit(tiny, cr.load_data(colors), config)
    assert run.confidence.tuned == pytest.approx(run.confidence.zero_shot, rel=1e-3)


def test_without_training_images_the_network_answers(tiny, colors):
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(method="zero_shot"))
    assert (run.confidence.zero_shot, run.confidence.tuned) == (1, 1)
    assert json.loads(json.dumps(run.metrics))["temperature"] == {"zero_shot": 1, "tuned": 1}
