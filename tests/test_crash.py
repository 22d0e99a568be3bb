"""What is promised about crashes: killed processes, full disks, folders that two want."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from crash import kill_and_go_on, run
from safetensors.torch import load_file
from test_bad_input import ADAPTER, write_classes
from test_cli import command

import clip_randlora as cr
from clip_randlora.errors import UserError
from clip_randlora.outputs import locked, written_whole

KILLS = int(os.environ.get("CLIP_RANDLORA_KILLS", "3"))
SEED = int(os.environ.get("CLIP_RANDLORA_SEED", "1"))


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "colors", ["blue", "red"], 8)


def arguments(colors: Path, model: Path, out: Path, steps: int = 200) -> list:
    return [
        "train", colors, "--model", model, "--steps", steps, "--rank", 4, "--precision", "fp32",
        "--out", out,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def straight(colors, tiny_folder, tmp_path_factory) -> tuple[Path, float]:
    """A run that nothing disturbed, and its seconds."""
    out = tmp_path_factory.mktemp("straight") / "run"
    started = time.monotonic()
    done = run(arguments(colors, tiny_folder, out))
    assert done.returncode == 0, done.stderr
    return out, time.monotonic() - started


@pytest.mark.slow
def test_killed_trainings_end_at_the_same_weights(straight, colors, tiny_folder, tmp_path):
    expected, seconds = straight
    out = tmp_path / "run"
    weights = load_file(expected / ADAPTER)

    def check_and_start_over() -> None:
        compare()
        shutil.rmtree(out)

    def compare() -> None:
        got = load_file(out / ADAPTER)
        assert got.keys() == weights.keys()
        assert all(torch.equal(got[key], weights[key]) for key in weights)
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in expected.iterdir())

    report = kill_and_go_on(
        arguments(colors, tiny_folder, out),
        lambda: ["--resume"] if (out / "config.yaml").exists() else [],
        lambda: (out / "metrics.json").exists(),
        check_and_start_over,
        KILLS,
        SEED,
        seconds,
    )
    assert report.errors == [] and report.kills == KILLS
    compare()
    print(f"{report.kills} kills, {report.finished} runs ended in between")


@pytest.mark.slow
def test_killed_exports_are_whole_or_not_there(straight, tmp_path):
    out = tmp_path / "there" / "export"

    def is_whole() -> bool:
        if not out.exists():
            return False
        assert {"README.md", ADAPTER, "config.json"} <= {path.name for path in out.iterdir()}
        return True

    report = kill_and_go_on(
        ["export", straight[0], "--format", "adapter", "--out", out],
        list,
        is_whole,
        lambda: shutil.rmtree(out),
        KILLS,
        SEED,
        longest=12,
    )
    assert report.errors == [] and is_whole()
    assert [path.name for path in out.parent.iterdir()] == ["export"]  # no remains of the killed


HOLD = """
import sys, time
from pathlib import Path
from clip_randlora.outputs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tiny, colors, tmp_path):
    out = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline().strip() == "held"
    config = cr.TrainConfig(steps=2, method={"method": "randlora", "rank": 4})
    try:
        with pytest.raises(UserError, match=r"--out .*run: another process is writing there"):
            cr.fit(tiny, cr.load_data(colors), config, out)
        assert (out / ".lock").exists()
    finally:
        other.kill()
        other.wait()
    cr.fit(tiny, cr.load_data(colors), config, out)
    assert (out / "metrics.json").exists() and not (out / ".lock").exists()


def test_a_run_goes_where_another_was_killed_at_its_first_file(tiny, colors, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.tmp").write_text("mod")
    config = cr.TrainConfig(steps=2, method={"method": "randlora", "rank": 4})
    cr.fit(tiny, cr.load_data(colors), config, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "metrics.json" in names and not names & {".lock", "config.yaml.tmp"}


def test_a_second_thread_is_refused(tmp_path):
    refused = []

    def second() -> None:
        try:
            with locked(tmp_path / "out"):
                pass
        except UserError as error:
            refused.append(str(error))

    with locked(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path / "out" / ".lock").exists()
    assert len(refused) == 1 and "another process is writing there" in refused[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few KiB, of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(small_disk, colors, tiny_folder):
    out = small_disk / "run"
    done = command(*arguments(colors, tiny_folder, out, steps=5))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {out}") and "cannot be written" in last, last
    assert not out.exists() or not list(out.glob("*.tmp"))


@pytest.mark.parametrize("writes", ["text", "torch", "figure"])
def test_every_writer_tells_a_full_disk(writes, small_disk):
    from matplotlib.figure import Figure

    from clip_randlora import figures

    path = small_disk / "file"
    with pytest.raises(UserError, match="file: cannot be written"):
        if writes == "figure":
            figure = Figure((20, 20))
            figure.subplots().imshow(torch.rand(500, 500))
            figures.save(figure, path)
        else:
            with written_whole(path) as temporary:
                if writes == "text":
                    temporary.write_text("x" * 200_000)
                else:
                    torch.save(torch.rand(200_000), temporary)
    assert list(small_disk.iterdir()) == []


def test_a_read_only_file_system_is_one_line(small_disk, colors, tiny_folder):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = command(*arguments(colors, tiny_folder, small_disk / "run", steps=2))
    assert done.returncode == 2
    assert f"--out {small_disk}/run: cannot be written to (Read-only file system)" in done.stderr
