"""Frozen blocks run once for each view of an image, and training comes out the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trainings import straight_and_resumed
from PIL import Image

import clip_randlora as cr
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import AugmentedViews
from clip_randlora.forward import frozen_prefix

FAST = {"steps": 6, "batch_size": 4, "shots": 2, "precision": "fp32"}  # 6 images, 4 epochs


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    """Three classes of two noisy images each."""
    root = tmp_path_factory.mktemp("colors")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, color in {
            "blue": (30, 60, 220),
            "green": (30, 200, 60),
            "red": (220, 40, 30),
        }.items():
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                noise = random.normal(0, 40, (40, 48, 3))
                pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def refuses(monkeypatch):
    """Let no tower fit, so that every block is run at every step."""

    def refuse() -> None:
        def raise_it(*_) -> None:
            raise frozen_prefix.CannotCache("it was asked not to")

        monkeypatch.setattr(frozen_prefix, "replaced_forwards", raise_it)

    return refuse


class Counted:
    """Counts the images that go through a module, step by step of its calls."""

    def __init__(self, module: torch.nn.Module):
        self.rows: list[int] = []
        module.register_forward_hook(lambda _, args, __: self.rows.append(len(args[0])))


def fit(model, colors, **settings):
    return cr.fit(model, cr.load_data(colors), cr.TrainConfig(**{**FAST, **settings}))


def trained(run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.adapter.named_parameters()}


def assert_close(ours: dict, theirs: dict, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = float(theirs[name].abs().max())
        assert float((value - theirs[name]).abs().max()) <= tolerance * scale, name


def images(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["tiny", "lite0"])
def test_features_and_gradients_are_those_of_the_direct_pass(tiny_folder, name):
    model = cr.load_model("lite0" if name == "lite0" else str(tiny_folder))
    adapter = cr.attach(model.net, cr.RandLoRA(rank=4, blocks=2))
    views = AugmentedViews(images(3, 40), 32, 2, seed=0)
    kept = frozen_prefix.CachedImages(adapter, model.encode_image, views)
    rows, chosen = torch.tensor([2, 0]), torch.tensor([1, 0])
    gradients = []
    for encode in (
        lambda: kept.features(kept.select(rows, chosen)),
        lambda: model.encode_image(views.crops(rows, chosen)),
    ):
        features = encode()
        (features * torch.arange(features.numel()).view_as(features)).sum().backward()
        parameters = dict(adapter.named_parameters())
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        gradients.append(found | {"features": features.detach()})
        for parameter in adapter.parameters():
            parameter.grad = None
    assert len(gradients[0]) > 8
    assert_close(*gradients, 1e-5 if name == "lite0" else 1e-6)


def test_class_features_are_those_of_the_direct_pass(tiny):
    text = TextClassifier(tiny, ["a", "b"], [["a cat.", "one more cat."], ["a dog."]])
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, blocks=1))
    ran = Counted(tiny.net.transformer.resblocks[0].mlp)
    kept = frozen_prefix.CachedText(adapter, text.features)
    before = len(ran.rows)
    torch.testing.assert_close(kept.features(), text.features(), rtol=1e-6, atol=1e-7)
    assert len(ran.rows) == before + 1  # by the direct pass


@pytest.mark.parametrize("settings", [{"blocks": 1}, {"blocks": 2}, {"towers": ("text",)}])
def test_training_ends_where_it_would_without_what_is_kept(
    tiny_folder, colors, refuses, monkeypatch, settings
):
    method = cr.RandLoRA(rank=4, **settings)
    with_kept = fit(cr.load_model(str(tiny_folder)), colors, method=method, views=3)
    refuses()
    monkeypatch.setattr(frozen_prefix, "CACHE_BYTES", 0)
    direct = fit(cr.load_model(str(tiny_folder)), colors, method=method, views=3)
    assert not with_kept.notes
    assert any("its frozen blocks run at every step" in note for note in direct.notes)
    ours = {name: value for name, value in trained(with_kept).items() if name.endswith("lam")}
    assert_close(ours, {name: trained(direct)[name] for name in ours}, 1e-2)
    losses = [[row["loss"] for row in run.history] for run in (with_kept, direct)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("views", "kept"), [(None, 3), (2, 2), (9, 4)])
def test_frozen_blocks_run_once_for_each_view(tiny, colors, views, kept):
    """Four views at most, as the run has four epochs; a few images more are the check's."""
    first, last = (Counted(tiny.net.visual.transformer.resblocks[i].mlp) for i in (0, 2))
    of_text = Counted(tiny.net.transformer.resblocks[0].mlp)
    at_step = []

    def count(_) -> None:
        at_step.append((sum(first.rows), sum(last.rows), len(of_text.rows)))

    settings = FAST | {"learning_rate": 1e-3}  # a default rate looks at the images, too
    config = cr.TrainConfig(**settings, method=cr.RandLoRA(rank=4, blocks=1), views=views)
    cr.fit(tiny, cr.load_data(colors), config, on_step=count)
    checked = 1 + 2 + 2 + 1  # one image and two, these two again for a replay, one for its size
    assert at_step[0][0] == at_step[-1][0] == kept * 6 + checked
    assert at_step[-1][1] - at_step[0][1] == 5 * 4
    assert at_step[0][2] == at_step[-1][2] == 1


def test_a_tower_that_is_not_adapted_runs_once_for_each_view(tiny, colors):
    runs = Counted(tiny.net.visual.transformer.resblocks[2])
    seen = []
    cr.fit(
        tiny,
        cr.load_data(colors),
        cr.TrainConfig(
            **FAST | {"learning_rate": 1e-3},
            method=cr.RandLoRA(rank=4, towers=("text",)),
            views=2,
        ),
        on_step=lambda _: seen.append(sum(runs.rows)),
    )
    assert seen == [2 * 6 + 1] * 6  # and a blank image


def test_no_blocks_frozen_and_views_asked_for_are_cycled_through(tiny_folder, colors):
    def losses(**settings):
        return [
            row["loss"] for row in fit(cr.load_model(str(tiny_folder)), colors, **settings).history
        ]

    same = {"method": cr.RandLoRA(rank=4), "batch_size": 6, "learning_rate": 1e-12}
    one_view, two_views, fresh = losses(**same, views=1), losses(**same, views=2), losses(**same)
    assert one_view == pytest.approx([one_view[0]] * 6, rel=1e-5)
    assert two_views == pytest.approx(two_views[:2] * 3, rel=1e-5)
    assert two_views[0] == pytest.approx(one_view[0], rel=1e-5)
    assert abs(two_views[1] - two_views[0]) > 1e-5
    assert len({round(loss, 6) for loss in fresh}) == 6


def test_a_view_is_the_same_however_many_there_are():
    pixels, rows = images(3, 40), torch.tensor([0, 2])
    few, many = (AugmentedViews(pixels, 32, count, seed=3) for count in (2, 5))
    view = torch.tensor([1, 1])
    assert torch.equal(few.crops(rows, view), many.crops(rows, view))
    assert not torch.equal(many.crops(rows, view), many.crops(rows, view + 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_ends_at_the_same_weights(tiny_folder, colors, tmp_path, precision):
    data = cr.load_data(colors)
    config = cr.TrainConfig(
        **{**FAST, "precision": precision}, method=cr.RandLoRA(rank=4, blocks=1)
    )
    straight, resumed = straight_and_resumed(tiny_folder, data, config, tmp_path / "run")
    expected, got = trained(straight), trained(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not resumed.notes


def test_a_tower_that_looks_back_falls_back(tiny, colors):
    """A skip connection from before the blocks to after them: a replay would miss it."""
    transformer = tiny.net.visual.transformer
    plain = transformer.forward
    transformer.forward = lambda x, *args, **kwargs: plain(x, *args, **kwargs) + 0.5 * x
    run = fit(tiny, colors, method=cr.RandLoRA(rank=4, blocks=1))
    assert run.notes == [
        "Vision tower: its frozen blocks run at every step, as a replay of its blocks gives other "
        "features."
    ]
    assert run.metrics["steps"] == 6


def test_memory_is_bounded(tiny_folder, colors, monkeypatch):
    one_view = 6 * 17 * 64 * 4  # images, tokens, width, bytes
    method = cr.RandLoRA(rank=4, blocks=1)
    monkeypatch.setattr(frozen_prefix, "CACHE_BYTES", 2 * one_view)
    run = fit(cr.load_model(str(tiny_folder)), colors, method=method)
    assert run.notes == [
        "Training cycles through 2 augmented views of each image, not 3: the activations of more "
        "would take too much memory."
    ]
    monkeypatch.setattr(frozen_prefix, "CACHE_BYTES", one_view - 1)
    run = fit(cr.load_model(str(tiny_folder)), colors, method=method)
    assert len(run.notes) == 1
    assert "as one view of each image would take" in run.notes[0]
