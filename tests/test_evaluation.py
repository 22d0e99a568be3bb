"""What the answers of a run add up to: scores, calibration, confusion."""

import math
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors
from sklearn.metrics import accuracy_score

import clip_randlora as cr
from clip_randlora.evaluation import (
    PairedPredictor,
    Predictions,
    calibration_bins,
    confusion,
    expected_calibration_error,
    predict_split,
    score,
)

COLORS = {"blue_things": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 5}, COLORS)


def predictions(zero_shot, tuned, labels) -> Predictions:
    names = [str(number) for number in range(len(labels))]
    classes = tuple("abc"[: len(zero_shot[0])])
    return Predictions(
        classes, names, torch.tensor(labels), torch.tensor(zero_shot), torch.tensor(tuned)
    )


def test_score_by_hand():
    both = predictions(
        zero_shot=[[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]],
        tuned=[[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]],
        labels=[0, 1, 1, 1],
    )
    metrics = score(both)
    assert metrics["zero_shot"]["top1"] == 0.5
    assert metrics["tuned"]["top1"] == 1.0
    assert metrics["per_class"]["b"] == {
        "images": 3,
        "zero_shot": pytest.approx(1 / 3),
        "tuned": 1.0,
    }
    # every confidence has a bin of its own: |.9-1| + |.6-0| + |.7-1| + |.8-0| over 4
    assert metrics["zero_shot"]["ece"] == pytest.approx(1.8 / 4)
    zero_shot, tuned = confusion(both)
    assert zero_shot.tolist() == [[1, 0], [2, 1]]
    assert tuned.tolist() == [[1, 0], [0, 3]]


def test_calibration_bins_by_hand():
    probabilities = torch.tensor([[0.95, 0.05], [0.05, 0.95], [0.55, 0.45], [0.35, 0.65]])
    bins = calibration_bins(probabilities, torch.tensor([0, 0, 0, 1]))
    filled = {round(row.center, 3): row for row in bins if row.images}
    assert set(filled) == {round(8.5 / 15, 3), round(9.5 / 15, 3), round(14.5 / 15, 3)}
    surest = filled[round(14.5 / 15, 3)]
    assert (surest.images, surest.accuracy) == (2, 0.5)
    assert surest.confidence == pytest.approx(0.95)


def test_top1_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(5)
    probabilities = torch.rand(200, 3, generator=generator).softmax(dim=-1)
    labels = torch.randint(0, 3, (200,), generator=generator)
    both = predictions(probabilities.tolist(), probabilities.tolist(), labels.tolist())
    expected = accuracy_score(labels, probabilities.argmax(dim=-1))
    assert score(both)["tuned"]["top1"] == pytest.approx(expected)


def test_calibrated_answers_have_no_calibration_error():
    # 100 answers of confidence 0.75, of which 75 are right
    probabilities = torch.tensor([[0.75, 0.25]] * 100)
    labels = torch.tensor([0] * 75 + [1] * 25)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(probabilities, 1 - labels) == pytest.approx(0.5)


def test_predictions_are_those_of_plain_open_clip(tiny, colors):
    data = cr.load_data(colors)
    run = cr.fit(
        tiny,
        data,
        cr.TrainConfig(method={"method": "randlora", "rank": 4}, steps=3, batch_size=12, shots=4),
    )
    again = predict_split(PairedPredictor(run.model, run.adapter, run.text), data.test)
    run.adapter.merge()
    images = torch.stack([tiny.preprocess(item.open()) for item in data.test])
    tokens = tiny.tokenizer([f"a photo of a {name}." for name in ("blue things", "green", "red")])
    with torch.no_grad():
        image_features, text_features, scale = tiny.net(images, tokens)[:3]
        expected = (scale * image_features @ text_features.T).softmax(dim=-1)
    torch.testing.assert_close(again.tuned, expected, atol=1e-5, rtol=0)
    assert math.isclose(float(again.tuned.sum()), len(data.test), rel_tol=1e-5)
