"""The baselines: their formulas, and their way through a run folder and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cases import slow_cases
from helpers.images import write_colors
from helpers.models import randomize
from helpers.trainings import straight_and_resumed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

import clip_randlora as cr
from clip_randlora.adapters import HeadConfig
from clip_randlora.adapters.bases import random_matrices
from clip_randlora.adapters.heads.linear_probe import choose_c
from clip_randlora.evaluation import encode_images
from clip_randlora.training.config import default_learning_rate

WEIGHT_METHODS = (
    cr.LoRA(rank=2),
    cr.CLIPLoRA(),
    cr.VeRA(rank=8),
    cr.NoLA(rank=2, number_of_bases=16),
    cr.DoRA(rank=2),
    cr.KRAdapter(),
    cr.NormTuning(),
    cr.Full(),
)
HEADS = {name for name, config in cr.METHODS.items() if issubclass(config, HeadConfig)}
STEPS = {"shots": 2, "steps": 2, "batch_size": 8, "crop_size": 64}


def name(config) -> str:
    return config.method


def outputs(model: cr.Model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = model.image_size
    images = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = model.tokenizer(["a photo of a cat.", "a drawing of a tree."])
    with torch.no_grad():
        return [model.encode_image(images), model.net.encode_text(tokens)]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def small_clipart() -> cr.Data:
    """The bundled drawings with two test images a class, so that a run takes seconds."""
    data = cr.load_data("clipart")
    few = [item for of_class in data.test.by_class().values() for item in of_class[:2]]
    return cr.Data(data.name, data.classes, data.train, type(data.test)(tuple(few), data.classes))


# ---------------------------------------------------------------- formulas


def test_vera_by_the_papers_formula():
    """dW = diag(b) B diag(d) A, entry by entry, with Kaiming uniform matrices."""
    config = cr.VeRA(rank=2, seed=7)
    delta, _ = config.make_deltas([(3, 4), (5, 6)])
    with torch.no_grad():
        delta.b.copy_(torch.tensor([1.0, -2.0, 0.5]))
        delta.d.copy_(torch.tensor([3.0, 0.25]))
    frozen_b = random_matrices(1, 5, 2, 0, seed=7)[0] * (2 / 2) ** 0.5
    frozen_a = random_matrices(1, 6, 2, 1, seed=7)[0] * (2 / 4) ** 0.5
    for row, b in enumerate((1.0, -2.0, 0.5)):
        for column in range(4):
            terms = (
                b * frozen_b[row, k] * d * frozen_a[column, k] for k, d in enumerate((3.0, 0.25))
            )
            assert delta()[row, column].item() == pytest.approx(sum(terms).item(), rel=1e-5)


def test_vera_equals_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        nn.Sequential(nn.Linear(12, 20)), peft.VeraConfig(r=5, target_modules=["0"])
    )
    layer = wrapped.base_model.model[0]
    delta, _ = cr.VeRA(rank=5, seed=0).make_deltas([(20, 12), (30, 40)])
    frozen_b, frozen_a = (
        random_matrices(1, side, 5, n, seed=0)[0] for n, side in ((0, 20), (1, 12))
    )
    with torch.no_grad():
        assert torch.equal(layer.vera_lambda_d["default"], delta.d)
        for parameter in (delta.b, delta.d):
            parameter.normal_()
        layer.vera_lambda_b["default"].copy_(delta.b)
        layer.vera_lambda_d["default"].copy_(delta.d)
        # peft's are Kaiming uniform, too: the largest entries that ours can have are equal
        bound = (2 / 12) ** 0.5 * 3**0.5
        assert 0.9 * bound < float(layer.vera_A["default"].abs().max()) <= bound
        layer.vera_B["default"].copy_(frozen_b * (2 / 5) ** 0.5)
        layer.vera_A["default"].copy_(frozen_a.T * (2 / 12) ** 0.5)
        torch.testing.assert_close(layer.get_delta_weight("default"), delta())


def test_nola_by_the_papers_formula():
    """dW = alpha / r * (sum_j beta_j B_j) (sum_i alpha_i A_i), with two matrices a factor."""
    config = cr.NoLA(rank=2, number_of_bases=2, alpha=3.0, seed=5)
    delta, _ = config.make_deltas([(3, 2), (4, 4)])
    assert delta.alpha.tolist() == [0.5, 0.5] and delta.beta.tolist() == [0, 0]
    with torch.no_grad():
        delta.beta.copy_(torch.tensor([1.0, -2.0]))
        delta.alpha.copy_(torch.tensor([0.5, 4.0]))
    b1, b2 = random_matrices(2, 4, 2, 0, seed=5)[:, :3]
    a1, a2 = random_matrices(2, 4, 2, 1, seed=5)[:, :2]
    expected = 3 / 2 * (b1 - 2 * b2) @ (0.5 * a1 + 4 * a2).T
    torch.testing.assert_close(delta(), expected)


def test_a_smaller_layer_uses_a_corner_of_the_same_matrices():
    whole = random_matrices(3, 6, 2, 1, seed=1)
    assert torch.equal(random_matrices(2, 4, 2, 1, seed=1), whole[:2, :4])
    assert not torch.equal(random_matrices(3, 6, 2, 0, seed=1), whole)
    assert float(random_matrices(4, 500, 10, 0, seed=3).std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("config", [cr.LoRA(rank=3, alpha=6), cr.CLIPLoRA(rank=3)], ids=name)
def test_lora_equals_peft(tiny, config):
    """CLIP-LoRA's alpha / sqrt(r) is what peft calls rank-stabilised."""
    peft = pytest.importorskip("peft")
    adapter = cr.attach(tiny.net, config)
    randomize(adapter)
    trained = dict(adapter.named_parameters())
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    q, delta = f"{key}.q", adapter.deltas()[key][:64]
    layer = peft.get_peft_model(
        nn.Sequential(nn.Linear(64, 64)),
        peft.LoraConfig(
            r=3,
            lora_alpha=config.alpha,
            target_modules=["0"],
            use_rslora=isinstance(config, cr.CLIPLoRA),
        ),
    ).base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(trained[f"{q}.down"])
        layer.lora_B["default"].weight.copy_(trained[f"{q}.up"])
        torch.testing.assert_close(layer.get_delta_weight("default"), delta)


def test_numbers_of_trained_parameters(tiny):
    """By hand for the three vision blocks of width 64: q, k, v, out and the MLP's 64 to 256."""
    weights = [(64, 64)] * 4 + [(256, 64), (64, 256)]
    expected = {
        cr.CLIPLoRA(towers=("vision",)): 3 * 3 * 2 * (64 + 64),
        cr.VeRA(rank=8, towers=("vision",)): 3 * sum(out + 8 for out, _ in weights),
        cr.NoLA(number_of_bases=10, towers=("vision",)): 3 * 6 * 20,
        cr.DoRA(rank=2, towers=("vision",)): 3 * sum(2 * (o + i) + o for o, i in weights),
        cr.KRAdapter(towers=("vision",)): 3 * (4 * 64 * (8 + 8) + 2 * 64 * (8 + 32)),
        cr.NormTuning(towers=("vision",)): (3 * 2 + 2) * 2 * 64,
        cr.Full(towers=("vision",)): sum(p.numel() for p in tiny.net.visual.parameters()),
        cr.ZeroShot(): 0,
    }
    for config, count in expected.items():
        adapter = cr.attach(tiny.net, config)
        assert adapter.num_parameters() == count, config.method
        adapter.detach()


# ---------------------------------------------------------------- on a model


@pytest.mark.parametrize("which", ["tiny", "lite0"])
@pytest.mark.parametrize("config", WEIGHT_METHODS, ids=name)
def test_starts_at_zero_and_gives_every_bit_back(tiny, which, config):
    model = tiny if which == "tiny" else cr.load_model("lite0")
    if isinstance(config, cr.NormTuning):
        model.net.requires_grad_(False)  # torch's CPU kernels for frozen linear layers differ
    kept = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    before = outputs(model)
    adapter = cr.attach(model.net, config)
    assert all(not delta.any() for delta in adapter.deltas().values())
    assert equal(before, outputs(model))
    randomize(adapter, spread=1e-3)
    changed = outputs(model)
    assert not torch.equal(before[1], changed[1])
    adapter.strength = 0
    assert equal(before, outputs(model))
    adapter.detach()
    after = model.net.state_dict()
    assert kept.keys() == after.keys() and all(torch.equal(kept[k], after[k]) for k in kept)


@pytest.mark.parametrize("config", WEIGHT_METHODS, ids=name)
def test_merged_and_loaded_it_does_the_same(tiny, tiny_folder, config, tmp_path):
    adapter = cr.attach(tiny.net, config)
    randomize(adapter)
    tuned = outputs(tiny)
    adapter.save(tmp_path / "a.safetensors")
    other = cr.load_model(str(tiny_folder))
    cr.load_adapter(other.net, tmp_path / "a.safetensors")
    assert equal(tuned, outputs(other))
    adapter.merge()
    for first, second in zip(tuned, outputs(tiny), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [cr.NoLA(number_of_bases=16), cr.DoRA(), cr.Full()], ids=name)
def test_half_of_an_adapter_is_half_of_its_update(tiny, tiny_folder, config, tmp_path):
    adapter = cr.attach(tiny.net, config)
    randomize(adapter)
    deltas = adapter.deltas()
    adapter.save(tmp_path / "a.safetensors")
    other = cr.load_model(str(tiny_folder))
    halved = cr.add_adapters(other.net, [tmp_path / "a.safetensors"], [0.5]).deltas()
    for key, delta in deltas.items():
        torch.testing.assert_close(halved[key], delta / 2)


def test_full_trains_what_is_no_matrix_too(tiny):
    adapter = cr.attach(tiny.net, cr.Full())
    assert {
        "visual.class_embedding",
        "visual.ln_post.bias",
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
    } <= adapter.weights.keys()
    assert "logit_scale" not in adapter.weights


@pytest.mark.parametrize("config", WEIGHT_METHODS, ids=name)
def test_gradients_reach_what_is_trained_in_bf16(tiny, config):
    adapter = cr.attach(tiny.net, config)
    tokens = tiny.tokenizer(["a photo of a cat."])
    with torch.autocast("cpu", torch.bfloat16):
        images = tiny.encode_image(torch.rand(2, 3, 32, 32))
        loss = (images @ tiny.net.encode_text(tokens).T).float().sum()
    loss.backward()
    grads = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert sum(bool(grad.abs().sum() > 0) for grad in grads) > len(adapter.parameters()) / 3


def test_clip_lora_on_lite0_adapts_the_text_tower_and_says_so():
    started = []
    run = cr.fit(
        cr.load_model("lite0"),
        small_clipart(),
        cr.TrainConfig(method="clip_lora", **STEPS),
        on_start=lambda adapter, notes: started.extend(notes),
    )
    assert run.adapter.towers == ("text",)
    assert "The vision tower has none of q, k, v and stays as it is." in started


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def lite0() -> cr.Model:
    model = cr.load_model("lite0")
    model.net.requires_grad_(False)  # torch's CPU kernels for frozen linear layers differ
    return model


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> cr.Data:
    """Three classes of three images each, which any method learns in a few steps."""
    return cr.load_data(write_colors(tmp_path_factory.mktemp("data") / "colors", {"": 4}))


@pytest.mark.parametrize("method", ["dora", "kradapter", "norm_tuning"])
def test_lite0_learns_in_three_steps(method, lite0, colors, tmp_path):
    before, untuned = outputs(lite0), lite0.net.state_dict()
    buffers = {key: tensor.clone() for key, tensor in untuned.items() if "running" in key}
    settings = {"method": method, "steps": 3, "batch_size": 4, "crop_size": 64}
    settings["learning_rate"] = default_learning_rate("lite0", method, 16) / 3
    run = cr.fit(lite0, colors, cr.TrainConfig(**settings, precision="fp32"))
    losses = [row["loss"] for row in run.history]
    assert losses[2] < losses[1] < losses[0]
    after = run.model.net.state_dict()  # of a batch norm, only weight and bias are trained
    assert buffers and all(torch.equal(tensor, after[key]) for key, tensor in buffers.items())

    tuned = outputs(lite0)
    run.adapter.save(tmp_path / "adapter.safetensors")
    run.adapter.detach()
    adapter = cr.load_adapter(lite0.net, tmp_path / "adapter.safetensors")
    assert equal(outputs(lite0), tuned) and not equal(before, tuned)
    adapter.strength = 0
    assert equal(outputs(lite0), before)
    adapter.detach()


RUNS = (
    "randlora",
    {"method": "lora", "rank": 4},
    "clip_lora",
    {"method": "vera", "rank": 16},
    {"method": "nola", "number_of_bases": 32},
    "dora",
    "kradapter",
    "norm_tuning",
    "full",
    "linear_probe",
    "zero_shot",
)


@pytest.mark.parametrize(
    "method",
    slow_cases(RUNS, "clip_lora", "kradapter", "norm_tuning", "full", *RUNS[3:5]),
    ids=lambda m: m if isinstance(m, str) else m["method"],
)
def test_a_run_answers_the_same_when_loaded(method, tiny, tmp_path):
    data, model = small_clipart(), tiny
    settings = {"method": method, **STEPS, "crop_size": 32}
    if method in ("randlora", "clip_lora", "norm_tuning", "full"):  # convolutions are different
        model, settings = cr.load_model("lite0"), settings | {"crop_size": 64}
    kept = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    run = cr.fit(model, data, cr.TrainConfig.parse(settings), out=tmp_path / "run")
    expected = run.metrics["method"], run.metrics["trainable_parameters"]
    run.adapter.detach()
    after = model.net.state_dict()
    assert kept.keys() == after.keys() and all(torch.equal(kept[k], after[k]) for k in kept)

    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (written["method"], written["trainable_parameters"]) == expected
    assert {"zero_shot", "tuned", "train_seconds", "shots", "seed", "model"} <= written.keys()
    for name in ("curves.png", "history.csv", "predictions.csv", "README.md"):
        assert (tmp_path / "run" / name).stat().st_size > 0

    classifier = cr.Classifier.load(tmp_path / "run", model=model)
    assert classifier.adapter.num_parameters() == written["trainable_parameters"]
    images = [item.open() for item in data.test.items[:3]]
    answers = classifier.predict(images)
    for row, answer in enumerate(answers):
        for which, recorded in (
            ("zero_shot", run.predictions.zero_shot[row]),
            ("tuned", run.predictions.tuned[row]),
        ):
            got = [answer[which][name] for name in data.classes]
            assert got == pytest.approx(recorded.tolist(), abs=1e-5)
    changes = any(answer["tuned"] != answer["zero_shot"] for answer in answers)
    assert changes == (method != "zero_shot")
    classifier.close()
    off = cr.Classifier.load(tmp_path / "run", model=model, strength=0)
    assert all(answer["tuned"] == answer["zero_shot"] for answer in off.predict(images))


@pytest.mark.parametrize("method", slow_cases(["vera", "full"], "full"))
def test_resumed_it_ends_at_the_same_numbers(tiny_folder, method, tmp_path):
    data = small_clipart()
    config = cr.TrainConfig(method=method, shots=1, steps=6, batch_size=4)
    straight, resumed = straight_and_resumed(tiny_folder, data, config, tmp_path / "run")
    pairs = zip(straight.adapter.parameters(), resumed.adapter.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    assert any(parameter.abs().sum() > 0 for parameter in resumed.adapter.parameters())


@pytest.mark.slow
def test_batch_norm_statistics_stay_under_full_fine_tuning():
    model = cr.load_model("lite0")
    before = {k: v.clone() for k, v in model.net.state_dict().items() if "running" in k}
    run = cr.fit(model, small_clipart(), cr.TrainConfig(method="full", **STEPS))
    after = run.model.net.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    moved = {key for key, delta in run.adapter.deltas().items() if delta.any()}
    assert "visual.trunk.bn1.weight" in moved and "visual.trunk.conv_stem.weight" in moved


# ---------------------------------------------------------------- the linear probe


@pytest.mark.parametrize("classes", slow_cases([2, 11], 11))
def test_the_probe_agrees_with_scikit_learn(classes):
    data, model = small_clipart(), cr.load_model("lite0")
    names = data.classes[:classes]

    def only(split):
        return type(split)(tuple(i for i in split if i.label < classes), names)

    data = cr.Data("few", names, only(data.train), only(data.test))
    config = cr.TrainConfig(method="linear_probe", shots=4, calibrate=False)
    run = cr.fit(model, data, config)
    assert run.metrics["trainable_parameters"] == classes * (run.adapter.head.in_features + 1)

    from clip_randlora.data import decode_shots

    shots = decode_shots(data.train, 4, config.seed, model.square())
    square = model.square()
    tests = torch.stack([square(item.open()) for item in data.test])
    with torch.no_grad():
        train, test = (encode_images(model, images).numpy() for images in (shots.images, tests))
    c, how = choose_c(train, shots.labels.numpy())
    assert how == "by 4-fold cross-validation on the training images"
    assert any(note == f"Linear probe: C = {c:g}, {how}." for note in run.notes)
    peer = LogisticRegression(C=c, max_iter=1000).fit(train, shots.labels.numpy())
    expected = torch.from_numpy(peer.predict_proba(test)).float()
    torch.testing.assert_close(run.predictions.tuned, expected, atol=2e-3, rtol=0)
    assert torch.equal(run.predictions.tuned.argmax(1), expected.argmax(1))


def test_a_probe_blends_the_logits(tmp_path):
    data, model = small_clipart(), cr.load_model("lite0")
    config = cr.TrainConfig.parse(
        {"method": {"method": "linear_probe", "C": 1.0}, "shots": 1, "calibrate": False}
    )
    cr.fit(model, data, config, out=tmp_path / "run").adapter.detach()
    logs = []
    for strength in (0.0, 0.5, 1.0):
        classifier = cr.Classifier.load(tmp_path / "run", model=model, strength=strength)
        (answer,) = classifier.predict([data.test.items[0].open()])
        logs.append(torch.tensor([answer["tuned"][name] for name in data.classes]).log())
        classifier.close()
    zero_shot, half, probe = (log - log.mean() for log in logs)  # logits but for a constant
    torch.testing.assert_close(half, (zero_shot + probe) / 2, atol=1e-3, rtol=1e-3)


def test_one_image_a_class_has_a_fixed_penalty():
    features = torch.eye(3).numpy()
    assert choose_c(features, torch.arange(3).numpy()) == (
        0.316,
        "as a class has a single training image",
    )


def test_a_probe_is_neither_merged_nor_added_nor_exported(tmp_path):
    model = cr.load_model("lite0")
    config = cr.TrainConfig(method="linear_probe", shots=1)
    run = cr.fit(model, small_clipart(), config, out=tmp_path / "run")
    with pytest.raises(cr.UserError, match="nothing to merge"):
        run.adapter.merge()
    run.adapter.detach()
    with pytest.raises(cr.UserError, match="a head, which updates no weight"):
        cr.add_adapters(model.net, [tmp_path / "run" / "adapter.safetensors"])
    with pytest.raises(cr.UserError, match="linear_probe leaves both encoders as they are"):
        cr.export_run(tmp_path / "run", "open_clip", tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.fixture(scope="module")
def tiny_probe(tiny_folder, tmp_path_factory) -> Path:
    """The folder of a linear probe's run."""
    out = tmp_path_factory.mktemp("probe") / "run"
    config = cr.TrainConfig(method="linear_probe", shots=1)
    cr.fit(cr.load_model(str(tiny_folder)), small_clipart(), config, out=out)
    return out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda weight: weight[:-1], "head.bias has another shape"),
        (lambda weight: weight[:, :-1], "its head does not fit the 11 classes"),
        (lambda weight: weight[0], "head.weight is missing or has another shape"),
    ],
    ids=["a class too few", "a feature too few", "a vector"],
)
def test_a_damaged_head_is_told(damage, says, tiny, tiny_probe, tmp_path):
    shutil.copytree(tiny_probe, tmp_path / "run")
    path = tmp_path / "run" / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["head.weight"] = damage(tensors["head.weight"]).contiguous()
    save_file(tensors, path, metadata)
    with pytest.raises(cr.UserError, match=says):
        cr.Classifier.load(tmp_path / "run", model=tiny)
    cr.attach(tiny.net, cr.LoRA(rank=2))  # the model is free again


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("model", ["lite0", "ViT-B-32"])
def test_every_method_of_steps_has_a_learning_rate(model):
    for method in cr.METHODS.keys() - HEADS - {"zero_shot"}:
        assert 0 < default_learning_rate(model, method, 16) < 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "full", "rank": 4}, "full.rank"),
        ({"method": "linear_probe", "C": 0}, "linear_probe.C"),
        ({"method": "zero_shot", "towers": ["text"]}, "zero_shot.towers"),
        ({"method": "nola", "number_of_bases": 0}, "nola.number_of_bases"),
        ({"method": "vera", "bases": "sparse"}, "vera.bases"),
    ],
)
def test_wrong_settings_name_the_field(settings, says):
    with pytest.raises(cr.UserError, match=says) as error:
        cr.TrainConfig.parse({"method": settings})
    assert "\n" not in str(error.value)
