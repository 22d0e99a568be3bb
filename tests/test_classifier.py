"""A finished run, loaded again: its answers are those recorded, and stay right between calls."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors
from helpers.models import randomize
from PIL import Image

import clip_randlora as cr

COLORS = {"blue_things": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}
FAST = {"method": cr.RandLoRA(rank=4), "steps": 40, "batch_size": 12, "shots": 4}
IMAGES = [Image.new("RGB", (50, 40), color) for color in COLORS.values()]


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 5}, COLORS)


@pytest.fixture(scope="module")
def run(tiny_folder, colors, tmp_path_factory) -> cr.Run:
    config = cr.TrainConfig(**FAST, templates=("a {}.",), prompts={"green": ("lawn", "leaf")})
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(colors)
    return cr.fit(model, data, config, out=tmp_path_factory.mktemp("runs") / "run")


def test_a_loaded_run_answers_as_recorded(run, colors):
    answers = cr.Classifier.load(run.folder).predict(
        [colors / name for name in run.predictions.names]
    )
    for row, answer in enumerate(answers):
        for which, recorded in (
            ("zero_shot", run.predictions.zero_shot),
            ("tuned", run.predictions.tuned),
        ):
            got = [answer[which][name] for name in run.predictions.classes]
            assert got == pytest.approx(recorded[row].tolist(), abs=1e-5)
            assert sum(got) == pytest.approx(1, abs=1e-5)


def test_strength_zero_answers_zero_shot(run):
    (answer,) = cr.Classifier.load(run.folder, strength=0).predict(IMAGES[:1])
    assert answer["zero_shot"] == answer["tuned"]


def test_the_adapter_file_alone_is_a_classifier(run, tiny_folder, tmp_path):
    from_run = cr.Classifier.load(run.folder).predict(IMAGES)
    alone, model = tmp_path / "downloaded.safetensors", cr.load_model(str(tiny_folder))
    alone.write_bytes((run.folder / "adapter.safetensors").read_bytes())
    classifier = cr.Classifier.load(alone, model=model)
    assert classifier.predict(IMAGES) == from_run
    classifier.close()
    again = cr.Classifier.load(alone, model=model, strength=0)
    assert all(answer["tuned"] == answer["zero_shot"] for answer in again.predict(IMAGES))


def test_an_adapter_without_classes_is_no_classifier(tiny, tmp_path):
    cr.attach(tiny.net, cr.RandLoRA(rank=4)).save(tmp_path / "a.safetensors")
    with pytest.raises(cr.UserError, match="names no classes"):
        cr.Classifier.load(tmp_path / "a.safetensors")


def test_the_second_call_forms_no_weight_and_answers_the_same(run, monkeypatch):
    formed = []
    form = cr.Adapter.updated_weights

    def counting(adapter, strength, tower):
        formed.append(tower)
        return form(adapter, strength, tower)

    monkeypatch.setattr(cr.Adapter, "updated_weights", counting)
    classifier = cr.Classifier.load(run.folder)
    first = classifier.predict(IMAGES)
    assert sorted(formed) == ["text", "vision"]
    assert classifier.predict(IMAGES) == first
    assert sorted(formed) == ["text", "vision"]


def test_what_changes_between_two_calls_changes_the_answers(run):
    classifier = cr.Classifier.load(run.folder)
    answers = [classifier.predict(IMAGES)]
    classifier.adapter.strength = 0.5
    answers.append(classifier.predict(IMAGES))
    assert answers[1] == cr.Classifier.load(run.folder, strength=0.5).predict(IMAGES)
    classifier.adapter.strength = 1.0
    assert classifier.predict(IMAGES) == answers[0]

    randomize(classifier.adapter)
    answers.append(classifier.predict(IMAGES))
    with torch.autocast("cpu", torch.bfloat16):
        answers.append(classifier.predict(IMAGES))
    for earlier, later in pairwise(answers):
        assert earlier != later
    assert classifier.predict(IMAGES) == answers[2]  # not the weights of bf16

    same = cr.Classifier.load(run.folder)
    randomize(same.adapter)
    assert same.predict(IMAGES) == answers[2]


def test_loaded_in_inference_mode_it_answers_the_same(run):
    """Its tensors then count no changes."""
    with torch.inference_mode():
        classifier = cr.Classifier.load(run.folder)
        first = classifier.predict(IMAGES)
        assert classifier.predict(IMAGES) == first
    usual = cr.Classifier.load(run.folder).predict(IMAGES)
    for one, other in zip(first, usual, strict=True):  # torch chooses other kernels there
        assert one["zero_shot"] == pytest.approx(other["zero_shot"], abs=1e-6)
        assert one["tuned"] == pytest.approx(other["tuned"], abs=1e-6)
