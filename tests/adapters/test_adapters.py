import open_clip
import pytest
import torch
from helpers import forks
from helpers.cases import LARGE
from helpers.models import randomize
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear

import clip_randlora as cr
from clip_randlora.adapters.bases import random_bases

IMAGE_SIZES = {"ViT-B-16-SigLIP": 224, "MobileCLIP-S1": 256}


def features(net: nn.Module, image_size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    tokens = torch.randint(1, 30000, (2, net.context_length), generator=generator)
    tokens[:, 6:] = 0
    tokens[:, 5] = 31999  # the largest token: where argmax pooling reads
    with torch.no_grad():
        return net.encode_image(images), net.encode_text(tokens)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ---------------------------------------------------------------- the formula


def test_delta_by_hand():
    # n = 2 bases of rank 1 for a (2, 2) weight: scale * (b1 l1 a g1 + b2 l2 a g2)
    b = torch.tensor([[[1.0], [2.0]], [[0.0], [1.0]]])
    a = torch.tensor([[1.0, 3.0]])
    lam = torch.tensor([[2.0], [10.0]])
    gamma = torch.tensor([[1.0, 0.5], [1.0, 1.0]])
    delta = cr.randlora_delta(b, a, lam, gamma, 0.5)
    # first base: [1, 2]^T 2 [1, 1.5] = [[2, 3], [4, 6]]; second: [0, 1]^T 10 [1, 3]
    assert delta.tolist() == [[1.0, 1.5], [7.0, 18.0]]


@pytest.mark.parametrize("out_features", [48, 20])
def test_delta_equals_peft(out_features):
    from peft import RandLoraConfig, get_peft_model

    torch.manual_seed(0)
    in_features, rank = 32, 5
    wrapped = get_peft_model(
        nn.Sequential(nn.Linear(in_features, out_features)),
        RandLoraConfig(r=rank, randlora_alpha=40, target_modules=["0"], init_weights=False),
    )
    layer = wrapped.base_model.model[0]
    rows, columns = max(in_features, out_features), min(in_features, out_features)
    count = -(-columns // rank)
    nn.init.normal_(layer.randlora_gamma["default"])
    # column k n + i of peft's flattened B is the k-th column of B_i
    b = layer.randlora_B["default"].float().flatten(1).view(rows, rank, count).permute(2, 0, 1)
    delta = cr.randlora_delta(
        b,
        layer.randlora_A["default"].float().squeeze(1),
        layer.randlora_lambda["default"].T,
        layer.randlora_gamma["default"],
        layer.scaling["default"],
    )
    theirs = layer.get_delta_weight("default").detach().float()
    delta = delta if delta.shape == theirs.shape else delta.T
    assert theirs.abs().max() > 1
    torch.testing.assert_close(delta, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("distribution", ["uniform", "sparse", "very_sparse"])
def test_delta_has_full_rank(distribution):
    # in float64: products of random matrices are so badly conditioned that float32's default
    # tolerance takes a dozen of the smallest of 768 singular values for zero, for peft too
    b, a = random_bases(6, 768, 768, distribution, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    lam = torch.randn(128, 6, generator=generator, dtype=torch.float64)
    gamma = torch.randn(128, 768, generator=generator, dtype=torch.float64)
    delta = cr.randlora_delta(b, a, lam, gamma, 1 / 6)
    assert torch.linalg.matrix_rank(delta) == 768


@pytest.mark.parametrize(("rows", "columns", "rank"), [(7, 5, 2), (5, 5, 3), (6, 4, 8)])
def test_gradients(rows, columns, rank):
    b, a = random_bases(rank, rows, columns, dtype=torch.float64)
    count = b.shape[0]
    generator = torch.Generator().manual_seed(rows)
    lam, gamma = (
        torch.randn(count, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for width in (rank, columns)
    )
    assert torch.autograd.gradcheck(
        lambda lam, gamma: cr.randlora_delta(b, a, lam, gamma, 0.7), (lam, gamma)
    )


def test_delta_refuses_shapes_that_do_not_fit():
    b, a = random_bases(2, 6, 4)
    with pytest.raises(ValueError, match=r"lam is \(3, 2\), expected \(2, 2\)"):
        cr.randlora_delta(b, a, torch.zeros(3, 2), torch.zeros(2, 4), 1.0)


def test_nothing_of_the_batchs_size_is_kept_for_backward():
    """What a forward pass saves grows with the batch as the frozen layer's own does: not at all."""
    layer = open_clip.transformer.ResidualAttentionBlock(64, 2)
    net = nn.Module()
    net.visual = layer
    cr.attach(net, cr.RandLoRA(rank=4, targets=("mlp",)))
    weight = layer.mlp.c_fc.weight

    def saved(batch: int) -> int:
        numbers = 0

        def pack(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        inputs = torch.randn(batch, 10, 64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            linear(inputs, weight)
        return numbers

    assert saved(8) - saved(1) == 7 * 10 * 64  # the layer's input and nothing else


# ---------------------------------------------------------------- attaching


def test_fresh_adapter_changes_no_bit(tiny):
    before = features(tiny.net)
    cr.attach(tiny.net, cr.RandLoRA(rank=4))
    for first, second in zip(before, features(tiny.net), strict=True):
        assert torch.equal(first, second)


def test_fresh_adapter_changes_no_bit_of_lite0():
    net = cr.load_model("lite0").net
    before = features(net, 160)
    cr.attach(net, cr.RandLoRA())
    for first, second in zip(before, features(net, 160), strict=True):
        assert torch.equal(first, second)


def test_merge_keeps_the_tuned_features_and_plain_modules(tiny):
    names = set(tiny.net.state_dict())
    classes = [type(module) for module in tiny.net.modules()]
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    tuned = features(tiny.net)
    adapter.merge()
    for first, second in zip(tuned, features(tiny.net), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert set(tiny.net.state_dict()) == names
    assert all(tensor.is_contiguous() for tensor in tiny.net.state_dict().values())
    assert [type(module) for module in tiny.net.modules()] == classes


def test_detach_gives_every_weight_back(tiny):
    before, flags = weights(tiny.net), [p.requires_grad for p in tiny.net.parameters()]
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    adapter.detach()
    assert same(before, weights(tiny.net))
    assert [p.requires_grad for p in tiny.net.parameters()] == flags


@pytest.mark.parametrize("config", [cr.RandLoRA(rank=4), cr.LoRA(rank=2)])
def test_deltas_are_what_merge_adds(tiny, config):
    before = weights(tiny.net)
    adapter = cr.attach(tiny.net, config)
    randomize(adapter)
    deltas = adapter.deltas()
    assert deltas and deltas.keys() <= before.keys()
    adapter.merge()
    after = weights(tiny.net)
    for name, tensor in before.items():
        expected = tensor + deltas[name] if name in deltas else tensor
        torch.testing.assert_close(after[name], expected, atol=1e-7, rtol=0)
    assert all(delta.abs().max() > 0 for delta in deltas.values())


def test_strength_interpolates_between_zero_shot_and_tuned(tiny):
    zero_shot = features(tiny.net)
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    tuned = features(tiny.net)
    adapter.strength = 0.5
    half = adapter.net.visual.transformer.resblocks[1].mlp.c_fc.weight
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    original = tiny.net.visual.transformer.resblocks[1].mlp.c_fc.parametrizations.weight.original
    torch.testing.assert_close(half, original + 0.5 * adapter.deltas()[name])
    adapter.strength = 0
    assert all(torch.equal(a, b) for a, b in zip(zero_shot, features(tiny.net), strict=True))
    adapter.strength = 1
    assert all(torch.equal(a, b) for a, b in zip(tuned, features(tiny.net), strict=True))
    with pytest.raises(cr.UserError, match="between 0 and 1"):
        adapter.strength = 1.5


def test_q_k_v_are_selectable_one_by_one(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, targets=("q", "v"), towers=("vision",)))
    randomize(adapter)
    deltas = adapter.deltas()
    assert len(deltas) == 3
    for delta in deltas.values():
        q, k, v = delta.chunk(3)
        assert q.abs().max() > 0
        assert k.abs().max() == 0
        assert v.abs().max() > 0


def test_last_blocks_only(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, blocks=1, targets=("mlp",)))
    assert list(adapter.weights) == [
        "visual.transformer.resblocks.2.mlp.c_fc.weight",
        "visual.transformer.resblocks.2.mlp.c_proj.weight",
        "transformer.resblocks.2.mlp.c_fc.weight",
        "transformer.resblocks.2.mlp.c_proj.weight",
    ]


def test_number_of_trained_numbers(tiny):
    # per (64, 64) weight at r = 4: n = 16, n r + n d = 16 * 4 + 16 * 64 = 1088; 3 blocks of
    # q, k, v, out and two (256, 64) of the same n and d
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, towers=("vision",)))
    assert adapter.num_parameters() == 3 * 6 * 1088
    assert sum(row.parameters for row in adapter.summary()) == adapter.num_parameters()


def test_a_config_that_matches_nothing_lists_what_could(tiny):
    with pytest.raises(cr.UserError, match="vision: q, k, v, out, mlp in 3 blocks; text: q, k"):
        cr.attach(tiny.net, cr.RandLoRA(targets=("conv",)))
    assert all(parameter.requires_grad for parameter in tiny.net.parameters())


def test_a_second_adapter_is_refused(tiny):
    cr.attach(tiny.net, cr.RandLoRA(rank=4))
    with pytest.raises(cr.UserError, match="has an adapter already"):
        cr.attach(tiny.net, cr.LoRA(rank=4))


def test_a_file_is_refused_by_a_model_with_an_adapter_and_the_line_says_so(tiny, tmp_path):
    """Not that it is another model, though the names of its weights have changed."""
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    adapter.save(tmp_path / "a.safetensors")
    for load in (
        lambda: cr.load_adapter(tiny.net, tmp_path / "a.safetensors"),
        lambda: cr.add_adapters(tiny.net, [tmp_path / "a.safetensors"]),
    ):
        with pytest.raises(cr.UserError, match=r"has an adapter already: detach\(\) or merge\(\)"):
            load()
    adapter.detach()
    cr.load_adapter(tiny.net, tmp_path / "a.safetensors")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", True])
def test_weights_of_a_sum_are_finite_numbers(tiny, tmp_path, weight):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    with pytest.raises(cr.UserError, match=r"weights: .*; give finite numbers"):
        cr.add_adapters(tiny.net, [tmp_path / "a.safetensors"] * 2, (1.0, weight))


def test_only_the_adapter_is_trained(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    tiny.net.encode_image(torch.rand(2, 3, 32, 32)).sum().backward()
    trained = {id(parameter) for parameter in adapter.parameters()}
    for name, parameter in tiny.net.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        if "visual" in name and parameter.requires_grad:
            # k's gradient is zero only if softmax ignores it, which it does not
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


VIT_L_14 = {"q": 24, "k": 24, "v": 24, "out": 24, "mlp": 48}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("ViT-B-32", {"q": 12, "k": 12, "v": 12, "out": 12, "mlp": 24}, 12),
        *([("ViT-L-14", VIT_L_14, 12)] if LARGE else []),
        # 16 bottlenecks of two 1x1 convolutions and 4 downsampling ones; the attention pool
        ("RN50", {"conv": 36, "q": 1, "k": 1, "v": 1, "out": 1}, 12),
        ("convnext_base", {"mlp": 72}, 12),
        # 12 blocks and the attention pool at the end
        ("ViT-B-16-SigLIP", {"q": 13, "k": 13, "v": 13, "out": 13, "mlp": 26}, 12),
        ("MobileCLIP-S1", {"conv": 91, "q": 4, "k": 4, "v": 4, "out": 4}, 12),
    ],
)
def test_attaches_to_real_architectures(name, vision, text):
    net = open_clip.create_model(name).eval()
    size = IMAGE_SIZES.get(name, 224)
    before, kept = features(net, size), weights(net)
    adapter = cr.attach(net, cr.RandLoRA(rank=6))
    counts = {(row.tower, row.target): row.weights for row in adapter.summary()}
    assert {t: n for (tower, t), n in counts.items() if tower == "vision"} == vision
    expected = {"q": text, "k": text, "v": text, "out": text, "mlp": 2 * text}
    assert {t: n for (tower, t), n in counts.items() if tower == "text"} == expected
    for first, second in zip(before, features(net, size), strict=True):
        assert torch.equal(first, second)
    randomize(adapter, spread=0.01)
    tuned = features(net, size)
    assert all((a - b).abs().max() > 0 for a, b in zip(before, tuned, strict=True))
    adapter.detach()
    assert same(kept, weights(net))


@pytest.mark.slow
def test_vit_b_32_merge_and_file(tmp_path):
    model = cr.load_model("ViT-B-32", pretrained=None)
    adapter = cr.attach(model.net, cr.RandLoRA(rank=6))
    randomize(adapter, spread=0.005)
    path = tmp_path / "adapter.safetensors"
    adapter.save(path)
    assert path.stat().st_size <= 45e6
    tuned = features(model.net, 224)
    adapter.merge()
    for first, second in zip(tuned, features(model.net, 224), strict=True):
        first, second = (nn.functional.normalize(f, dim=-1) for f in (first, second))
        assert (first - second).abs().max() < 1e-5


# ---------------------------------------------------------------- files


def test_a_saved_adapter_loads_in_a_new_process_to_the_same_bits(tiny, tiny_folder, tmp_path):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4, bases="sparse", seed=3))
    randomize(adapter)
    adapter.save(tmp_path / "adapter.safetensors")
    save_file(adapter.deltas(), tmp_path / "deltas.safetensors")
    code = f"""
import torch, clip_randlora as cr
from safetensors.torch import load_file
adapter = cr.load_adapter(cr.load_model({str(tiny_folder)!r}).net, "adapter.safetensors")
expected, got = load_file("deltas.safetensors"), adapter.deltas()
assert expected.keys() == got.keys()
assert all(torch.equal(expected[key], got[key]) for key in got)
"""
    done = forks.of_the_package().run(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_adapter_file_holds_no_bases(tiny, tmp_path):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    adapter.save(tmp_path / "adapter.safetensors")
    stored = load_file(tmp_path / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == adapter.num_parameters()


def test_another_base_is_refused_and_both_are_named(tiny, tmp_path):
    cr.attach(tiny.net, cr.RandLoRA(rank=4)).save(tmp_path / "adapter.safetensors")
    other = cr.load_model("ViT-B-32", pretrained=None)
    with pytest.raises(cr.UserError, match=r"tiny\d*, its own weights .* ViT-B-32, random weights"):
        cr.load_adapter(other.net, tmp_path / "adapter.safetensors")


def test_other_weights_of_the_same_architecture_are_refused(tiny, tiny_folder, tmp_path):
    cr.attach(tiny.net, cr.RandLoRA(rank=4)).save(tmp_path / "adapter.safetensors")
    other = cr.load_model(str(tiny_folder)).net
    with torch.no_grad():
        other.visual.transformer.resblocks[0].ln_1.weight += 1e-3
    with pytest.raises(cr.UserError, match="trained on"):
        cr.load_adapter(other, tmp_path / "adapter.safetensors")


def test_files_that_are_no_adapters(tiny, tmp_path):
    with pytest.raises(cr.UserError, match="no such adapter file"):
        cr.load_adapter(tiny.net, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(cr.UserError, match="not a readable adapter file"):
        cr.load_adapter(tiny.net, tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(cr.UserError, match="not an adapter of this project"):
        cr.load_adapter(tiny.net, tmp_path / "other.safetensors")


def test_files_of_the_earlier_dealing_of_bases_are_refused(tiny, tmp_path):
    path = tmp_path / "adapter.safetensors"
    cr.attach(tiny.net, cr.RandLoRA(rank=4)).save(path)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata() | {"version": "1"}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(cr.UserError, match=r"adapter format 1, this .* reads formats 2 to 3"):
        cr.load_adapter(tiny.net, path)


def test_unknown_settings_name_the_field():
    with pytest.raises(cr.UserError, match=r"^method randlora.rank: .*greater than or equal to 1"):
        cr.TrainConfig.parse({"method": {"method": "randlora", "rank": 0}})
    with pytest.raises(cr.UserError, match="method: 'oft' is unknown; choose randlora, lora"):
        cr.TrainConfig.parse({"method": "oft"})


def block_with_adapter(**settings):
    """Return a transformer block of width 128 and its adapter, whose coefficients are random."""
    torch.manual_seed(0)
    net = nn.Module()
    net.visual = open_clip.transformer.ResidualAttentionBlock(128, 2)
    adapter = cr.attach(net, cr.RandLoRA(rank=4, targets=("mlp", "q", "k", "v"), **settings))
    randomize(adapter)
    return net.visual, adapter


@pytest.mark.parametrize("bases", ["uniform", "very_sparse"])
def test_under_bf16_autocast_the_weight_is_formed_in_bf16(bases):
    block, adapter = block_with_adapter(bases=bases)
    whole = block.mlp.c_fc.weight
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block.mlp.c_fc.weight
    assert (whole.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), whole, atol=1e-4, rtol=2**-8)
    grads = []
    for weight in (whole, rounded):
        grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        of_c_fc = [p for name, p in adapter.named_parameters() if "c_fc" in name]
        grads.append(torch.autograd.grad(weight, of_c_fc, grad.to(weight.dtype)))
    for exact, ours in zip(*grads, strict=True):
        assert (exact - ours).abs().max() <= 0.02 * exact.abs().max()


def test_small_updates_survive_bf16():
    """Rounded once, after the sum: on a rounded weight they would vanish without exception."""
    block, adapter = block_with_adapter()
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.mul_(0.03 if name.endswith("lam") else 1)
    original = block.mlp.c_fc.parametrizations.weight.original
    delta = adapter.deltas()["visual.mlp.c_fc.weight"]
    spacing = original.abs() * 2**-8  # of bf16 numbers, about
    assert (delta.abs() < spacing / 2).float().mean() > 0.8
    with torch.autocast("cpu", torch.bfloat16):
        change = block.mlp.c_fc.weight.float() - original.bfloat16().float()
    slope = ((change * delta).sum() / delta.square().sum()).item()  # 1 if unbiased
    assert slope == pytest.approx(1, abs=0.1)


def test_cached_weights_gives_the_same_output_and_forms_each_weight_once(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny.encode_image(images)
        with adapter.cached_weights():
            assert torch.equal(tiny.encode_image(images), expected)
            name, weight = next(iter(adapter.weights.items()))
            assert weight.weight is weight.weight, name
        assert weight.weight is not weight.weight


def test_two_networks_are_formed_independently_in_two_threads(tiny_folder):
    """The one that keeps its weights must not see those of the other, nor keep them too long."""
    models = [cr.load_model(str(tiny_folder)) for _ in range(2)]
    adapters = [cr.attach(model.net, cr.RandLoRA(rank=4)) for model in models]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), adapters[1].cached_weights():
        models[1].encode_image(images)
        outputs = []
        for step in range(2):
            randomize(adapters[0], seed=step)
            with adapters[0].cached_weights():
                outputs.append(models[0].encode_image(images))
    assert not torch.equal(*outputs)
