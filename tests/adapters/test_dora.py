"""DoRA's update, by hand and beside peft's."""

import pytest
import torch
from helpers.models import randomize
from torch import nn

import clip_randlora as cr

# The rows of W have lengths 5, 13, 2 and 0.
WEIGHT = [
    [3, 4, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 5, 0, 0, 12, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 2, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
]
UP, DOWN = [[3.0], [0.0], [0.0], [0.0]], [[0, 0, 0, 0, 2.0, 0, 0, 0, 0]]
# Row 0 of V = W + 2 up down is 3, 4 and 12, of length 13; the other rows are W's.
MAGNITUDE_CHANGE = [1.5, 0.0, 1.0, 0.0]
# Row 0 is half of V, of length 6.5; row 1 stays; row 2 is one and a half times as long.
UPDATED = [
    [1.5, 2, 0, 0, 6, 0, 0, 0, 0],
    [0, 0, 5, 0, 0, 12, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 3, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
]
# The same for a tall weight: two rows of W, of lengths 5 and 1, and seven of zeros
TALL = [[3, 4, 0, 0], [0, 0, 0, 1], *[[0, 0, 0, 0]] * 7]
TALL_UPDATED = [[1.5, 2, 6, 0], [0, 0, 0, -1], *[[0, 0, 0, 0]] * 7]


def by_hand(weight, up, down, change) -> torch.Tensor:
    """Return W + dW of the example, with r = 1 and alpha = 2."""
    weight = torch.tensor(weight, dtype=torch.float32)
    (delta,) = cr.DoRA(rank=1, alpha=2).make_deltas([tuple(weight.shape)])
    with torch.no_grad():
        delta.up.copy_(torch.tensor(up))
        delta.down.copy_(torch.tensor(down))
        delta.magnitude_change.copy_(torch.tensor(change))
        torch.testing.assert_close(
            delta.added_to(weight, 0.5), weight + delta.update_of(weight) / 2
        )
        return weight + delta.update_of(weight)


def test_a_wide_weight_by_hand():
    got = by_hand(WEIGHT, UP, DOWN, MAGNITUDE_CHANGE)
    torch.testing.assert_close(got, torch.tensor(UPDATED))


def test_a_tall_weight_by_hand():
    up, down = [[3.0], *[[0.0]] * 8], [[0, 0, 2.0, 0]]
    got = by_hand(TALL, up, down, [1.5, -2.0, *[0.0] * 7])
    torch.testing.assert_close(got, torch.tensor(TALL_UPDATED))


def test_a_start_is_exactly_zero():
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 7), (7, 40)):
        weight = torch.randn(shape, generator=generator)
        weight[2] = 0
        (delta,) = cr.DoRA(rank=4).make_deltas([shape])
        assert not delta.update_of(weight).any()
        assert torch.equal(delta.added_to(weight, 1.0), weight)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)], ids=["tall", "wide"])
def test_weight_and_gradients_equal_pefts(shape):
    """The gradient of ||V|| is left out in both, as in the paper's section 4.3."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=False)
    weight = linear.weight.detach().clone()
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], use_dora=True)
    layer = peft.get_peft_model(nn.Sequential(linear), settings).base_model.model[0]
    theirs = [
        layer.lora_B["default"].weight,
        layer.lora_A["default"].weight,
        layer.lora_magnitude_vector["default"].weight,
    ]
    torch.testing.assert_close(theirs[2].detach(), weight.norm(dim=1))

    (delta,) = cr.DoRA(rank=3, alpha=6).make_deltas([shape])
    ours = [delta.up, delta.down, delta.magnitude_change]
    with torch.no_grad():
        for parameter in ours:
            parameter.normal_(std=0.3)
        for their, our in zip(theirs[:2], ours[:2], strict=True):
            their.copy_(our)
        theirs[2].copy_(weight.norm(dim=1) + delta.magnitude_change)
    inputs, direction = torch.randn(5, shape[1]), torch.randn(5, shape[0])
    updated = weight + delta.update_of(weight)
    expected = torch.autograd.grad((layer(inputs) * direction).sum(), theirs)
    found = torch.autograd.grad((inputs @ updated.T * direction).sum(), ours)
    torch.testing.assert_close(found, expected)
    layer.merge()
    torch.testing.assert_close(updated, layer.get_base_layer().weight)
    assert (updated - weight).abs().max() > 0.1


def test_on_a_model_it_sees_each_parts_own_rows(tiny):
    """q, k and v of one packed weight; half of it is half of the way."""
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    adapter = cr.attach(tiny.net, cr.DoRA(rank=2, targets=("q", "v")))
    base = adapter.weights[key].base.detach().clone()
    randomize(adapter)
    delta = adapter.deltas()[key]
    assert not delta[64:128].any() and delta[:64].any() and delta[128:].any()
    trained = dict(adapter.named_parameters())
    change = torch.cat([trained[f"{key}.{part}.magnitude_change"] for part in ("q", "v")])
    rows = [*range(64), *range(128, 192)]
    lengths = (base + delta).norm(dim=1)[rows]
    torch.testing.assert_close(lengths, base.norm(dim=1)[rows] + change)
    adapter.strength = 0.5
    half = adapter.updated_weights(0.5, "vision")[key]
    torch.testing.assert_close(half, base + delta / 2)
    adapter.merge()
    torch.testing.assert_close(tiny.net.get_parameter(key).detach(), half)


def test_two_add_up_to_the_sum_of_their_updates(tiny, tiny_folder, tmp_path):
    paths, deltas = [], []
    for number, config in enumerate((cr.DoRA(rank=2), cr.LoRA(rank=2))):
        adapter = cr.attach(tiny.net, config)
        randomize(adapter, seed=number)
        deltas.append(adapter.deltas())
        paths.append(tmp_path / f"{number}.safetensors")
        adapter.save(paths[-1])
        adapter.detach()
    total = cr.add_adapters(cr.load_model(str(tiny_folder)).net, paths, [0.25, -1.0]).deltas()
    for name, delta in total.items():
        torch.testing.assert_close(delta, 0.25 * deltas[0][name] - deltas[1][name])
