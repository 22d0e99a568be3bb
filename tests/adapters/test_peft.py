"""Adapters of the peft library, both ways, on small models of CLIP's own layout."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.exports import elsewhere
from helpers.models import TINY, randomize
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora.adapters.io.transformers_names import to_transformers

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

EVERY_TARGET = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture
def theirs(tiny) -> "transformers.CLIPModel":
    """transformers' form of the tiny model: its size in `conftest.TINY`, its own weights."""
    tower = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "gelu"}
    net = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, "hidden_size": 48, "intermediate_size": 192}
            | {"eos_token_id": 49407, "vocab_size": 49408},
            vision_config={**tower, "hidden_size": 64, "intermediate_size": 256}
            | {"image_size": 32, "patch_size": 8},
            projection_dim=32,
        )
    )
    net.load_state_dict(to_transformers(tiny.net.state_dict()))
    return net.eval()


def inputs(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    tokens = torch.randint(1, 30000, (2, 77), generator=generator)
    tokens[:, 6:] = 0
    tokens[:, 5] = 49407  # end of text
    return images, tokens


@torch.no_grad()
def our_features(net) -> tuple[torch.Tensor, torch.Tensor]:
    images, tokens = inputs()
    return net.encode_image(images), net.encode_text(tokens)


@torch.no_grad()
def their_features(net) -> tuple[torch.Tensor, torch.Tensor]:
    images, tokens = inputs()
    image, text = net.get_image_features(images), net.get_text_features(tokens)
    return image.pooler_output, text.pooler_output


def trained_by_peft(net, targets, folder, **settings):
    """Give CLIPModel a RandLoRA adapter with random coefficients, and let peft save it."""
    config = peft.RandLoraConfig(r=4, randlora_alpha=3, target_modules=targets, **settings)
    adapted = peft.get_peft_model(net, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "randlora_" in name:
                parameter.normal_(0, 0.05, generator=generator)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("bases", ["uniform", "sparse", "very_sparse"])
def test_our_adapter_gives_the_same_features_in_peft(tiny, theirs, tmp_path, bases):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=5, bases=bases, alpha=2))
    randomize(adapter, spread=0.1)
    cr.save_peft_adapter(adapter, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    with loaded.disable_adapter():
        base = their_features(loaded)
    for ours, others, before in zip(
        our_features(tiny.net), their_features(loaded), base, strict=True
    ):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-5 * float(ours.abs().max()))
        assert (others - before).abs().max() > 0.1 * before.abs().max()


def test_strength_goes_into_alpha(tiny, theirs, tmp_path):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=5))
    randomize(adapter, spread=0.1)
    adapter.strength = 0.5
    cr.save_peft_adapter(adapter, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    for ours, others in zip(our_features(tiny.net), their_features(loaded), strict=True):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-5 * float(ours.abs().max()))


def test_an_optimiser_step_in_peft_changes_lambda_and_gamma_only(tiny, theirs, tmp_path):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=5))
    randomize(adapter)
    cr.save_peft_adapter(adapter, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft", is_trainable=True)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=1.0)
    loaded(
        pixel_values=torch.randn(2, 3, 32, 32), input_ids=torch.tensor([[1, 49407], [2, 49407]])
    ).logits_per_image.diagonal().sum().backward()
    optimizer.step()
    changed = {n for n, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[n])}
    trained = {name for name in before if "randlora_lambda" in name or "randlora_gamma" in name}
    assert changed == trained
    # 3 blocks of q, k, v, out, fc1 and fc2 in each of two towers
    assert len(trained) == 2 * 3 * 6 * 2


@pytest.mark.parametrize(
    ("targets", "settings", "adapted"),
    [
        (EVERY_TARGET, {}, 2 * 3 * 4),
        (["q_proj", "v_proj"], {"sparse": True}, 2 * 3),
        (r"vision_model.*\.[12]\..*(fc1|fc2)", {"very_sparse": True}, 2 * 2),
    ],
)
def test_an_adapter_that_peft_trained_loads_here(
    tiny, theirs, tmp_path, targets, settings, adapted
):
    trained = trained_by_peft(theirs, targets, tmp_path / "peft", **settings)
    before = our_features(tiny.net)
    adapter = cr.load_adapter(tiny.net, tmp_path / "peft")
    assert len(adapter.weights) == adapted
    for ours, others in zip(our_features(tiny.net), their_features(trained), strict=True):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert not torch.allclose(before[0], our_features(tiny.net)[0], atol=1e-3)


def require_same_numbers(first: Path, second: Path) -> None:
    """Compare every tensor of two adapters that are stored for peft, and their settings."""
    tensors, written = (load_file(each / "adapter_model.safetensors") for each in (first, second))
    seen = set()
    for key, tensor in tensors.items():
        if key.endswith(("randlora_A", "randlora_B")):  # peft repeats the shared pair in each layer
            key = "base_model." + key.rsplit(".", 1)[1]
        assert torch.equal(tensor, written[key]), key
        seen.add(key)
    assert seen == written.keys()
    settings, same = (
        json.loads((each / "adapter_config.json").read_text()) for each in (first, second)
    )
    for key in ("r", "randlora_alpha", "projection_prng_key", "sparse", "very_sparse"):
        assert settings[key] == same[key]


def test_round_trip_keeps_every_number(tiny, theirs, tmp_path):
    trained_by_peft(theirs, EVERY_TARGET, tmp_path / "first")
    adapter = cr.load_adapter(tiny.net, tmp_path / "first" / "adapter_model.safetensors")
    adapter.save(tmp_path / "adapter.safetensors")
    adapter.detach()
    again = cr.load_adapter(tiny.net, tmp_path / "adapter.safetensors")
    cr.save_peft_adapter(again, tmp_path / "second")
    require_same_numbers(tmp_path / "first", tmp_path / "second")


# the last 2 of 12 blocks of each tower, 0.9 GB as peft saves them; all of them are 5.5 GB
BLOCKS = r".*layers\.(10|11)\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


# as large as OpenAI's: peft trains for a step and saves, where this package is missing
TRAIN_THERE = f"""
from peft import RandLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

inputs = load_file("inputs.safetensors")
config = RandLoraConfig(r=4, randlora_alpha=3, target_modules={BLOCKS!r})
model = get_peft_model(CLIPModel.from_pretrained("base"), config)
trained = [p for name, p in model.named_parameters() if "randlora_" in name]
generator = torch.Generator().manual_seed(1)
with torch.no_grad():
    for parameter in trained:
        parameter.normal_(0, 0.05, generator=generator)
optimizer = torch.optim.AdamW(trained, lr=1e-3)
model(**inputs).logits_per_image.diagonal().sum().backward()
optimizer.step()
model.save_pretrained("first")
"""
SAVE_FEATURES = """
with torch.no_grad():
    output = model.eval()(**inputs)
save_file({"images": output.image_embeds, "texts": output.text_embeds}, "features.safetensors")
"""
# what came back from this package answers to the bit as what was sent
LOAD_THERE = """
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel

inputs, before = load_file("inputs.safetensors"), load_file("features.safetensors")
model = PeftModel.from_pretrained(CLIPModel.from_pretrained("base"), "second").eval()
with torch.no_grad():
    output = model(**inputs)
for got, sent in ((output.image_embeds, before["images"]), (output.text_embeds, before["texts"])):
    print("features differ by", float((got - sent).abs().max()))
    assert torch.equal(got, sent)
"""


@pytest.mark.slow
def test_round_trip_keeps_every_number_of_vit_b_32(tmp_path):
    """peft saves, this package loads and saves, peft loads that again."""
    ours = cr.load_model("ViT-B-32", None, "cpu").net
    base = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={"hidden_act": "gelu", "eos_token_id": 49407},
            vision_config={"hidden_act": "gelu"},
        )
    )
    base.load_state_dict(to_transformers(ours.state_dict()))
    base.save_pretrained(tmp_path / "base")
    images, tokens = inputs(224)
    save_file({"pixel_values": images, "input_ids": tokens}, tmp_path / "inputs.safetensors")
    elsewhere(TRAIN_THERE + SAVE_FEATURES, tmp_path)
    adapter = cr.load_adapter(ours, tmp_path / "first")
    # 2 blocks of q, k, v together, out, fc1 and fc2 in each of two towers
    assert len(adapter.weights) == 2 * 2 * 4
    cr.save_peft_adapter(adapter, tmp_path / "second")
    require_same_numbers(tmp_path / "first", tmp_path / "second")
    elsewhere(LOAD_THERE, tmp_path)
    theirs = load_file(tmp_path / "features.safetensors")
    with torch.no_grad():
        mine = {
            "images": ours.encode_image(images, normalize=True),
            "texts": ours.encode_text(tokens, normalize=True),
        }
        adapter.strength = 0
        untuned = ours.encode_image(images, normalize=True)
    for key, features in mine.items():
        difference = float((features - theirs[key]).abs().max())
        print(f"{key} here and in peft differ by {difference:.1e}")
        assert difference < 1e-4
    assert (mine["images"] - untuned).abs().max() > 1e-3


SHARED = ("randlora_A", "randlora_B")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], out: Path) -> Path:
    """Store other tensors beside the settings of an adapter in ``folder``."""
    out.mkdir()
    shutil.copy(folder / "adapter_config.json", out)
    save_file({k: t.clone() for k, t in tensors.items()}, out / "adapter_model.safetensors")
    return out


def once_for_the_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the layers' copies of the shared projections, as peft does after 0.21.2."""
    once = {f"base_model.{name}" for name in SHARED}
    return {k: t for k, t in tensors.items() if k in once or not k.endswith(SHARED)}


def once_for_each_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Repeat the shared projections in every layer, as peft does up to 0.21.2."""
    layers = [k.rpartition(".")[0] for k in tensors if k.endswith("randlora_lambda")]
    copies = {
        f"{layer}.{name}": tensors[f"base_model.{name}"] for layer in layers for name in SHARED
    }
    return tensors | copies


def in_one_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep one layer's copy and no names of a wrapper, as an adapter that was only injected has."""
    every = once_for_each_layer(tensors)
    layer = next(k for k in every if k.endswith("randlora_lambda")).rpartition(".")[0]
    kept = {f"{layer}.{name}" for name in SHARED}
    return {
        k.removeprefix("base_model.model."): t
        for k, t in every.items()
        if k in kept or not k.endswith(SHARED)
    }


@pytest.mark.parametrize("layout", [once_for_the_model, once_for_each_layer, in_one_layer])
def test_the_shared_projections_are_read_from_every_layout(tiny, theirs, tmp_path, layout):
    trained = trained_by_peft(theirs, EVERY_TARGET, tmp_path / "peft")
    tensors = layout(stored(tmp_path / "peft"))
    copies = {once_for_the_model: 1, once_for_each_layer: 1 + 2 * 3 * 6, in_one_layer: 1}[layout]
    assert sum(key.endswith("randlora_A") for key in tensors) == copies
    cr.load_adapter(tiny.net, rewrite(tmp_path / "peft", tensors, tmp_path / "other"))
    for ours, others in zip(our_features(tiny.net), their_features(trained), strict=True):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-5 * float(ours.abs().max()))


@pytest.mark.parametrize("layout", [once_for_the_model, once_for_each_layer])
def test_what_is_written_loads_in_every_layout(tiny, theirs, tmp_path, layout):
    """Ours is the later layout; the earlier one, of the same numbers, says the same in peft."""
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=5))
    randomize(adapter, spread=0.1)
    cr.save_peft_adapter(adapter, tmp_path / "ours")
    tensors = stored(tmp_path / "ours")
    assert once_for_the_model(tensors).keys() == tensors.keys()
    other = rewrite(tmp_path / "ours", layout(tensors), tmp_path / "other")
    loaded = peft.PeftModel.from_pretrained(theirs, other)
    for mine, others in zip(our_features(tiny.net), their_features(loaded), strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=1e-5 * float(mine.abs().max()))


def test_only_the_numbers_that_are_needed_are_written(tiny, theirs, tmp_path):
    trained_by_peft(theirs, EVERY_TARGET, tmp_path / "theirs")
    adapter = cr.load_adapter(tiny.net, tmp_path / "theirs")
    cr.save_peft_adapter(adapter, tmp_path / "ours")
    ours, others = stored(tmp_path / "ours"), stored(tmp_path / "theirs")
    assert ours.keys() == once_for_the_model(others).keys()
    # of the widest output and input, 256: 16 bases of rank 4, and their counterpart
    assert {key: tensor.numel() for key, tensor in ours.items() if key.endswith(SHARED)} == {
        "base_model.randlora_A": 4 * 256,
        "base_model.randlora_B": 256 * 64 * 4,
    }


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["fc1"], "some layers and not others"),
        (["q_proj", "visual_projection"], "trains visual_projection"),
    ],
)
def test_what_cannot_be_expressed_here_is_named(tiny, theirs, tmp_path, targets, says):
    trained_by_peft(theirs, targets, tmp_path / "peft")
    with pytest.raises(cr.UserError, match=says):
        cr.load_adapter(tiny.net, tmp_path / "peft")
    cr.attach(tiny.net, cr.RandLoRA(rank=4))  # nothing was left attached


def test_other_kinds_of_peft_adapters_are_named(tiny, theirs, tmp_path):
    peft.get_peft_model(theirs, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    with pytest.raises(cr.UserError, match="of type LORA; only RANDLORA"):
        cr.load_adapter(tiny.net, tmp_path / "lora")


def test_an_adapter_of_another_size_is_refused(tiny, theirs, tmp_path):
    trained_by_peft(theirs, ["q_proj"], tmp_path / "peft")
    deeper = copy.deepcopy(TINY)
    deeper["vision_cfg"]["layers"] = 4
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": deeper, "preprocess_cfg": {}})
    )
    other = cr.load_model(str(tmp_path), pretrained=None)
    with pytest.raises(cr.UserError, match="adapts some layers"):
        cr.load_adapter(other.net, tmp_path / "peft")
    with pytest.raises(cr.UserError, match="has no place for"):
        cr.load_adapter(cr.load_model("lite0").net, tmp_path / "peft")


def test_without_projections_the_line_says_how_to_save_them(tiny, theirs, tmp_path):
    trained_by_peft(theirs, ["q_proj"], tmp_path / "peft", save_projection=False)
    with pytest.raises(cr.UserError, match="save_projection=True"):
        cr.load_adapter(tiny.net, tmp_path / "peft")
    shutil.rmtree(tmp_path / "peft")
    with pytest.raises(cr.UserError, match="no such adapter file"):
        cr.load_adapter(tiny.net, tmp_path / "peft")


def test_a_lora_run_is_refused_for_peft(tiny, tmp_path):
    adapter = cr.attach(tiny.net, cr.LoRA(rank=2))
    with pytest.raises(cr.UserError, match="only randlora"):
        cr.save_peft_adapter(adapter, tmp_path / "peft")
