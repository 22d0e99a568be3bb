"""Attention of any class: open_clip 4's own, the custom one of version 3, and unknown ones.

`as_in_version_4` turns a network into one of open_clip 4's layout: the same names and weights, an
attention of its own that takes ``k_x`` and ``v_x`` and returns one tensor, no ``batch_first``.
"""

import copy
import json

import open_clip
import pytest
import torch
from helpers.images import write_colors
from helpers.models import TINY, randomize
from open_clip.transformer import CustomTransformer
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

import clip_randlora as cr
from clip_randlora.adapters.parametrization import AdaptedWeight
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.forward.attention import batch_first_sdpa


class Attention(nn.Module):
    """Batch-first attention: one packed projection, or three where keys have another width."""

    def __init__(self, width: int, heads: int, key_width: int | None = None):
        super().__init__()
        self.num_heads = heads
        sizes = {"in": (3 * width, width), "q": None, "k": None, "v": None}
        if key_width:
            sizes = {"in": None, "q": (width, width)} | dict.fromkeys("kv", (width, key_width))
        for name, size in sizes.items():
            weight = nn.Parameter(torch.empty(size).normal_(0, 0.1)) if size else None
            self.register_parameter(f"{name}_proj_weight", weight)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.ln_q = self.ln_k = self.ln_inner = nn.Identity()
        self.logit_scale = self.head_scale = None
        self.attn_drop = self.out_drop = nn.Dropout(0.0)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, k_x=None, v_x=None, attn_mask=None):
        inputs = x, x if k_x is None else k_x, x if v_x is None else v_x
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        heads = [
            linear(each, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each, weight, bias in zip(inputs, weights, self.in_proj_bias.chunk(3), strict=True)
        ]
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(x), self.num_heads))
        attended = scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block around such an attention, with the weights of another block."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.ln_1, self.ls_1 = block.ln_1, block.ls_1
        self.attn = Attention(block.attn.out_proj.in_features, block.attn.num_heads)
        self.attn.load_state_dict(block.attn.state_dict())
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x, attn_mask=None):
        normed = self.ln_1(x)
        x = x + self.ls_1(self.attn(normed, k_x=normed, v_x=normed, attn_mask=attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(block) for block in transformer.resblocks)

    def get_cast_dtype(self) -> torch.dtype:
        return self.resblocks[0].mlp.c_fc.weight.dtype

    def forward(self, x, attn_mask=None):
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


def as_in_version_4(model: cr.Model) -> cr.Model:
    net = copy.deepcopy(model.net)
    net.transformer = Transformer(net.transformer)
    net.visual.transformer = Transformer(net.visual.transformer)
    assert not hasattr(net.transformer, "batch_first")
    return cr.Model(net.eval(), model.name, model.pretrained, model.device)


@pytest.fixture
def new(tiny) -> cr.Model:
    return as_in_version_4(tiny)


@torch.no_grad()
def features(model: cr.Model) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = model.tokenizer(["a red square", "a photo of something small"])
    images = torch.rand(3, 3, 32, 32, generator=generator)
    return model.net.encode_image(images), model.net.encode_text(tokens)


def assert_same(first, second, tolerance: float = 1e-5) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def test_the_same_weights_are_adapted_as_in_version_3(tiny, new):
    assert_same(features(tiny), features(new))
    ours, theirs = (cr.attach(model.net, cr.RandLoRA(rank=4)) for model in (tiny, new))
    assert list(theirs.weights) == list(ours.weights)
    assert theirs.summary() == ours.summary()
    # vision: 3 blocks of 6 weights with n = 16 bases, 16 * 4 + 16 * 64 numbers each;
    # text: the same with n = 12, 12 * 4 + 12 * 48
    assert theirs.num_parameters() == ours.num_parameters() == 18 * (1088 + 624)


def test_outputs_before_and_after(new):
    before = features(new)
    adapter = cr.attach(new.net, cr.RandLoRA(rank=4))
    assert all(map(torch.equal, before, features(new)))
    randomize(adapter, spread=0.1)
    tuned = features(new)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, tuned, strict=True))
    adapter.strength = 0
    assert all(map(torch.equal, before, features(new)))
    adapter.strength = 1
    adapter.merge()
    assert_same(tuned, features(new))


def test_an_adapter_of_version_3_loads(tiny, new, tmp_path):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter, spread=0.1)
    adapter.save(tmp_path / "adapter.safetensors")
    loaded = cr.load_adapter(new.net, tmp_path / "adapter.safetensors")
    assert loaded.deltas().keys() == adapter.deltas().keys()
    assert_same(features(tiny), features(new))


def test_a_step_reaches_q_k_v_and_out_of_both_towers(new):
    adapter = cr.attach(new.net, cr.RandLoRA(rank=4, targets=("q", "k", "v", "out")))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    for _ in range(2):  # the first moves lambda, which starts at zero, the second gamma
        images = new.net.encode_image(torch.rand(2, 3, 32, 32))
        texts = new.net.encode_text(new.tokenizer(["a red square", "something else"]))
        (images * texts).sum().backward()
        optimizer.step()
    deltas = adapter.deltas()
    assert len(deltas) == 2 * 3 * 2
    for name, delta in deltas.items():
        for part in delta.chunk(3) if "in_proj" in name else [delta]:
            assert part.abs().max() > 0, name


def test_a_training_in_the_command_s_own_way(new, tmp_path):
    data = cr.load_data(write_colors(tmp_path / "data", {"train": 4, "test": 2}))
    config = cr.TrainConfig(method=cr.RandLoRA(rank=4), epochs=2, batch_size=4, shots=None)
    run = cr.fit(new, data, config)
    assert run.adapter.num_parameters() == 18 * (1088 + 624)
    assert all(delta.abs().max() > 0 for delta in run.adapter.deltas().values())


def test_prompts_pass_packed_as_they_do_alone(new):
    names = [f"{color} thing {number}" for color in ("red", "blue") for number in range(20)]
    text = TextClassifier(new, names, make_prompts(names))
    with torch.no_grad():
        alone = new.net.encode_text(new.tokenizer([f"a photo of a {n}." for n in names]))
        alone = nn.functional.normalize(alone, dim=-1)
    torch.testing.assert_close(text.features().detach(), alone, atol=1e-5, rtol=0)


def masks(kind: str, sequences: int, heads: int, length: int) -> torch.Tensor | None:
    causal = torch.full((length, length), float("-inf")).triu(1)
    of_each = causal.expand(sequences * heads, -1, -1).clone()
    of_each[: heads * 2, :, 1] = float("-inf")  # a padded token in the first two sequences
    return {"none": None, "causal": causal, "of each": of_each}[kind]


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("kind", ["none", "causal", "of each"])
@pytest.mark.parametrize("whose", ["version 3", "version 4"])
def test_direct_attention_of_open_clip_s_own_class(monkeypatch, whose, kind, in_bf16):
    """Equal answers and gradients, and each update is formed once in a pass, not three times."""
    own = {"version 3": open_clip.transformer.Attention, "version 4": Attention}[whose]
    monkeypatch.setattr("clip_randlora.forward.attention.Attention", own)
    torch.manual_seed(0)
    net = nn.Module()
    net.visual = own(64, 4)
    net.eval()
    adapter = cr.attach(net, cr.RandLoRA(rank=8))
    randomize(adapter, spread=0.1)
    formed = []
    for module in net.modules():
        if isinstance(module, AdaptedWeight):
            module.register_forward_hook(lambda *_: formed.append(1))
    tokens, mask = torch.randn(3, 5, 64), masks(kind, 3, 4, 5)
    named = {"k_x": tokens, "v_x": tokens} if whose == "version 4" else {}
    weights = torch.randn(3, 5, 64)

    def run() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            output = net.visual(tokens, **named, attn_mask=mask)
        output = output.float()
        return [output, *torch.autograd.grad((output * weights).sum(), adapter.parameters())]

    plain = run()
    formed.clear()
    with batch_first_sdpa(net):
        direct = run()
    assert len(formed) == 2  # the packed weight and the output projection
    for first, second in zip(plain, direct, strict=True):
        scale = second.abs().max()
        assert (first - second).abs().max() <= (5e-2 if in_bf16 else 1e-5) * scale


def test_another_key_than_the_query_goes_the_usual_way(monkeypatch):
    monkeypatch.setattr("clip_randlora.forward.attention.Attention", Attention)
    attention = Attention(64, 4).eval()
    x, other = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    with torch.no_grad():
        plain = attention(x, k_x=other, v_x=other)
        with batch_first_sdpa(attention):
            assert torch.equal(attention(x, k_x=other, v_x=other), plain)


# ---------------------------------------------------------------- what is found


def one_tower(module: nn.Module) -> nn.Module:
    net = nn.Module()
    net.visual = nn.Module()
    net.visual.blocks = nn.ModuleList([module])
    return net


def found(net: nn.Module) -> dict[str, list[str]]:
    return {w.name.removeprefix("visual.blocks.0."): [p.target for p in w.parts]
            for w in cr.find_weights(net)}  # fmt: skip


def test_separate_projections_of_a_pooler():
    assert found(one_tower(Attention(32, 4, key_width=48))) == {
        "q_proj_weight": ["q"],
        "k_proj_weight": ["k"],
        "v_proj_weight": ["v"],
        "out_proj.weight": ["out"],
    }


def test_the_custom_block_of_version_3_is_as_its_plain_one():
    torch.manual_seed(0)
    net = nn.Module()
    net.visual = CustomTransformer(64, 2, 4)
    adapter = cr.attach(net, cr.RandLoRA(rank=4))
    assert {row.target: row.weights for row in adapter.summary()} == {
        "q": 2, "k": 2, "v": 2, "out": 2, "mlp": 4,
    }  # fmt: skip
    assert "visual.resblocks.0.attn.in_proj_weight" in adapter.weights


class Mixing(nn.Module):
    """An attention whose projections have names that nobody uses."""

    def __init__(self, **children: nn.Module | nn.Parameter):
        super().__init__()
        self.num_heads = 4
        for name, child in children.items():
            setattr(self, name, child)


def test_packed_projections_are_known_by_their_shape():
    parts = {"out_proj": nn.Linear(32, 32), "gate": nn.Linear(32, 32)}
    as_layer = Mixing(anything=nn.Linear(24, 96), **parts)
    as_tensor = Mixing(anything=nn.Parameter(torch.zeros(96, 24)), **parts)
    assert found(one_tower(as_layer)) == {"anything.weight": ["q", "k", "v"],
                                          "out_proj.weight": ["out"]}  # fmt: skip
    assert found(one_tower(as_tensor)) == {"anything": ["q", "k", "v"],
                                           "out_proj.weight": ["out"]}  # fmt: skip


def test_the_queries_of_a_pooler_are_no_projection():
    pooler = open_clip.transformer.AttentionalPooler(32, 48, 4, n_queries=96)
    assert "query" not in found(one_tower(pooler))


class Block3(nn.Module):
    def __init__(self, mixing: nn.Module):
        super().__init__()
        self.mixing = mixing
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))


def unknown() -> Mixing:
    return Mixing(first=nn.Linear(32, 32), second=nn.Linear(32, 32))


def test_attention_that_is_not_known_is_an_error(tiny):
    tiny.net.visual.transformer.resblocks[1] = Block3(unknown())
    message = (
        r"the vision tower's visual\.transformer\.resblocks\.1\.mixing \(Mixing\) has no query"
    )
    with pytest.raises(cr.UserError, match=message):
        cr.attach(tiny.net, cr.RandLoRA(rank=4))
    assert all(parameter.requires_grad for parameter in tiny.net.parameters())
    with pytest.raises(cr.UserError, match=message):
        cr.attach(tiny.net, cr.CLIPLoRA())
    cr.attach(tiny.net, cr.RandLoRA(rank=4, targets=("mlp",))).detach()
    assert cr.attach(tiny.net, cr.RandLoRA(rank=4, towers=("text",))).towers == ("text",)


def test_blocks_that_attend_nowhere_in_a_transformer_are_an_error():
    class FancyTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            block = Block3(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)))
            self.blocks = nn.ModuleList([block])

    net = nn.Module()
    net.visual = FancyTransformer()
    with pytest.raises(cr.UserError, match=r"vision tower's visual \(FancyTransformer\)"):
        cr.attach(net, cr.RandLoRA(rank=4))


def test_a_convolutional_tower_is_refused_where_attention_was_chosen():
    net = cr.load_model("lite0").net
    with pytest.raises(
        cr.UserError, match=r"the vision tower has none of the targets q, v; .*conv"
    ):
        cr.attach(net, cr.RandLoRA(targets=("q", "v")))
    with pytest.raises(cr.UserError, match="vision tower has none of the targets q, mlp"):
        cr.attach(net, cr.RandLoRA(targets=("q", "mlp")))
    for config in (
        cr.RandLoRA(),  # the targets are the method's own
        cr.CLIPLoRA(),
        cr.RandLoRA(targets=("q", "v", "conv")),
        cr.RandLoRA(targets=("q", "v"), towers=("text",)),
    ):
        cr.attach(net, config).detach()


def test_a_file_of_the_text_tower_alone_still_loads(tmp_path):
    net = cr.load_model("lite0").net
    adapter = cr.attach(net, cr.LoRA(rank=1, targets=("q",), towers=("text",)))
    # as in versions that left the vision tower out silently
    adapter.config = cr.LoRA(rank=1, targets=("q",))
    adapter.save(tmp_path / "adapter.safetensors")
    adapter.detach()
    assert cr.load_adapter(net, tmp_path / "adapter.safetensors").towers == ("text",)


# ---------------------------------------------------------------- the activation


def quick(folder, weights) -> cr.Model:
    """The same weights with QuickGELU."""
    folder.mkdir()
    config = {"model_cfg": TINY | {"quick_gelu": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    return cr.load_model(str(folder))


def test_the_activation_belongs_to_the_fingerprint(tiny, tiny_folder, tmp_path):
    other = quick(tmp_path / "quick", tiny_folder / "open_clip_model.safetensors")
    for model, name in ((tiny, "GELU"), (other, "QuickGELU")):
        cr.attach(model.net, cr.LoRA(rank=1)).save(tmp_path / name)
    fresh = cr.load_model(str(tiny_folder))
    with pytest.raises(cr.UserError, match="activation QuickGELU, and the model here has GELU:"):
        cr.load_adapter(fresh.net, tmp_path / "QuickGELU")
    with pytest.raises(cr.UserError, match="activation QuickGELU, and the model here has GELU:"):
        cr.add_adapters(fresh.net, [tmp_path / "QuickGELU"])
    cr.load_adapter(fresh.net, tmp_path / "GELU")


def test_a_file_without_the_activation_loads(tiny, tiny_folder, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "adapter.safetensors"
    cr.attach(tiny.net, cr.LoRA(rank=1)).save(path)
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    base = json.loads(metadata["base"])
    assert base.pop("activation") == "GELU"
    save_file(load_file(path), path, metadata=metadata | {"base": json.dumps(base)})
    cr.load_adapter(cr.load_model(str(tiny_folder)).net, path)
    other = quick(tmp_path / "quick", tiny_folder / "open_clip_model.safetensors")
    cr.load_adapter(other.net, path)  # nobody can know
