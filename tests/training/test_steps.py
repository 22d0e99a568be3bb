"""What one optimiser step takes: parts of a batch, prompts, the scale of the logits."""

from math import log
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors
from helpers.trainings import straight_and_resumed

import clip_randlora as cr

FAST = {"method": cr.RandLoRA(rank=4), "batch_size": 12, "shots": 4, "precision": "fp32"}
FLAT = 1e-6
"""A scale that makes all logits equal, so that the loss is the logarithm of their number."""


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> cr.Data:
    return cr.load_data(write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 2}))


def parameters(run: cr.Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.adapter.named_parameters()}


@pytest.mark.parametrize("method", ["randlora", "full"])
def test_parts_that_are_accumulated_are_one_large_batch(tiny_folder, colors, method):
    sizes, trained = [], []
    for accumulate in (1, 5):
        model = cr.load_model(str(tiny_folder))
        config = FAST | {"method": method, "steps": 4, "learning_rate": 1e-3, "calibrate": False}
        hook = model.net.visual.register_forward_hook(
            lambda module, inputs, output: sizes.append(len(inputs[0]))
        )
        run = cr.fit(model, colors, cr.TrainConfig(**config, accumulate=accumulate))
        hook.remove()
        trained.append((run.history, parameters(run)))
    # 12 images in 5 parts: the memory is that of the largest, 3
    assert {2, 3} <= set(sizes) and sizes.count(12) == 4
    (history, whole), (again, parts) = trained
    for one, other in zip(history, again, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["accuracy"] == pytest.approx(other["accuracy"])
    differences = torch.cat([(whole[name] - parts[name]).abs().flatten() for name in whole])
    # where a gradient is nearly zero, rounding decides the direction of AdamW's step
    few = 0 if method == "randlora" else 10
    assert (differences >= 1e-4).sum() <= few and differences.max() < 1e-3


def test_more_parts_than_images_are_one_image_each(tiny, colors):
    run = cr.fit(tiny, colors, cr.TrainConfig(**FAST, steps=1, accumulate=100))
    assert run.metrics["steps"] == 1


def test_an_accumulated_training_goes_on_where_it_stopped(tiny_folder, colors, tmp_path: Path):
    config = cr.TrainConfig(**FAST, steps=6, accumulate=2, prompts_per_step="batch")
    straight, resumed = straight_and_resumed(tiny_folder, colors, config, tmp_path / "run")
    expected, got = parameters(straight), parameters(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "logits"),
    [
        ({}, 3),  # the classes
        ({"prompts_per_step": 2}, 3),  # all classes are in the batch, each once
        ({"prompts_per_step": "batch"}, 12),  # a prompt for each image
        ({"prompts_per_step": "batch", "accumulate": 3}, 4),  # for each image of a part
    ],
)
def test_the_loss_is_over_the_prompts_of_a_step(tiny, colors, settings, logits):
    config = cr.TrainConfig(
        **FAST, **settings, steps=1, logit_scale=FLAT, label_smoothing=0, templates=("{}", "a {}")
    )
    run = cr.fit(tiny, colors, config)
    assert run.history[0]["loss"] == pytest.approx(log(logits), abs=1e-4)


def test_the_losss_labels_are_the_images_classes(tiny, colors):
    """Images of one class share its first prompt, so what is learned is the class."""
    config = FAST | {"steps": 40, "learning_rate": 1e-2, "prompts_per_step": "batch"}
    run = cr.fit(tiny, colors, cr.TrainConfig(**config))
    assert run.metrics["tuned"]["top1"] > run.metrics["zero_shot"]["top1"]


def test_half_of_the_images_resumed(tiny_folder, colors, tmp_path: Path):
    config = cr.TrainConfig(**FAST | {"shots": "50%"}, steps=5)
    straight, resumed = straight_and_resumed(tiny_folder, colors, config, tmp_path / "run")
    assert straight.metrics["images"]["train"] == resumed.metrics["images"]["train"] == 9
    assert resumed.metrics["shots"] == "50%"
    assert "(50% of the images, seed 1)" in (tmp_path / "run" / "README.md").read_text()
    expected, got = parameters(straight), parameters(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"accumulate": 0}, "accumulate: "),
        ({"prompts_per_step": "batches"}, "prompts_per_step: give a number of prompts from 2, or"),
        ({"prompts_per_step": 1}, "prompts_per_step: give a number"),
        ({"shots": "0%"}, "shots: give a number of images per class, a share"),
        ({"shots": 0}, "shots: give a number"),
        ({"logit_scale": 0}, "logit_scale: "),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(cr.UserError, match=says):
        cr.TrainConfig.parse(settings)
