"""A new method is one file and one line: this is the file, and the fixture adds the line."""

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from helpers.images import write_colors
from torch import Tensor, nn

import clip_randlora as cr
from clip_randlora.adapters.config import AdapterConfig
from clip_randlora.adapters.delta import Delta, Shape


class ScaledIdentity(AdapterConfig):
    """The update ``dW = lambda * I``."""

    method: Literal["scaled_identity"] = "scaled_identity"
    start: float = 0.0

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        return [ScaledIdentityDelta(shape, self.start) for shape in shapes]


class ScaledIdentityDelta(Delta):
    """Trains lambda, a scalar."""

    def __init__(self, shape: Shape, start: float):
        super().__init__(shape)
        self.lam = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.lam * torch.eye(*self.shape, device=self.lam.device)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(cr.METHODS, "scaled_identity", ScaledIdentity)


def test_it_is_added_to_the_weights(tiny):
    before = tiny.net.visual.transformer.resblocks[0].mlp.c_fc.weight.clone()
    adapter = cr.attach(tiny.net, ScaledIdentity(start=0.5))
    adapter.strength = 0.5
    adapter.merge()
    after = tiny.net.visual.transformer.resblocks[0].mlp.c_fc.weight
    torch.testing.assert_close(after, before + 0.25 * torch.eye(*before.shape))


def test_it_trains_saves_and_answers(tiny, tmp_path):
    data = cr.load_data(write_colors(tmp_path / "colors", {"": 6}))
    settings = {"method": "scaled_identity", "towers": ["vision"], "targets": ["q", "mlp"]}
    config = cr.TrainConfig.parse({"method": settings, "steps": 4, "learning_rate": 0.01})
    run = cr.fit(tiny, data, config, tmp_path / "run")
    assert run.metrics["trainable_parameters"] == 3 * 3  # blocks; q and the MLP's two
    assert all(parameter.abs() > 0 for parameter in run.adapter.parameters())
    run.adapter.detach()
    image = data.test.items[0].open()
    (answer,) = cr.Classifier.load(tmp_path / "run", model=tiny).predict(image)
    tuned = dict(zip(run.predictions.classes, run.predictions.tuned[0].tolist(), strict=True))
    assert answer["tuned"] == pytest.approx(tuned, abs=1e-5)


def test_a_wrong_setting_is_named():
    with pytest.raises(cr.UserError, match="strat: no such setting; did you mean start"):
        cr.TrainConfig.parse({"method": {"method": "scaled_identity", "strat": 1}})
