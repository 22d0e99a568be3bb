"""What the forward pass leaves out or forgets: the features and gradients must not notice."""

import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import open_clip
import pytest
import torch
from helpers.models import randomize
from torch.nn.functional import normalize

import clip_randlora as cr
from clip_randlora.adapters import parametrization
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier, encode_tokens, shared_prefix, trim
from clip_randlora.forward.attention import batch_first_sdpa, last_block_cls_only
from clip_randlora.forward.recompute import checkpoint_cheap_ops


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def gradients(adapter, output: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    found = torch.autograd.grad((output * weights).sum(), adapter.parameters(), allow_unused=True)
    names = [name for name, _ in adapter.named_parameters()]
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    assert first and first.keys() == second.keys()
    for name, tensor in first.items():
        largest = second[name].abs().max()
        assert (tensor - second[name]).abs().max() <= tolerance * largest, name


def held_bytes(run) -> int:
    """Count the bytes that are allocated when a forward pass is over, and were not before."""
    run()  # what is made once and for all is there by then
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        output = run()
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.events())


def test_the_last_block_computes_the_class_token_alone(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    ran = []
    tiny.net.visual.transformer.resblocks[2].mlp.register_forward_hook(
        lambda _, args, __: ran.append(args[0].shape[1])
    )
    with last_block_cls_only(tiny.net):
        ours = tiny.encode_image(images())
    plain = tiny.net.encode_image(tiny.normalize(images()), normalize=True)
    assert ran == [1, 17]  # of the class token and 4 x 4 patches
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)
    assert_close(gradients(adapter, ours), gradients(adapter, plain), 1e-5)


def test_a_tower_that_averages_its_tokens_runs_whole():
    config = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"width": 48, "heads": 2, "layers": 1}
    net = open_clip.CLIP(32, config | {"pool_type": "avg"}, text).eval()
    net.visual.preprocess_cfg = {"size": 32}
    model = cr.Model(net, "averaging", None, torch.device("cpu"))
    with torch.no_grad():
        plain = net.encode_image(model.normalize(images()), normalize=True)
        with last_block_cls_only(net):
            ours = model.encode_image(images())
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [2, 3, 64, 101])
def test_a_common_prefix_passes_once_and_changes_nothing(tiny, count):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    names = [f"{colour} {thing}" for colour in ("red", "bright orange") for thing in range(60)]
    text = TextClassifier(tiny, names[:count], make_prompts(names[:count]))
    assert text.shared >= 5  # the start and "a photo of a"
    ran = []
    tiny.net.transformer.resblocks[0].register_forward_hook(
        lambda _, args, __: ran.append(args[0].shape[:2].numel())
    )
    ours = text.features()
    each = encode_tokens(tiny.net, text.tokens)
    packed, unpacked = ran
    assert unpacked == text.tokens.numel()
    own = text.tokens.shape[1] - text.shared
    assert count * own < packed < unpacked
    torch.testing.assert_close(ours, each, atol=1e-6, rtol=0)
    assert_close(gradients(adapter, ours), gradients(adapter, each), 1e-5)


def test_prompts_of_different_lengths_with_a_common_start(tiny):
    prompts = ["a photo.", "a photo of many small things on a table.", "a photo of a cat."]
    tokens = trim(tiny.net, tiny.tokenizer(prompts))
    assert shared_prefix(tokens) == 3  # the start, "a", "photo"
    with torch.no_grad():
        plain = tiny.net.encode_text(tiny.tokenizer(prompts), normalize=True)
        packed = encode_tokens(tiny.net, tokens, shared=3)
    torch.testing.assert_close(packed, plain, atol=1e-6, rtol=0)


def test_the_same_prompt_twice(tiny):
    tokens = trim(tiny.net, tiny.tokenizer(["a cat.", "a cat."]))
    with torch.no_grad():
        packed = encode_tokens(tiny.net, tokens, shared_prefix(tokens))
        plain = normalize(tiny.net.encode_text(tiny.tokenizer(["a cat."])), dim=-1)
    torch.testing.assert_close(packed, plain.expand(2, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("in_bf16", [False, True])
def test_forgotten_activations_come_back_to_the_same_bits(tiny, in_bf16):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    found = []
    for context in (nullcontext, lambda: checkpoint_cheap_ops(tiny.net)):
        with context(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            output = tiny.encode_image(images()).float()
        found.append(gradients(adapter, output))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_less_is_kept_for_the_backward_pass(tiny):
    cr.attach(tiny.net, cr.RandLoRA(rank=4))

    @contextmanager
    def lean():
        with batch_first_sdpa(tiny.net), checkpoint_cheap_ops(tiny.net):
            yield

    def run(context):
        with context():
            return tiny.encode_image(images(16))

    usual, less = (held_bytes(lambda c=c: run(c)) for c in (nullcontext, lean))
    assert less > 0
    outputs = 2 * 16 * 17 * 4 * 64 * 4  # of the GELUs of two whole blocks, float32
    assert usual - less > outputs


@pytest.mark.parametrize("in_bf16", [False, True])
def test_direct_attention_is_attention(tiny, in_bf16):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    text = TextClassifier(tiny, ["cat", "dog"], make_prompts(["cat", "dog"]))
    attention = tiny.net.visual.transformer.resblocks[0].attn
    found = []
    for context in (nullcontext, lambda: batch_first_sdpa(tiny.net)):
        with context(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            # the parametrized modules are of another class
            assert ("forward" in vars(attention)) == (context is not nullcontext)
            output = torch.cat([tiny.encode_image(images()), text.features()]).float()
        found.append({"features": output.detach(), **gradients(adapter, output)})
    assert_close(found[1], found[0], 5e-2 if in_bf16 else 1e-5)
    assert "forward" not in vars(attention)


def test_the_readmes_own_training_step_learns_and_forms_each_weight_once(
    tiny, tmp_path, monkeypatch
):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "own" in c and "merge" in c
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("open_clip.create_model", lambda *_, **__: tiny.net)
    formed, losses = [], []
    add_updates = parametrization.add_updates
    monkeypatch.setattr(
        parametrization, "add_updates", lambda *a: formed.append(1) or add_updates(*a)
    )
    cross_entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        "torch.nn.functional.cross_entropy",
        lambda *a: losses.append(float(cross_entropy(*a).detach())) or cross_entropy(*a),
    )
    pixels = tiny.normalize(images(2))
    tokens = tiny.tokenizer(["a photo of a cat.", "a photo of a dog."])
    names = {"batches": [(pixels, tokens, torch.arange(2))] * 12}
    exec(code.replace("lr=1e-3", "lr=2e-2"), names)
    weights = len(names["adapter"].weights)
    assert len(formed) == 12 * weights + weights  # and once each to merge
    assert losses[-1] < losses[0] - 0.1
    monkeypatch.undo()
    cr.load_adapter(cr.load_model(tiny.name).net, tmp_path / "adapter.safetensors")
    assert not any("forward" in vars(module) for module in tiny.net.modules())
