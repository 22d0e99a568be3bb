"""Training in several processes, as torchrun and `accelerate launch` start them."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.images import write_colors
from safetensors.torch import load_file

from clip_randlora.data import augment, draw_crops
from clip_randlora.runs.run_folder import read_metrics


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 8})


def test_a_part_of_a_batch_gets_the_crops_that_it_has_in_the_whole():
    images = torch.randint(0, 256, (7, 3, 40, 40), dtype=torch.uint8)
    whole = augment(images, 32, torch.Generator().manual_seed(3))
    crops = draw_crops(7, 40, torch.Generator().manual_seed(3))
    part = crops.cut(images[2:5], 32, slice(2, 5))
    assert torch.equal(whole[2:5], part)


def train(tiny_folder, data, out, launcher, settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            *(sys.executable, "-m", *launcher, "clip_randlora", "train", data, "--out", out),
            *("--model", tiny_folder, "--config", settings, "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )


TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0", "-m"),
)
ACCELERATE_CPU = ("accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (TORCHRUN, "method: {method: randlora, rank: 4}\n"),
        (ACCELERATE, "method: {method: randlora, rank: 4, blocks: 1}\nprompts_per_step: 2\n"),
        (TORCHRUN, "method: linear_probe\n"),
        (ACCELERATE, "method: {method: randlora, rank: 4}\nstream: true\n"),
    ],
    ids=["every block", "last block and sampled prompts", "nothing trained by steps", "streamed"],
)
def test_two_processes_train_what_one_does(tiny_folder, colors, tmp_path, launcher, settings):
    config = tmp_path / "settings.yaml"
    # 7 images a step: the processes' parts are of different size
    common = "batch_size: 7\nsteps: 6\nprecision: fp32\nlearning_rate: 0.002\nshots: 4\n"
    config.write_text(common + settings)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train(tiny_folder, colors, one, (), config)
    assert alone.returncode == 0, alone.stderr
    shared = train(tiny_folder, colors, two, launcher, config)
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("Saved to") == 1
    expected, got = (load_file(out / "adapter.safetensors") for out in (one, two))
    assert expected.keys() == got.keys()
    for key, tensor in expected.items():
        assert (tensor - got[key]).abs().max() < 1e-4, key
    before, after = (read_metrics(out) for out in (one, two))
    assert (before["processes"], after["processes"]) == (1, 2)
    assert before["tuned"]["top1"] == after["tuned"]["top1"]
    assert sorted(path.name for path in one.iterdir()) == sorted(p.name for p in two.iterdir())


@pytest.mark.slow
def test_fewer_images_than_processes_are_refused(tiny_folder, colors, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("batch_size: 1\n")
    result = train(tiny_folder, colors, tmp_path / "run", TORCHRUN, config)
    assert result.returncode != 0
    assert "error: 2 processes cannot share batches of 1 images" in result.stderr


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_only_is_told_of(tiny_folder, colors, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("steps: 2\n")
    result = train(tiny_folder, colors, tmp_path / "run", ACCELERATE_CPU, config)
    assert result.returncode == 0, result.stderr
    processes = read_metrics(tmp_path / "run")["processes"]
    assert ("One process only" in result.stderr) == (processes == 1)
