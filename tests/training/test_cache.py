"""A cache changes what a training costs, not what comes out of it."""

import pytest
import torch
from helpers.cases import slow_cases
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.data import ImageCache, decode_batches
from clip_randlora.training.cache import Cache


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    root = write_colors(tmp_path_factory.mktemp("colors"), {"train": 5, "test": 7})
    (root / "test" / "red" / "broken.png").write_bytes(  # its header is in order, its pixels not
        (root / "test" / "red" / "0.png").read_bytes()[:200]
    )
    return root


def run(model, data, settings, cache=None):
    """Train, and leave the model as it was."""
    trained = cr.fit(model, data, cr.TrainConfig(**settings), cache=cache)
    trained.adapter.detach()
    return trained


@pytest.mark.parametrize("name", slow_cases(["tiny", "lite0"], "lite0"))
def test_the_same_numbers_with_and_without_a_cache(name, tiny_folder, colors):
    data = cr.load_data(colors)
    trainings = [
        {"method": {"method": "randlora", "rank": 4}, "shots": 2, "seed": 1},
        {"method": {"method": "lora", "rank": 2}, "shots": 4, "seed": 1},
        {"method": {"method": "randlora", "towers": ["text"]}, "shots": 2, "seed": 2},
        {"method": "full", "shots": 2, "seed": 1},
        {"method": "linear_probe", "shots": 2, "seed": 1},
        {"method": "zero_shot"},
        {"method": "lora", "shots": 2, "seed": 1, "templates": ["a {} square"]},
    ]
    if name == "lite0":  # what convolutions and their norms may change
        trainings = [{**settings, "crop_size": 64} for settings in (trainings[0], trainings[3])]
    load = {"tiny": str(tiny_folder), "lite0": "lite0"}[name]
    shared = cr.load_model(load)
    cache = Cache(shared, data)
    for settings in trainings:
        settings |= {"steps": 2, "learning_rate": 1e-3, "precision": "fp32"}
        alone = run(cr.load_model(load), data, settings)
        cached = run(shared, data, settings, cache)
        for which in ("zero_shot", "tuned", "labels"):
            expected, got = (getattr(r.predictions, which) for r in (alone, cached))
            if settings["method"] == "full":  # convolutions trained after others round otherwise
                torch.testing.assert_close(expected, got, rtol=0, atol=1e-5)
            else:
                assert torch.equal(expected, got), f"{which} of {settings}"
        assert cached.predictions.names == alone.predictions.names
        assert [s.name for s in cached.skipped] == [s.name for s in alone.skipped]
        losses, expected = ([row["loss"] for row in r.history] for r in (cached, alone))
        assert losses == pytest.approx(expected, rel=1e-5 if settings["method"] == "full" else 0)


def test_a_second_training_decodes_nothing_again(tiny, colors, monkeypatch):
    data = cr.load_data(colors)
    cache = Cache(tiny, data)
    settings = {"method": "lora", "shots": 4, "steps": 1}
    run(tiny, data, settings, cache)
    before = {key: tensor.clone() for key, tensor in tiny.net.state_dict().items()}
    opened = []
    monkeypatch.setattr(
        "clip_randlora.data.dataset.decode_image", lambda *given: opened.append(given)
    )
    run(tiny, data, settings | {"shots": 2}, cache)
    assert opened == []
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny.net.state_dict().items())


def test_no_more_bytes_are_kept_than_were_allowed(tiny, colors):
    data = cr.load_data(colors)
    transform = tiny.square()
    kept = ImageCache(most_bytes=2 * 3 * 32 * 32)
    for _ in range(2):
        batches = list(decode_batches(data.test, transform, 4, kept))
        assert sum(map(len, batches)) == 21
        assert sum(kept.get(item) is not None for item in data.test) <= 3  # two, and the broken
    fresh = list(decode_batches(data.test, transform, 4))
    for expected, got in zip(fresh, batches, strict=True):
        assert torch.equal(expected.images, got.images)


def test_a_cache_of_something_else_is_refused(tiny, colors):
    data = cr.load_data(colors)
    with pytest.raises(ValueError, match="another model or data set"):
        cr.fit(tiny, data, cache=Cache(tiny, cr.load_data(colors)))
