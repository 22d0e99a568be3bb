"""Classifying on a Ray cluster: the same answers as here, also when a worker is lost."""

import contextlib
import json
import pickle
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from helpers import forks
from helpers.commands import command, without_progress
from helpers.images import write_colors
from PIL import Image

import clip_randlora as cr
from clip_randlora.classifier import Answers
from clip_randlora.cluster import Pool, _read_table, _write_table, share_out
from clip_randlora.data import UnreadableImage
from clip_randlora.data.inputs import Input


@pytest.mark.parametrize(
    ("nodes", "workers", "pool"),
    [
        ([{"CPU": 2}], None, Pool(1, 2, None)),
        ([{"CPU": 16}, {"CPU": 6}], None, Pool(5, 4, None)),
        ([{"CPU": 2}], 2, Pool(2, 1, None)),
        ([{"CPU": 6}, {"CPU": 6}], 3, Pool(3, 3, None)),  # 4 cores fit once on each machine
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}], None, Pool(2, None, 1)),
        ([{"CPU": 16, "GPU": 2}], 3, Pool(3, None, 0.5)),
        ([{"CPU": 16, "GPU": 2}], 1, Pool(1, None, 1)),
    ],
)
def test_a_cluster_is_shared_out(nodes, workers, pool):
    assert share_out(nodes, workers) == pool


def test_gpus_are_left_alone_for_the_cpu_and_workers_need_a_core():
    assert share_out([{"CPU": 4, "GPU": 2}], None, wants_gpus=False) == Pool(1, 4, None)
    with pytest.raises(cr.UserError, match="--workers 5: the cluster has 4 CPU cores in all"):
        share_out([{"CPU": 3}, {"CPU": 1}], 5)


def test_tables_keep_the_answers_and_their_order():
    broken = UnreadableImage("b.png", "broken")
    probabilities = torch.rand(2, 3)
    answers = Answers(["a", "b", "c"], [None, broken, None], probabilities, probabilities / 2)
    entries = [Input(name, Image.Image) for name in "xyabc"]
    read = _read_table(_write_table(answers, 2), entries, 2)
    assert read.names == answers.names
    assert [str(error) for error in read.errors] == ["None", "b.png: broken", "None"]
    assert torch.equal(read.zero_shot, answers.zero_shot)
    assert torch.equal(read.tuned, answers.tuned)
    with pytest.raises(RuntimeError, match="another order"):
        _read_table(_write_table(answers, 2), entries, 0)


def test_a_member_of_a_zip_is_read_in_another_process(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in write_colors(tmp_path / "colors", {"train": 2}).rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    items, _ = cr.list_images(tmp_path / "images.zip")
    sent = tmp_path / "item"
    sent.write_bytes(pickle.dumps(items[-1]))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).content.read().hex())"
    done = forks.of_the_package().run(code, [sent])
    assert bytes.fromhex(done.stdout) == items[-1].content.read(), done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--engine", "rey"], "--engine rey: choose local or ray"),
        (["--address", "127.0.0.1:1"], "--address: only with --engine ray"),
        (["--workers", "2"], "--workers: only with --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers 0: give 1 or more"),
        (["--engine", "ray"], "run: not a run folder, nor the adapter file of one: no such path"),
    ],
)
@pytest.mark.parametrize("name", ["eval", "predict"])
def test_wrong_options_are_named_in_one_line(name, options, says, tmp_path):
    done = command(name, tmp_path / "run", "clipart", *options)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert done.stderr.splitlines()[-1].endswith(says)


@pytest.mark.slow
def test_two_workers_answer_as_one_process_does_and_one_is_killed(
    tiny_folder, tmp_path, ray_folder
):
    import psutil

    data = write_colors(tmp_path / "colors", {"train": 6, "test": 1})
    run = tmp_path / "run"
    config = cr.TrainConfig(method="lora", steps=2, learning_rate=0.01, precision="fp32")
    cr.fit(cr.load_model(str(tiny_folder)), cr.load_data(data), config, run).adapter.detach()
    many = tmp_path / "many"
    noise = np.random.default_rng(0)
    for number in range(1500):
        many.joinpath(str(number % 3)).mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(many / str(number % 3) / f"{number}.png")
    (many / "1" / "7000.png").write_bytes(b"nothing")

    local = command("predict", run, many, "--csv", tmp_path / "local.csv")
    assert local.returncode == 0, local.stderr
    remote = [sys.executable, "-m", "clip_randlora", "predict", run, many, "--engine", "ray"]
    process = subprocess.Popen(
        [*remote, "--workers", "2", "--csv", tmp_path / "ray.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = None
    try:
        while killed is None and process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # also a zombie's: it ended meanwhile
                for worker in psutil.Process(process.pid).children(recursive=True):
                    if any("_Worker)).submit" in part for part in worker.cmdline()):
                        worker.kill()
                        killed = worker.pid
                        break
            time.sleep(0.05)
        output, errors = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
            for child in [*started, process]:
                child.kill()
    assert process.returncode == 0, errors
    assert killed is not None
    assert output == ""  # Ray's own lines are nowhere
    unwrapped = ["".join(without_progress(text).split()) for text in (errors, local.stderr)]
    assert unwrapped[0].replace("ray.csv", "local.csv") == unwrapped[1]
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    evaluated = [
        command("eval", run, data, "--json", *options)
        for options in ([], ["--engine", "ray", "--workers", "2"])
    ]
    here, there = (json.loads(done.stdout) for done in evaluated)
    assert here == there
