"""The search for settings: on training images alone, within its time, and into a file."""

import json
import signal
import time
from dataclasses import replace

import pytest
import torch
from helpers.commands import command
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.tuning import Trial, compare

FAST = {"shots": 2, "steps": 4, "batch_size": 6, "precision": "fp32"}
LORA = {"method": "lora", "rank": 2, "towers": ["vision"]}


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 5})


class Forbidden:
    """The content of an image that nobody may look at."""

    size = 1

    def read(self):
        raise AssertionError("a test image was read")


@pytest.fixture(scope="module")
def found(tiny_folder, colors, tmp_path_factory):
    """A search on coloured squares, whose candidates were recorded as they came.

    None of its test images may be read.
    """
    seen: list[Trial] = []
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(colors)
    items = tuple(replace(item, content=Forbidden()) for item in data.test)
    data = replace(data, test=replace(data.test, items=items))
    config = cr.TrainConfig(method=LORA, learning_rate=0.01, **FAST)
    tuning = cr.tune(
        model, data, 2, config, methods=[LORA, "anchored_head"],
        on_trial=seen.append,
    )  # fmt: skip
    return model, data, tuning, seen


def test_the_best_is_first_and_becomes_the_settings(found):
    _, _, tuning, seen = found
    ranks = [trial.rank for trial in tuning.trials]
    assert ranks == sorted(ranks, reverse=True)
    best = tuning.trials[0].candidate
    assert tuning.config.method == best.method and tuning.config.shots == 2
    assert {trial.candidate.method.method for trial in seen} == {
        "lora", "anchored_head", "zero_shot",
    }  # fmt: skip
    assert len({trial.candidate.rate for trial in seen} - {None}) >= 3
    assert {0.5, 0.75, 1.0} <= {trial.candidate.strength for trial in seen}


def test_every_training_image_is_asked_once(found):
    """The best is asked on all folds: 2 images of each class, each held out once."""
    _, data, tuning, _ = found
    best = tuning.trials[0]
    assert best.folds == 2 and len(best.correct) == 2 * len(data.classes)
    assert f"of {2 * len(data.classes)} images correctly" in tuning.notes[0]


def test_the_model_is_free_afterwards(found):
    model, *_ = found
    cr.attach(model.net, cr.LoRA(rank=2)).detach()


def test_train_takes_the_file(found, tiny_folder, colors, tmp_path):
    _, _, tuning, _ = found
    folder = tuning.write(tmp_path / "tuned")
    lines = (folder / "trials.csv").read_text().splitlines()
    assert len(lines) == 1 + len(tuning.trials)
    with pytest.raises(cr.UserError, match=r"has a tuned\.yaml; choose another folder"):
        tuning.write(folder)
    done = command(
        "train", colors, "--model", tiny_folder, "--config", folder / "tuned.yaml",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_rates_are_multiples_of_the_default(found):
    *_, seen = found
    by_rate = {trial.candidate.rate: trial.candidate for trial in seen}
    assert by_rate[1.0].config(cr.TrainConfig(), 0.01).learning_rate is None
    higher = by_rate[max(by_rate.keys() - {None})]
    assert higher.config(cr.TrainConfig(), 0.01).learning_rate == pytest.approx(
        0.01 * higher.rate, rel=0.01
    )


def test_two_settings_of_one_method_are_kept_apart(tiny_folder, colors):
    methods = [{"method": "anchored_head", "strength": strength} for strength in (0.1, 1e6)]
    tuning = cr.tune(
        cr.load_model(str(tiny_folder)), cr.load_data(colors), 2, cr.TrainConfig(shots=2),
        methods=methods,
    )  # fmt: skip
    heads = [t for t in tuning.trials if t.candidate.method.method == "anchored_head"]
    assert {t.candidate.method.strength for t in heads} == {0.1, 1e6}
    assert all(t.folds == 2 and len(t.correct) == 6 for t in heads)
    assert not torch.equal(heads[0].losses, heads[1].losses)


def test_a_stopped_search_keeps_its_results(tiny_folder, colors):
    """It stops in the second training, whose results do not count."""
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(colors)
    seen: list[Trial] = []
    tuning = cr.tune(
        model, data, 2, cr.TrainConfig(**FAST), methods=["lora"], on_trial=seen.append,
        should_stop=lambda: bool(seen),
    )  # fmt: skip
    assert {trial.candidate.method.method for trial in tuning.trials} == {"zero_shot", "lora"}
    assert {trial.candidate.rate for trial in tuning.trials} == {None, 1.0}
    assert "stopped before its end" in tuning.notes[-1]
    assert tuning.default.candidate == cr.tuning.Candidate(cr.LoRA(), 1.0)
    with pytest.raises(cr.UserError, match="stopped before the first result"):
        cr.tune(model, data, 2, cr.TrainConfig(**FAST), should_stop=lambda: True)


def test_ctrl_c_keeps_the_best_so_far(tiny_folder, colors, tmp_path, monkeypatch):
    """It comes in the second training; the first has answered, and so has zero-shot."""
    fit, begun = cr.tuning.fit, []

    def press(*arguments, **options):
        begun.append(True)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return fit(*arguments, **options)

    monkeypatch.setattr(cr.tuning, "fit", press)
    out = tmp_path / "tuned"
    search = "tune", colors, "--model", tiny_folder, "--shots", 2, "--method", "anchored_head"
    done = command(*search, "--out", out)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        f"interrupted: the best of 2 settings is saved to {out / 'tuned.yaml'}; train with it by "
        f"--config {out / 'tuned.yaml'}"
    )
    assert "# The search was stopped before its end." in (out / "tuned.yaml").read_text()
    assert len((out / "trials.csv").read_text().splitlines()) == 3

    # before the first result
    monkeypatch.setattr(cr.tuning, "fit", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    done = command(*search, "--out", tmp_path / "none")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted; start again")
    assert not (tmp_path / "none").exists()


def test_a_trial_says_how_sure_it_is():
    """Wilson's interval of 9 of 12: centre (9 + z^2/2) / (12 + z^2) = .6893, half width .2217."""
    correct = torch.tensor([True] * 9 + [False] * 3)
    trial = Trial(cr.tuning.Candidate(cr.ZeroShot()), correct, torch.zeros(12), 1)
    assert trial.interval == pytest.approx((0.4677, 0.9111), abs=1e-4)


@pytest.mark.parametrize(("gained", "outcome"), [(4, "unsure"), (5, "better")])
def test_better_means_that_it_is_hardly_chance(gained, outcome):
    """Sign test: of 4 images gained and none lost, p = 1/16; of 5, p = 1/32."""
    ours = torch.ones(12, dtype=torch.bool)
    theirs = torch.arange(8) >= gained  # asked on a part of the images only
    trials = [
        Trial(cr.tuning.Candidate(cr.LoRA(), rate), correct, torch.zeros(len(correct)), 1)
        for rate, correct in ((3.2, ours), (1.0, theirs))
    ]
    is_sure, note = compare(*trials)
    assert is_sure == (outcome == "better")
    assert f"{gained} more of 8 images are right, and 0 that were right are wrong" in note


def test_a_data_set_to_test_on_alone_is_refused(tiny, colors):
    data = cr.load_data(colors)
    empty = cr.Data("empty", data.classes, type(data.train)((), data.classes), data.test)
    with pytest.raises(cr.UserError, match="empty has no training images"):
        cr.tune(tiny, empty, 1)


def test_it_ends_in_its_time_and_says_that_nothing_is_known(tiny_folder, colors):
    """Random labels: no settings can be better than chance."""
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(colors)
    items = data.train.items
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(items), generator=generator).tolist()
    labels = [items[place].label for place in order]
    shuffled = tuple(
        type(item)(item.name, label, item.content)
        for item, label in sorted(zip(items, labels, strict=True), key=lambda pair: pair[1])
    )
    data = cr.Data("shuffled", data.classes, type(data.train)(shuffled, data.classes), data.test)
    start = time.monotonic()
    config = cr.TrainConfig(shots=4, steps=100_000, batch_size=8)
    tuning = cr.tune(model, data, 0.2, config, methods=["lora"])
    assert time.monotonic() - start < 0.2 * 60 + 15
    said = " ".join(tuning.notes)
    assert "Nothing is better than chance" in said and "shortened to" in said


def test_one_image_a_class_cannot_be_split(tiny, colors):
    with pytest.raises(cr.UserError, match="has 1 training image; cross-validation needs two"):
        cr.tune(tiny, cr.load_data(colors), 1, cr.TrainConfig(shots=1))


def test_the_command(tiny_folder, colors, tmp_path):
    done = command(
        "tune", colors, "--model", tiny_folder, "--minutes", 0.05, "--shots", 2,
        "--method", "anchored_head", "--out", tmp_path / "tuned", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["folder"] == str(tmp_path / "tuned") and (tmp_path / "tuned/tuned.yaml").exists()
    assert found["config"]["method"]["method"] == "anchored_head"
    best = found["trials"][0]
    assert best["settings"].startswith("anchored_head") and 0 <= best["accuracy"] <= 1
    assert {trial["candidate"]["method"]["method"] for trial in found["trials"]} == {
        "anchored_head", "zero_shot",
    }  # fmt: skip
    again = command("tune", colors, "--model", tiny_folder, "--out", tmp_path / "tuned")
    assert again.returncode == 2 and "has a tuned.yaml" in again.stderr
