"""Batch norm folded into convolutions, and depthwise convolutions' own backward pass."""

import pytest
import torch
from helpers.models import randomize
from torch import nn
from torch.nn import functional as F

import clip_randlora as cr
from clip_randlora.clip.models import Model, load_model
from clip_randlora.forward.batch_norm import Pair, find_conv_bn_pairs, folded_conv_bn
from clip_randlora.forward.depthwise import depthwise_conv


@pytest.fixture(scope="module")
def lite0() -> Model:
    return load_model()


def pixels(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def as_model(visual: nn.Module) -> Model:
    """Wrap an image tower that takes 32 px."""
    net = nn.Module()
    visual.preprocess_cfg = {"size": 32}
    net.visual = visual.eval()
    return Model(net, "test", None, torch.device("cpu"))


class Block(nn.Module):
    """A convolution and a norm with statistics of their own; ``also`` what else reads between."""

    def __init__(self, also=lambda made, result: result, **settings):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, **settings), nn.BatchNorm2d(6)
        self.also = also
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        made = self.conv(images)
        return self.also(made, self.norm(made))


def test_features_and_gradients_stay_and_weights_are_untouched(lite0):
    adapter = cr.attach(lite0.net, cr.RandLoRA(rank=6))
    try:
        randomize(adapter)
        parameters = [p for name, p in adapter.named_parameters() if name.startswith("visual")]
        before = {key: tensor.clone() for key, tensor in lite0.net.state_dict().items()}
        pairs = find_conv_bn_pairs(lite0)
        assert len(pairs) == sum(isinstance(m, nn.BatchNorm2d) for m in lite0.net.modules())
        images = pixels(2, 64)
        direction = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))

        def both() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            features = lite0.encode_image(images)
            return features, torch.autograd.grad((features * direction).sum(), parameters)

        features, gradients = both()
        with folded_conv_bn(pairs):
            ours, our_gradients = both()
        torch.testing.assert_close(ours, features, atol=1e-5, rtol=0)
        for our, gradient in zip(our_gradients, gradients, strict=True):
            bound = 1e-3 * float(gradient.abs().max())
            torch.testing.assert_close(our, gradient, atol=bound, rtol=0)
        after = lite0.net.state_dict()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        assert not any("forward" in module.__dict__ for module in lite0.net.modules())
        assert torch.equal(both()[0], features)
    finally:
        adapter.detach()


def test_bfloat16_gradients_are_as_near_to_float32_as_unfolded(lite0):
    images = pixels(4, 64).requires_grad_()
    direction = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    for parameter in lite0.net.parameters():
        parameter.requires_grad_(False)
    pairs = find_conv_bn_pairs(lite0)

    def gradient(pairs: list[Pair], enabled: bool) -> torch.Tensor:
        with folded_conv_bn(pairs), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = lite0.encode_image(images)
        return torch.autograd.grad((features.float() * direction).sum(), images)[0].flatten()

    exact = gradient([], False)
    plain, ours = (
        float(F.cosine_similarity(gradient(some, True), exact, dim=0)) for some in ([], pairs)
    )
    assert ours > 0.8
    assert ours > plain - 0.05


def test_open_clip_resnets_are_folded():
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    model = as_model(ModifiedResNet([1, 1, 1, 1], 16, 2, 32, 8))
    for norm in model.net.visual.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight.requires_grad_(False))
            norm.bias.requires_grad_(False)
    pairs, images = find_conv_bn_pairs(model), pixels(2, 32)
    assert len(pairs) == 3 + 4 * 4
    expected = model.net.visual(images)
    with folded_conv_bn(pairs):
        torch.testing.assert_close(model.net.visual(images), expected, atol=1e-5, rtol=1e-5)


def test_towers_without_batch_norm_are_left_alone(tiny):
    assert find_conv_bn_pairs(tiny) == []
    import timm

    convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    assert find_conv_bn_pairs(as_model(convnext)) == []


@pytest.mark.parametrize(
    "settings", [{}, {"padding": "same"}, {"stride": 2, "padding": 1, "dilation": 2}, {"groups": 3}]
)
def test_every_kind_of_convolution(settings):
    block = Block(**settings).requires_grad_(False)
    pairs, images = find_conv_bn_pairs(as_model(block)), pixels(2, 32)
    assert pairs == [Pair(block.conv, block.norm)]
    expected = block(images)
    with folded_conv_bn(pairs):
        torch.testing.assert_close(block(images), expected)


def test_what_cannot_be_folded_safely_is_left_out():
    read_again = Block(lambda made, result: made + result).requires_grad_(False)
    returned = Block(lambda made, result: (made, result)).requires_grad_(False)
    trained = Block()
    hooked = Block().requires_grad_(False)
    hooked.conv.register_forward_hook(lambda *_: None)
    twice = Block().requires_grad_(False)
    twice.also = lambda made, result: twice.norm(result)
    for block in (read_again, returned, trained, hooked, twice):
        assert find_conv_bn_pairs(as_model(block)) == []


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        (16, 3, (2, 2), (0, 1, 0, 1)),
        (12, 5, (2, 2), (1, 2, 1, 2)),
        (11, 3, (2, 2), (1, 1, 1, 1)),
        (11, 5, (3, 2), (2, 1, 0, 2)),
        (10, 2, (3, 3), (0, 0, 0, 0)),
    ],
)
def test_strided_depthwise_equals_conv2d(side, kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, side, side, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(6, 1, kernel, kernel, generator=generator).bfloat16()
    result = depthwise_conv(images, weight, None, stride, padding)
    assert "Strided" in type(result.grad_fn).__name__
    expected = F.conv2d(F.pad(images.double(), padding), weight.double(), None, stride, groups=6)
    torch.testing.assert_close(result.double(), expected, atol=0.05, rtol=0.02)
    grad = torch.randn(result.shape, generator=generator).bfloat16()
    ours, theirs = (
        torch.autograd.grad(r, images, grad.to(r.dtype))[0].double() for r in (result, expected)
    )
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)
