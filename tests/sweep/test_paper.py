"""The paper's experiment: `paper.yaml` and `paper-code.yaml`."""

import open_clip
import torch

from clip_randlora.adapters.targets import select_weights
from clip_randlora.sweep import read_sweep


def cells(name: str, **labels):
    """The cells of a sweep whose labels are these."""
    for cell in read_sweep(name).cells():
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
