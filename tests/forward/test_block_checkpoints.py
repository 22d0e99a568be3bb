"""Blocks that are computed again in the backward pass: the same bits, and less memory."""

import gc

import pytest
import torch
from helpers.models import randomize

import clip_randlora as cr
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.forward.batch_norm import find_conv_bn_pairs, folded_conv_bn
from clip_randlora.forward.training import training_forward
from clip_randlora.utils.tensor_memory import TensorMemory

NAMES = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "dog", "house")]


@pytest.fixture(scope="module")
def lite0() -> cr.Model:
    return cr.load_model("lite0", device="cpu")


def loss_of(model: cr.Model, text: TextClassifier, count: int = 4) -> torch.Tensor:
    side = 64 if model.takes_any_size else model.image_size
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    logits = 20 * model.encode_image(pixels) @ text.features().T
    return torch.nn.functional.cross_entropy(logits.float(), torch.arange(count) % len(NAMES))


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize(
    "method", [cr.RandLoRA(rank=4), cr.LoRA(rank=4), cr.RandLoRA(rank=4, blocks=1), cr.Full()]
)
@pytest.mark.parametrize("name", ["tiny", "lite0"])
def test_no_bit_changes(request, name, method, in_bf16):
    model = request.getfixturevalue(name)
    adapter = cr.attach(model.net, method)
    try:
        randomize(adapter)
        text = TextClassifier(model, NAMES, make_prompts(NAMES))
        found = []
        with folded_conv_bn(find_conv_bn_pairs(model)):
            for checkpoints in (False, True):
                autocast = torch.autocast("cpu", torch.bfloat16, enabled=in_bf16)
                forward = training_forward(model.net, adapter, checkpoints_blocks=checkpoints)
                with forward, autocast:
                    loss = loss_of(model, text)
                gradients = torch.autograd.grad(loss, adapter.parameters(), allow_unused=True)
                found.append([loss, *(grad for grad in gradients if grad is not None)])
    finally:
        adapter.detach()
    usual, again = found
    assert len(usual) == len(again) > 4
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))


def test_only_the_blocks_inputs_are_kept(tiny):
    """16 images of 17 tokens, width 64, float32; two whole blocks and one of the class token."""
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    tokens = 16 * 17 * 64 * 4
    held = []
    for checkpoints in (False, True):
        with training_forward(tiny.net, adapter, checkpoints_blocks=checkpoints):
            tiny.encode_image(torch.rand(16, 3, 32, 32))  # what is made once is there by then
            gc.collect()
            with TensorMemory() as memory:
                features = tiny.encode_image(torch.rand(16, 3, 32, 32))
        held.append(memory.live)
        assert features.requires_grad
        del features
    assert held[0] > 2 * 12 * tokens
    assert 3 * tokens < held[1] < 0.4 * held[0]


def test_every_forward_pass_is_put_back(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    text = TextClassifier(tiny, NAMES, make_prompts(NAMES))
    with training_forward(tiny.net, adapter, checkpoints_blocks=True):
        loss = loss_of(tiny, text)
    loss.backward()
    assert not [name for name, module in tiny.net.named_modules() if "forward" in vars(module)]


def test_a_pass_without_gradients_runs_each_block_once(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    ran = []
    tiny.net.visual.transformer.resblocks[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    with training_forward(tiny.net, adapter, checkpoints_blocks=True):
        with torch.no_grad():
            tiny.encode_image(torch.rand(2, 3, 32, 32))
        assert len(ran) == 1
        features = tiny.encode_image(torch.rand(2, 3, 32, 32))
    features.sum().backward()
    assert len(ran) == 3
