"""Trainings by `clip_randlora.fit`: what they learn, write, and go on from."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.cases import LARGE, slow_cases
from helpers.images import write_colors
from torch.nn.functional import cross_entropy

import clip_randlora as cr
from clip_randlora.runs.predictions_file import read_answers
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.training.config import default_beta2
from clip_randlora.training.logger import Diverged, TrainLogger
from clip_randlora.training.state import TrainState

COLORS = {"blue_things": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}
FAST = {"method": cr.RandLoRA(rank=4), "steps": 40, "batch_size": 12, "shots": 4}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 5}, COLORS)


def trained(adapter) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}


def test_training_learns_and_the_run_says_so(tiny, colors, tmp_path, fine_figures):
    before = {key: tensor.clone() for key, tensor in tiny.net.state_dict().items()}
    steps = []
    run = cr.fit(
        tiny,
        cr.load_data(colors),
        cr.TrainConfig(**FAST, learning_rate=1e-2),
        out=tmp_path / "run",
        on_step=steps.append,
    )
    assert run.metrics["tuned"]["top1"] >= 0.9
    assert run.metrics["tuned"]["top1"] > run.metrics["zero_shot"]["top1"]
    assert steps[-1].step == steps[-1].steps == 40
    assert steps[-1].loss < steps[0].loss / 2
    assert run.metrics["images"] == {"train": 12, "test": 15}
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(run.metrics))
    for key in ("trainable_parameters", "train_seconds", "step_seconds_median", "shots", "seed"):
        assert key in written
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "README.md",
        "adapter.safetensors",
        "calibration.png",
        "confidence.json",
        "confidence.safetensors",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "examples.png",
        "history.csv",
        "images.csv",
        "metrics.json",
        "predictions.csv",
    }
    run.adapter.detach()
    assert all(torch.equal(before[k], v) for k, v in tiny.net.state_dict().items())


class StopAt:
    """Press Ctrl-C when a step is reached."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, step) -> None:
        if step.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_at", slow_cases([1, 23], 1))
def test_resume_ends_at_the_weights_of_an_uninterrupted_run(tiny_folder, colors, tmp_path, stop_at):
    data, config = cr.load_data(colors), cr.TrainConfig(**FAST)
    straight = cr.fit(cr.load_model(str(tiny_folder)), data, config)
    model = cr.load_model(str(tiny_folder))
    with pytest.raises(cr.Interrupted) as stopped:
        cr.fit(model, data, config, out=tmp_path / "run", on_step=StopAt(stop_at))
    assert stopped.value.step == stop_at
    assert not (tmp_path / "run" / "metrics.json").exists()
    with pytest.raises(cr.UserError, match="add --resume"):
        cr.fit(model, data, config, out=tmp_path / "run")
    resumed = cr.fit(model, data, config, out=tmp_path / "run", resume=True)
    expected, got = trained(straight.adapter), trained(resumed.adapter)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in straight.history]
    with pytest.raises(cr.UserError, match="holds a finished run"):
        cr.fit(model, data, config, out=tmp_path / "run", resume=True)


def test_resume_with_other_settings_names_the_setting(tiny, colors, tmp_path):
    data = cr.load_data(colors)
    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, data, cr.TrainConfig(**FAST), out=tmp_path / "run", on_step=StopAt(5))
    with pytest.raises(cr.UserError, match=r"train\.seed = 1, now it is 2"):
        cr.fit(tiny, data, cr.TrainConfig(**FAST, seed=2), out=tmp_path / "run", resume=True)


def test_a_checkpoint_of_an_older_format_is_not_resumed(tiny, colors, tmp_path):
    """Before adapter format 2 the bases were dealt otherwise: its numbers mean another update."""
    data, config = cr.load_data(colors), cr.TrainConfig(**FAST)
    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, data, config, out=tmp_path / "run", on_step=StopAt(5))
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["format"]  # which it did not have
    torch.save(state, path)
    with pytest.raises(cr.UserError, match=r"run: cannot resume, .* another version .* --out"):
        cr.fit(tiny, data, config, out=tmp_path / "run", resume=True)


def test_a_folder_that_is_no_run_is_not_touched(tiny, colors, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(cr.UserError, match="not empty and not a run"):
        cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_asked_to_stop_it_finishes_with_what_was_learned(tiny, colors, tmp_path):
    steps = []
    run = cr.fit(
        tiny,
        cr.load_data(colors),
        cr.TrainConfig(**FAST),
        out=tmp_path / "run",
        on_step=steps.append,
        should_stop=lambda: len(steps) >= 7,
    )
    assert run.metrics["steps"] == steps[-1].step == 7
    assert "Stopped at step 7 of 40." in run.notes
    assert any(parameter.abs().sum() > 0 for parameter in run.adapter.parameters())
    assert read_metrics(tmp_path / "run") == json.loads(json.dumps(run.metrics))
    assert len(read_answers(tmp_path / "run")) == 15
    run.adapter.detach()
    assert cr.Classifier.load(tmp_path / "run").classes == tuple(COLORS)


def test_watched_test_images_give_a_curve(tiny, colors, tmp_path):
    seen = []
    run = cr.fit(
        tiny,
        cr.load_data(colors),
        cr.TrainConfig(**FAST, learning_rate=1e-2),
        out=tmp_path / "run",
        on_step=seen.append,
        watch=15,
    )
    watched = [(step.step, step.test_accuracy) for step in seen if step.test_accuracy is not None]
    assert watched[0][0] == 1
    assert watched[-1] == (40, pytest.approx(run.metrics["tuned"]["top1"]))
    assert 8 <= len(watched) <= 10
    assert [row["test_accuracy"] for row in run.history if row["test_accuracy"]] == [
        accuracy for _, accuracy in watched if accuracy
    ]


@pytest.mark.slow
def test_watching_changes_no_weight(tiny_folder, colors):
    runs = [
        cr.fit(
            cr.load_model(str(tiny_folder)),
            cr.load_data(colors),
            cr.TrainConfig(**FAST),
            watch=watch,
        )
        for watch in (0, 6)
    ]
    plain, watched = (trained(run.adapter) for run in runs)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_same_seed_same_weights_other_seed_others(tiny_folder, colors):
    data, config = cr.load_data(colors), {**FAST, "steps": 5}
    runs = [
        trained(
            cr.fit(cr.load_model(str(tiny_folder)), data, cr.TrainConfig(**config, seed=s)).adapter
        )
        for s in (1, 1, 2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.parametrize("towers", [("vision",), ("text",)])
def test_one_tower_alone_learns(tiny, colors, towers):
    config = {**FAST, "method": cr.RandLoRA(rank=4, towers=towers)}
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**config, learning_rate=1e-2))
    assert all(weight.tower == towers[0] for weight in run.adapter.weights.values())
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_few_prompts_per_step_still_learn(tiny, colors):
    config = cr.TrainConfig(
        **FAST,
        learning_rate=1e-2,
        templates=("a photo of a {}.", "art of the {}.", "{}"),
        prompts_per_step=2,
    )
    run = cr.fit(tiny, cr.load_data(colors), config)
    assert run.metrics["tuned"]["top1"] > run.metrics["zero_shot"]["top1"]


def test_lora_learns_in_the_same_form(tiny, colors):
    config = {**FAST, "method": "lora"}
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**config))
    assert run.metrics["tuned"]["top1"] > run.metrics["zero_shot"]["top1"]
    # r (in + out) a weight at r = 32: per block 4 of (64, 64) and 2 of 64 and 256; text likewise
    vision = 3 * 32 * (4 * 128 + 2 * 320)
    text = 3 * 32 * (4 * 96 + 2 * 240)
    assert run.metrics["trainable_parameters"] == vision + text


@pytest.mark.slow
def test_batch_norm_statistics_stay_frozen(colors):
    model = cr.load_model("lite0")
    before = {k: v.clone() for k, v in model.net.state_dict().items() if "running" in k}
    run = cr.fit(model, cr.load_data(colors), cr.TrainConfig(**{**FAST, "steps": 2, "shots": 2}))
    after = run.model.net.state_dict()
    assert len(before) > 90
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_the_first_steps_loss_is_the_zero_shot_cross_entropy(tiny, colors):
    """Without augmentation and with every image in the batch, against a computation by hand."""
    data = cr.load_data(colors)
    config = cr.TrainConfig(
        **{**FAST, "steps": 1}, crop_scale=(1.0, 1.0), flip=False, precision="fp32"
    )
    images = torch.stack([tiny.preprocess(item.open()) for item in data.train])
    tokens = tiny.tokenizer([f"a photo of a {name}." for name in ("blue things", "green", "red")])
    with torch.no_grad():
        logits = tiny.net.logit_scale.exp() * (
            tiny.net.encode_image(images, normalize=True)
            @ tiny.net.encode_text(tokens, normalize=True).T
        )
    losses = cross_entropy(logits, data.train.labels, reduction="none")
    run = cr.fit(tiny, data, config)
    # crops keep all of the image but its aspect ratio varies, so the loss is close, not equal
    assert run.history[0]["loss"] == pytest.approx(float(losses.mean()), rel=0.1)


@pytest.mark.slow
def test_one_shot_does_not_fall_below_zero_shot():
    runs = [
        cr.fit(cr.load_model("lite0"), cr.load_data("clipart"), cr.TrainConfig(shots=1, seed=seed))
        for seed in ((1, 2) if LARGE else (1,))
    ]
    gains = [run.metrics["tuned"]["top1"] - run.metrics["zero_shot"]["top1"] for run in runs]
    assert sum(gains) > 0


def test_a_diverged_training_says_what_to_do(tiny, colors):
    with pytest.raises(cr.UserError, match="set a lower learning_rate"):
        cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST, learning_rate=1e30))


def test_a_diverged_training_starts_again_at_a_lower_rate(tiny, colors, tmp_path):
    upsets = []

    def upset(step):
        if step.step == 3 and len(upsets) < 2:  # the third attempt is left alone
            upsets.append(step.learning_rate)
            with torch.no_grad():
                next(p for p in tiny.net.parameters() if p.requires_grad).fill_(float("nan"))

    config = cr.TrainConfig(**FAST | {"steps": 6}, learning_rate=9e-3)
    run = cr.fit(tiny, cr.load_data(colors), config, tmp_path / "run", on_step=upset)
    assert run.metrics["learning_rate"] == pytest.approx(1e-3)
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    said = [note for note in run.notes if "diverged" in note]
    assert said == [
        "Training diverged at a learning rate of 0.009; it started again at 0.003.",
        "Training diverged at a learning rate of 0.003; it started again at 0.001.",
    ]
    run.adapter.detach()
    straight = cr.fit(
        tiny, cr.load_data(colors), cr.TrainConfig(**FAST | {"steps": 6}, learning_rate=1e-3)
    )
    torch.testing.assert_close(run.predictions.tuned, straight.predictions.tuned)


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([2.3] * 30, False),  # it never learned
        ([2.3, 1.5] + [0.5] * 28, False),
        ([2.3, 1.2] + [1.0] * 8 + [2.3] * 20, True),  # it lost what it had learned
        ([2.3, 1.2] + [1.0] * 8 + [1.4] * 20, False),  # worse, but better than guessing
    ],
)
def test_a_loss_that_rises_to_guessing_is_divergence(tiny, losses, diverges):
    adapter = cr.attach(tiny.net, cr.LoRA(rank=2))
    state = TrainState(step=30, steps=30, history=[{"loss": loss} for loss in losses])
    logger = TrainLogger(state, adapter, 0.1)
    with pytest.raises(Diverged, match="no better than guessing") if diverges else nullcontext():
        logger.check_end(10)
    assert state.step == (0 if diverges else 30)  # `fit` keeps no adapter of step 0


def test_a_strength_is_baked_into_the_update(tiny, colors):
    """Half strength of the whole training is full strength of the run that asks for it."""
    data, settings = cr.load_data(colors), FAST | {"learning_rate": 1e-2, "precision": "fp32"}
    whole = cr.fit(tiny, data, cr.TrainConfig(**settings))
    deltas = whole.adapter.deltas()
    whole.adapter.detach()
    half = cr.fit(tiny, data, cr.TrainConfig(**settings, strength=0.5))
    for name, delta in half.adapter.deltas().items():
        torch.testing.assert_close(delta, deltas[name] / 2, rtol=1e-4, atol=1e-7)
    half.adapter.detach()
    with pytest.raises(cr.UserError, match="strength: dora trains at full strength only"):
        cr.fit(tiny, data, cr.TrainConfig(**FAST | {"method": "dora"}, strength=0.5))


def test_beta2_is_adamws(tiny, colors):
    data = cr.load_data(colors)

    def train(steps: int, beta2: float | None) -> torch.Tensor:
        settings = FAST | {"steps": steps, "learning_rate": 1e-2, "precision": "fp32"}
        run = cr.fit(tiny, data, cr.TrainConfig(**settings, beta2=beta2))
        numbers = torch.cat([tensor.flatten() for tensor in trained(run.adapter).values()])
        run.adapter.detach()
        return numbers

    assert default_beta2("lite0", "nola") == 0.98
    assert default_beta2("ViT-B-32", "nola") == default_beta2("lite0", "randlora") == 0.999
    assert torch.equal(train(3, None), train(3, 0.999))
    # the first step is g / |g|, whatever beta2 is, as the correction for its start cancels it
    torch.testing.assert_close(train(1, 0.5), train(1, 0.999), rtol=1e-4, atol=1e-7)
    assert (train(3, 0.5) - train(3, 0.999)).abs().max() > 1e-3


def test_bf16_trains_too(tiny, colors):
    run = cr.fit(
        tiny, cr.load_data(colors), cr.TrainConfig(**FAST, learning_rate=1e-2, precision="bf16")
    )
    assert run.metrics["precision"] == "bf16"
    assert run.metrics["tuned"]["top1"] > run.metrics["zero_shot"]["top1"]
