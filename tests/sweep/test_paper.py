"""The paper's experiment: `paper.yaml`, `paper-code.yaml`, and one step of each method."""

import math
from functools import cache

import open_clip
import pytest
import torch
from helpers.images import write_colors
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import clip_randlora as cr
from clip_randlora.adapters.bases import random_bases, random_matrices
from clip_randlora.adapters.targets import select_weights
from clip_randlora.data import decode_shots
from clip_randlora.sweep import Cell, read_sweep
from clip_randlora.training.image_inputs import draw_batch

RATE, DECAY, LOG_SCALE, SEED = 1e-3, 0.1, 4.60517, 1


@cache
def all_cells(name: str) -> list[Cell]:
    return list(read_sweep(name).cells())


def cells(name: str, **labels):
    """The cells of a sweep whose labels are these."""
    for cell in all_cells(name):
        of_cell = {
            "model": cell.model.label,
            "data": cell.data_label,
            "method": cell.method.label,
            "shots": cell.shots,
            "seed": cell.seed,
        }
        if labels.items() <= of_cell.items():
            yield cell


def setting(name: str, **labels):
    (cell,) = cells(name, **labels, seed=1)
    return cell.train_config(), cell.splits


def test_the_papers_settings_by_model_data_set_and_shots():
    config, splits = setting("paper", model="ViT-L-14", data="dtd", method="randlora", shots="50%")
    assert (config.method.rank, config.method.scale, config.accumulate) == (8, 10 / 8, 2)
    assert (config.epochs, config.min_steps, config.max_steps) == (76, 1, None)
    config, splits = setting("paper", model="ViT-H-14", data="svhn", method="full", shots=4)
    assert (config.epochs, config.min_steps, config.accumulate) == (10, 100, 4)
    assert (config.learning_rate, config.shots, splits.validation) == (1e-5, 4, 5000)
    ranks = {"ViT-B-32": 256, "ViT-L-14": 256, "ViT-H-14": 1024}
    for model, rank in ranks.items():
        config, _ = setting("paper", model=model, data="mnist", method="vera", shots=1)
        assert (config.method.rank, config.method.scale) == (rank, 1 / rank)
    for name, passes in (("paper", 12), ("paper-code", 13)):
        where = {"model": "ViT-B-32", "data": "eurosat", "shots": "all"}
        config, splits = setting(name, **where, method="lora")
        assert (config.epochs, config.method.scale, splits.held_out) == (passes, 1 / 32, 0.1)
    assert config.templates == ("An image of {}",)


def test_the_released_codes_numbers_of_trainable_parameters():
    with torch.device("meta"):  # shapes alone
        net = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    counts = {}
    for method in ("randlora", "lora", "vera", "nola"):
        config, _ = setting("paper-code", model="ViT-B-32", data="mnist", method=method, shots=1)
        weights = select_weights(net, config.method)
        shapes = [weight.part_shape(part) for weight in weights for part in weight.parts]
        assert len(shapes) == 2 * 12 * 3
        deltas = config.method.make_deltas(shapes)
        counts[method] = sum(p.numel() for delta in deltas for p in delta.parameters())
    widths, blocks = (768, 512), 12
    # in each block q, k, v as one (3 d, d), and the MLP's (4 d, d) and (d, 4 d)
    assert counts == {
        "randlora": sum(blocks * 3 * (d // 6 + 1) * (6 + d) for d in widths),
        "lora": sum(blocks * 32 * (4 * d + 5 * d + 5 * d) for d in widths),
        "vera": sum(blocks * (3 * 256 + 3 * d + 4 * d + d) for d in widths),
        "nola": 2 * blocks * 3 * 2 * 1024,
    }
    assert counts["randlora"] == 5_198_184
    assert counts["lora"] == 6_881_280


METHODS = {
    "randlora of the paper": cr.RandLoRA(rank=6, alpha=10, targets=("qkv", "mlp")),
    "randlora": cr.RandLoRA(rank=6, targets=("qkv", "mlp"), as_released=True),
    "lora": cr.LoRA(rank=8, alpha=1, targets=("qkv", "mlp")),
    "vera": cr.VeRA(rank=16, targets=("qkv", "mlp"), as_released=True),
    "nola": cr.NoLA(rank=1, number_of_bases=32, targets=("qkv", "mlp")),
    "full": cr.Full(),
}


def formula(method, shape, largest, p):
    """The update of a weight by the paper's formulas, from the parameters ``p`` by name."""
    if isinstance(method, cr.Full):
        return p["difference"].view(shape)
    out, width = shape
    high, wide = largest
    if isinstance(method, cr.RandLoRA):  # section 4: sum_i B_i diag(lambda_i) A diag(gamma_i)
        n, r = p["lam"].shape
        bases = random_bases(r, max(shape), min(shape) + method.as_released, seed=SEED)
        a = bases.a[:, : min(shape)]
        update = torch.zeros(max(shape), min(shape))
        for i in range(n):
            update = update + bases.b[i] @ torch.diag(p["lam"][i]) @ a @ torch.diag(p["gamma"][i])
        return method.alpha / r * (update if out >= width else update.T)
    if isinstance(method, cr.LoRA):  # B A / r
        return method.alpha / method.rank * (p["up"] @ p["down"])
    if isinstance(method, cr.VeRA):  # diag(b) B diag(d) A / r
        b = random_matrices(1, high, method.rank, 0, SEED)[0, :out]
        a = random_matrices(1, wide, method.rank, 1, SEED)[0, :width].T
        return torch.diag(p["b"]) @ b @ torch.diag(p["d"]) @ a / method.rank
    # NoLA: (sum_j beta_j B_j) (sum_i alpha_i A_i) / r
    b = random_matrices(method.number_of_bases, high, 1, 0, SEED)[:, :out]
    a = random_matrices(method.number_of_bases, wide, 1, 1, SEED)[:, :width]
    up = sum(beta * matrix for beta, matrix in zip(p["beta"], b, strict=True))
    down = sum(alpha * matrix.T for alpha, matrix in zip(p["alpha"], a, strict=True))
    return up @ down


def adamw_step(parameters, gradients):
    """The first step of AdamW from zero moments, after clipping the gradient's norm at 1."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    stepped = {}
    for name, value in parameters.items():
        g = gradients[name] * min(1.0, 1 / (norm + 1e-6))
        first, second = 0.1 * g / (1 - 0.9), 0.001 * g**2 / (1 - 0.999)
        gradients[name] = g
        stepped[name] = value * (1 - RATE * DECAY) - RATE * first / (second.sqrt() + 1e-8)
    return stepped


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> cr.Data:
    return cr.load_data(write_colors(tmp_path_factory.mktemp("colors"), {"train": 4, "test": 1}))


@pytest.mark.parametrize("name", METHODS)
def test_one_step_is_the_papers_formulas(tiny, tiny_folder, colors, name):
    method, batches = METHODS[name], []

    def record(module, inputs):
        if torch.is_grad_enabled():
            batches.append(inputs[0].detach().clone())

    hook = tiny.net.visual.register_forward_pre_hook(record)
    config = cr.TrainConfig(
        method=method, shots=4, seed=SEED, steps=1, batch_size=12, learning_rate=RATE,
        weight_decay=DECAY, warmup=0, label_smoothing=0, logit_scale=LOG_SCALE,
        prompts_per_step="batch", templates=("An image of {}",), precision="fp32", beta2=0.999,
    )  # fmt: skip
    trained = dict(cr.fit(tiny, colors, config).adapter.named_parameters())
    hook.remove()
    (images,) = [batch for batch in batches if len(batch) == 12]
    drawn = decode_shots(colors.train, 4, SEED, tiny.square(32)).labels
    labels = drawn[draw_batch(0, 12, 12, SEED)[0]]

    plain = cr.load_model(str(tiny_folder))
    base = {key: value.detach().clone() for key, value in plain.net.state_dict().items()}
    adapter = cr.attach(plain.net, method.with_seed(SEED))
    start = {key: value.detach().clone() for key, value in adapter.named_parameters()}
    weights = {key: weight.parts[0].target for key, weight in adapter.weights.items()}
    adapter.detach()
    largest = tuple(max(base[key].shape[side] for key in weights) for side in (0, -1))

    parameters = {key: value.requires_grad_() for key, value in start.items()}
    adapted = dict(base)
    for key, target in weights.items():
        prefix = f"{key}.{target}."
        own = {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}
        adapted[key] = base[key] + formula(method, base[key].shape, largest, own)
    tokens = plain.tokenizer([f"An image of {colors.classes[label]}" for label in labels])
    image_features, text_features, *_ = functional_call(plain.net, adapted, (images, tokens))
    first = (labels[:, None] == labels).int().argmax(dim=1)
    loss = cross_entropy(LOG_SCALE * image_features @ text_features.T, first)
    found = torch.autograd.grad(loss, list(parameters.values()))
    gradients = dict(zip(parameters, found, strict=True))
    expected = adamw_step({k: v.detach() for k, v in parameters.items()}, gradients)

    assert expected.keys() == trained.keys()
    moved = compared = 0
    for key, value in expected.items():
        # AdamW's first step is nearly the sign of the gradient, which rounding decides near zero
        is_clear = gradients[key].abs() > 1e-5
        error = (trained[key].detach() - value).abs()
        assert not is_clear.any() or float(error[is_clear].max()) < 1e-6
        assert float(error.max()) < 2.1 * RATE
        moved += int((gradients[key] != 0).sum())
        compared += int(is_clear.sum())
    assert compared > moved / 3, (compared, moved)
