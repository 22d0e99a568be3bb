"""The settings of a training and their defaults."""

import pytest
import torch

import clip_randlora as cr
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import decode_shots
from clip_randlora.few_shot import class_prompts
from clip_randlora.training.config import (
    choose_precision,
    default_crop_size,
    default_learning_rate,
    default_steps,
)
from clip_randlora.training.presets import PRESETS, read_preset


def test_presets_are_settings_and_balanced_is_the_default():
    fast, balanced, thorough = (cr.TrainConfig.parse(read_preset(name)) for name in PRESETS)
    assert balanced == cr.TrainConfig()
    steps = [default_steps(160, 32, p.epochs, p.min_steps) for p in (fast, balanced, thorough)]
    assert steps == [25, 80, 160]
    with pytest.raises(cr.UserError, match="preset quick: choose fast, balanced, thorough"):
        read_preset("quick")


def test_steps_by_images():
    assert default_steps(2, 32) == default_steps(32, 32) > 20
    assert default_steps(10_000, 32) > default_steps(1_000, 32) > default_steps(100, 32)
    assert default_steps(10**7, 32) == 2000
    assert default_steps(10**7, 32, epochs=2, max_steps=None) == 625_000


def test_learning_rate_falls_with_fewer_images_and_with_what_is_known():
    rate = default_learning_rate("lite0", "randlora", 16)
    assert default_learning_rate("lite0", "randlora", 4) == pytest.approx(rate / 2)
    assert default_learning_rate("lite0", "randlora", 16, error=0.25) == pytest.approx(rate / 4)
    assert default_learning_rate("lite0", "randlora", 16, error=0.0) == pytest.approx(rate / 10)
    assert default_learning_rate("lite0", "randlora", 1, error=0.5) == pytest.approx(rate / 16)
    assert default_learning_rate("x", "lora", 100) == default_learning_rate("x", "lora", 16)


def test_the_rate_counts_the_images_that_zero_shot_gets_wrong():
    """The same as the test images of a run without training, when these are the training images."""
    data, model = cr.load_data("clipart"), cr.load_model("lite0")
    one = cr.fit(model, data, cr.TrainConfig(shots=1, steps=1, crop_size=192))
    rate = one.metrics["learning_rate"]
    one.adapter.detach()
    drawn = decode_shots(data.train, 1, 1, model.square())
    labels = drawn.labels
    with torch.no_grad():
        text = TextClassifier(model, data.classes, list(class_prompts(data, one.config).values()))
        answers = (model.encode_image(drawn.images) @ text.features().T).argmax(dim=-1)
    error = float((answers != labels).float().mean())
    full = default_learning_rate("lite0", "randlora", 1)
    most = 1.01 / len(labels)  # resizing may change the answer for one
    assert (rate / full) ** 0.5 == pytest.approx(error, abs=most)


def test_crops_are_smaller_only_where_the_tower_takes_any_size(tiny):
    assert default_crop_size(tiny) == tiny.image_size
    lite0 = cr.load_model("lite0")
    assert default_crop_size(lite0) == 160 < lite0.image_size
    with torch.no_grad():
        assert lite0.encode_image(torch.zeros(1, 3, 160, 160)).shape == (1, 512)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(cr.UserError, match="precision fp16"):
        choose_precision("fp16", torch.device("cpu"))
    assert choose_precision("fp32", torch.device("cuda")) == "fp32"
