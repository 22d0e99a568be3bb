"""Norm tuning: what it trains, and how it goes with folded batch norms and frozen blocks."""

import pytest
import torch
from helpers.models import randomize
from torch import nn

import clip_randlora as cr
from clip_randlora.data import AugmentedViews
from clip_randlora.forward.batch_norm import find_conv_bn_pairs, folded_conv_bn
from clip_randlora.forward.frozen_prefix import CachedImages
from clip_randlora.forward.inference import inference_model


@pytest.fixture(scope="module")
def lite0() -> cr.Model:
    return cr.load_model("lite0")


@pytest.fixture
def attached(lite0):
    """Attach norm tuning with random coefficients to lite0."""
    adapters = []

    def attach(**settings) -> cr.Adapter:
        adapters.append(cr.attach(lite0.net, cr.NormTuning(**settings)))
        randomize(adapters[0], spread=0.1)
        return adapters[0]

    yield attach
    for adapter in adapters:
        adapter.detach()


def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["tiny", "lite0"])
def test_it_trains_the_norms_and_nothing_else(name, tiny, lite0):
    net = tiny.net if name == "tiny" else lite0.net
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    tensors = {id(tensor) for norm in norms for tensor in (norm.weight, norm.bias)}
    expected = {key for key, tensor in net.named_parameters() if id(tensor) in tensors}
    count = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    adapter = cr.attach(net, cr.NormTuning())
    assert adapter.weights.keys() == expected
    assert adapter.num_parameters() == count
    adapter.detach()


def test_by_hand(tiny):
    """w' = w + s dw: the last norm of the image tower, at half strength."""
    adapter = cr.attach(tiny.net, cr.NormTuning(towers=("vision",), blocks=1))
    assert {name.split(".resblocks.")[-1] for name in adapter.weights} == {
        *(f"2.ln_{number}.{leaf}" for number in (1, 2) for leaf in ("weight", "bias")),
        *(f"visual.ln_post.{leaf}" for leaf in ("weight", "bias")),
    }
    with torch.no_grad():
        dict(adapter.named_parameters())["visual.ln_post.weight.weight.difference"].fill_(0.5)
    adapter.strength = 0.5
    adapter.merge()
    assert torch.equal(tiny.net.visual.ln_post.weight, torch.full((64,), 1.25))


class Norms(nn.Module):
    """Norms of several libraries, and what only sounds like one."""

    class LlamaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    class NormMlpHead(nn.Linear):
        pass

    def __init__(self):
        super().__init__()
        self.visual = nn.Module()
        self.visual.group = nn.GroupNorm(2, 4)
        self.visual.rms = self.LlamaRMSNorm()
        self.visual.plain = nn.LayerNorm(4, elementwise_affine=False)
        self.visual.head = self.NormMlpHead(4, 4)


def test_group_and_rms_norms_are_found():
    names = [w.name for w in cr.select_weights(Norms(), cr.NormTuning())]
    assert names == ["visual.group.weight", "visual.group.bias", "visual.rms.weight"]


def test_a_model_without_norms_is_one_line():
    net = Norms()
    del net.visual.group, net.visual.rms
    with pytest.raises(cr.UserError, match="no norm of this model has a weight"):
        cr.select_weights(net, cr.NormTuning())


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_folded_and_unfolded_features_are_the_same(lite0, attached, strength):
    """In inference all norms are folded, by their updated weights."""
    with torch.no_grad():
        zero_shot = lite0.encode_image(pixels())
        adapter = attached()
        adapter.strength = strength
        direct = lite0.encode_image(pixels())
        ready = inference_model(lite0, adapter.updated_weights(strength, "vision"))
        assert not find_conv_bn_pairs(ready)  # they were folded already
        folded = ready.encode_image(pixels())
    torch.testing.assert_close(folded, direct, atol=1e-5, rtol=0)
    assert (direct - zero_shot).abs().max() > 1e-3


def test_in_training_only_frozen_norms_are_folded(lite0, attached):
    adapter = attached(blocks=2)
    tuned = {weight.module for weight in adapter.weights.values()}
    pairs = find_conv_bn_pairs(lite0)
    norms = {m for m in lite0.net.modules() if isinstance(m, nn.BatchNorm2d)}
    assert {pair.norm for pair in pairs} == norms - tuned and norms & tuned
    parameters = [p for name, p in adapter.named_parameters() if name.startswith("visual")]

    def both() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        features = lite0.encode_image(pixels())
        weights = torch.arange(features.numel()).view_as(features)
        return features, torch.autograd.grad((features * weights).sum(), parameters)

    features, gradients = both()
    with folded_conv_bn(pairs):
        ours, our_gradients = both()
    torch.testing.assert_close(ours, features, atol=1e-5, rtol=0)
    for our, gradient in zip(our_gradients, gradients, strict=True):
        bound = 1e-3 * float(gradient.abs().max())
        assert bound > 0
        torch.testing.assert_close(our, gradient, atol=bound, rtol=0)


def test_frozen_blocks_are_cached(lite0, attached):
    adapter = attached(blocks=2)
    images = (pixels() * 255).byte()
    views = AugmentedViews(images, 64, 2, seed=0)
    kept = CachedImages(adapter, lite0.encode_image, views)
    rows, chosen = torch.tensor([1, 0]), torch.tensor([1, 0])
    cached = kept.features(kept.select(rows, chosen))
    direct = lite0.encode_image(views.crops(rows, chosen))
    torch.testing.assert_close(cached, direct, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_norms_train_alike(tiny, precision):
    """Gradients with the training's forward pass, which recomputes norms, and without it."""
    adapter = cr.attach(tiny.net, cr.NormTuning())
    randomize(adapter, spread=0.1)
    tokens = tiny.tokenizer(["a photo of a cat.", "two dogs"])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            products = tiny.encode_image(images) @ tiny.net.encode_text(tokens).T
        return products.float().diagonal().sum()

    direct = torch.autograd.grad(loss(), adapter.parameters())
    with cr.training_forward(tiny.net, adapter):
        ours = loss()
    ours = torch.autograd.grad(ours, adapter.parameters())
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    for one, other in zip(ours, direct, strict=True):
        scale = float(other.abs().max())
        assert scale > 0 and float((one - other).abs().max()) <= tolerance * scale


def test_it_is_not_added_to_another_kind_of_update(tiny, tmp_path):
    paths = []
    for config in (cr.Full(), cr.NormTuning()):
        paths.append(tmp_path / f"{config.method}.safetensors")
        adapter = cr.attach(tiny.net, config)
        adapter.save(paths[-1])
        adapter.detach()
    with pytest.raises(cr.UserError, match="norm_tuning adapts other weights than full in"):
        cr.add_adapters(tiny.net, paths)
