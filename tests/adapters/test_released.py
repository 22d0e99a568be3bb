"""Updates as in the code that RandLoRA's authors released for CLIP."""

import pytest
import torch
from helpers.models import randomize
from torch import nn

import clip_randlora as cr
from clip_randlora.adapters.bases import random_bases, random_matrices

PACKED = ("qkv", "mlp")
METHODS = (
    cr.RandLoRA(rank=4, targets=PACKED),
    cr.RandLoRA(rank=4, targets=PACKED, as_released=True),
    cr.VeRA(rank=8, targets=PACKED, as_released=True),
    cr.LoRA(rank=2, targets=PACKED),
    cr.NoLA(rank=1, number_of_bases=16, targets=PACKED),
)


def features(model) -> torch.Tensor:
    tokens = model.tokenizer(["a photo of a cat.", "a drawing of a tree."])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat([model.net.encode_image(images), model.net.encode_text(tokens)])


def test_qkv_is_one_weight_of_three_widths(tiny):
    adapter = cr.attach(tiny.net, cr.LoRA(rank=2, targets=("qkv",), towers=("vision",)))
    # r (in + out) of a (192, 64) weight, in 3 blocks
    assert set(adapter.shapes()) == {(192, 64)}
    assert adapter.num_parameters() == 3 * 2 * (192 + 64)
    assert [(row.target, row.weights) for row in adapter.summary()] == [("qkv", 3)]
    randomize(adapter)
    for delta in adapter.deltas().values():
        assert torch.linalg.matrix_rank(delta) == 2  # three updates of rank 2 have rank 6


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_fresh_merged_and_loaded(tiny, tiny_folder, config, tmp_path):
    before = features(tiny)
    adapter = cr.attach(tiny.net, config)
    assert torch.equal(features(tiny), before)
    randomize(adapter, spread=0.5)
    tuned = features(tiny)
    assert (tuned - before).abs().max() > 1e-3
    adapter.save(tmp_path / "a.safetensors")
    adapter.merge()
    torch.testing.assert_close(features(tiny), tuned, rtol=1e-4, atol=1e-5)
    again = cr.load_model(str(tiny_folder))
    assert cr.load_adapter(again.net, tmp_path / "a.safetensors").config == config.with_seed(0)
    assert torch.equal(features(again), tuned)


def test_randlora_has_one_base_more_where_the_rank_divides_the_width(tiny):
    config = cr.RandLoRA(rank=4, targets=PACKED, towers=("vision",), as_released=True)
    adapter = cr.attach(tiny.net, config)
    # n = floor(64 / 4) + 1 = 17; n r + n d of one (192, 64) and two of 64 and 256, in 3 blocks
    assert adapter.num_parameters() == 3 * 3 * (17 * 4 + 17 * 64)
    parameters = dict(adapter.named_parameters())
    lam = next(value for name, value in parameters.items() if name.endswith("lam"))
    gamma = next(value for name, value in parameters.items() if name.endswith("gamma"))
    assert torch.equal(lam, torch.full((17, 4), 1 / 17))
    assert torch.equal(gamma, torch.zeros(17, 64))


def test_randlora_by_the_sum_over_its_bases(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, targets=PACKED, as_released=True, alpha=10))
    randomize(adapter)
    trained, deltas = dict(adapter.named_parameters()), adapter.deltas()
    for name, weight in adapter.weights.items():
        target = weight.parts[0].target
        lam, gamma = (trained[f"{name}.{target}.{which}"] for which in ("lam", "gamma"))
        rows, columns = max(weight.weight.shape), min(weight.weight.shape)
        bases = random_bases(4, rows, columns + 1)  # room for one base more
        assert len(lam) == columns // 4 + 1
        expected = sum(
            bases.b[i, :rows] * lam[i] @ (bases.a[:, :columns] * gamma[i]) for i in range(len(lam))
        ) * (10 / 4)
        expected = expected.T if weight.weight.shape[0] < columns + 1 else expected
        torch.testing.assert_close(deltas[name], expected, rtol=1e-4, atol=1e-5)


def test_vera_has_bases_of_standard_deviation_1_and_1_over_r():
    config = cr.VeRA(rank=8, as_released=True, seed=3)
    (delta,) = config.make_deltas([(12, 6)])
    with torch.no_grad():
        delta.b.normal_()
        delta.d.normal_()
    b, a = random_matrices(1, 12, 8, 0, 3)[0], random_matrices(1, 6, 8, 1, 3)[0].T
    expected = torch.diag(delta.b) @ b @ torch.diag(delta.d) @ a / 8
    torch.testing.assert_close(delta(), expected)
    (usual,) = config.model_copy(update={"as_released": False}).make_deltas([(12, 6)])
    usual.load_state_dict(delta.state_dict())
    # Kaiming uniform: standard deviations sqrt(2 / 8) of B and sqrt(2 / 6) of A
    torch.testing.assert_close(usual(), expected * 8 * (2 / 8 * 2 / 6) ** 0.5)


class Separate(nn.Module):
    """A block whose attention holds q, k and v as weights of their own."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.attn, name, nn.Linear(8, 8))
        self.attn.num_heads = 2


@pytest.mark.parametrize("targets", [("qkv",), PACKED])
def test_separate_weights_refuse_qkv_in_one_line(targets):
    net = nn.ModuleDict({"visual": nn.ModuleDict({"blocks": nn.ModuleList([Separate()])})})
    with pytest.raises(cr.UserError, match="targets: qkv, but the vision tower holds q, k and v"):
        cr.attach(net, cr.LoRA(rank=2, targets=targets, towers=("vision",)))


def test_q_is_not_adapted_twice():
    with pytest.raises(ValueError, match="qkv has q already; give qkv, or q, k and v"):
        cr.LoRA(targets=("qkv", "q"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (cr.RandLoRA(rank=4, targets=PACKED), "targets qkv: peft's RandLoRA has nothing like it"),
        (cr.RandLoRA(rank=4, as_released=True), "as_released: peft's RandLoRA has nothing like it"),
    ],
)
def test_peft_cannot_express_it(tiny, tmp_path, config, says):
    adapter = cr.attach(tiny.net, config)
    with pytest.raises(cr.UserError, match=says):
        cr.save_peft_adapter(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
