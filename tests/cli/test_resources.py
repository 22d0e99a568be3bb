"""What is promised when memory or the disk runs out, and on a disk that may not be written to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import forks
from helpers.commands import command
from helpers.images import write_classes
from helpers.trainings import arguments, check_same, contents

import clip_randlora as cr
from clip_randlora.errors import UserError
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.training import trainer
from clip_randlora.utils.outputs import atomic_write

STEPS, LAST = 40, 20

WITHOUT_MEMORY = """
import resource, sys
from importlib import import_module
import torch
from clip_randlora import cli

module, name, call = sys.argv.pop(1).split(":")
owner = import_module(module)
*outer, name = name.split(".")
for part in outer:
    owner = getattr(owner, part)
before, calls = getattr(owner, name), 0

def ask_for_too_much():
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.empty(2**30, dtype=torch.uint8)

def without_memory(*arguments, **options):
    global calls
    calls += 1
    if calls == int(call):
        ask_for_too_much()
    return before(*arguments, **options)

setattr(owner, name, without_memory)
cli.main()
"""
"""The command, in an address space that is bounded from a call of a function on, which needs more
than that has left: its first argument is ``MODULE:FUNCTION:CALL``."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="an address space is bounded on Linux")


def without_memory(place: str, *command_line) -> subprocess.CompletedProcess:
    return forks.of_the_package().run(WITHOUT_MEMORY, [place, *command_line])


def last_line(done: subprocess.CompletedProcess) -> str:
    """The last line of a command that failed as it should, which is printed for the record."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    print(line)
    return line


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "colors", ["blue", "red"], 8)


@pytest.fixture(scope="module")
def straight(colors, tiny_folder, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    done = command(*arguments(colors, tiny_folder, out, STEPS))
    assert done.returncode == 0, done.stderr
    return out


SWEEP = """
datasets: [{data}]
models: [{{name: {model}, label: tiny}}]
methods: [{methods}]
shots: [4]
seeds: [1]
training: {{steps: 40, learning_rate: 0.01, precision: fp32}}
"""
METHODS = "zero_shot, {method: randlora, rank: 4}, lora"
CELLS = ["zero_shot", "randlora--4-shots--seed-1", "lora--4-shots--seed-1"]


def write_sweep(path: Path, colors: Path, tiny_folder: Path, methods: str = METHODS) -> Path:
    path.write_text(SWEEP.format(data=colors, model=tiny_folder, methods=methods))
    return path


@pytest.fixture(scope="module")
def whole_sweep(colors, tiny_folder, tmp_path_factory) -> Path:
    """The cells of a sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sweep")
    config = write_sweep(folder / "sweep.yaml", colors, tiny_folder)
    done = command("sweep", config, "--out", folder / "whole")
    assert done.returncode == 0 and "3 cells finished, 0 failed" in done.stdout, done.stderr
    return folder / "whole" / "cells"


def check_finishes(config: Path, out: Path, whole: Path, finished: dict[str, tuple]) -> None:
    """Check that a sweep's same command ends it, with the cells that it had as they were."""
    done = command("sweep", config, "--out", out)
    assert done.returncode == 0 and "3 cells finished, 0 failed" in done.stdout, done.stderr
    for path in whole.iterdir():
        check_same(out / "cells" / path.name, path)
    assert {name: contents(out / "cells" / name) for name in finished} == finished
    assert not any((out / "running").iterdir())


def finished_cells(out: Path, expected: int) -> dict[str, tuple]:
    cells = {path.name: contents(path) for path in (out / "cells").iterdir()}
    assert len(cells) == expected and all(read_metrics(out / "cells" / name) for name in cells)
    return cells


# --- memory ---------------------------------------------------------------------------------


@linux
@pytest.mark.slow
def test_a_training_without_memory_keeps_its_last_step(straight, colors, tiny_folder, tmp_path):
    out = tmp_path / "run"
    command_line = arguments(colors, tiny_folder, out, STEPS)
    said = last_line(
        without_memory(
            f"clip_randlora.training.trainer:Trainer.train_step:{LAST + 1}", *command_line
        )
    )
    assert said.startswith(f"error: out of memory after step {LAST}: end other programs, or set a")
    assert f"{out} has the last saved state" in said
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == LAST
    done = command(*command_line, "--resume")
    assert done.returncode == 0, done.stderr
    check_same(out, straight)


@linux
@pytest.mark.slow
def test_a_training_without_memory_for_its_first_step_leaves_nothing(colors, tiny_folder, tmp_path):
    out = tmp_path / "made" / "run"
    command_line = arguments(colors, tiny_folder, out, STEPS)
    said = last_line(
        without_memory("clip_randlora.training.trainer:Trainer.train_step:1", *command_line)
    )
    assert said.startswith("error: out of memory after step 0: ") and "saved" not in said
    assert not out.parent.exists()


@linux
@pytest.mark.slow
def test_a_sweep_without_memory_keeps_cells_and_state(whole_sweep, colors, tiny_folder, tmp_path):
    config = write_sweep(tmp_path / "sweep.yaml", colors, tiny_folder)
    out = tmp_path / "out"
    place = f"clip_randlora.training.trainer:Trainer.train_step:{LAST + 1}"
    done = without_memory(place, "sweep", config, "--out", out)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "2 cells finished, 1 failed" in done.stdout, done.stderr
    assert f"out of memory after step {LAST}: " in done.stderr
    state = out / "running" / f"tiny--colors--{CELLS[1]}" / "checkpoint.pt"
    assert torch.load(state, weights_only=True)["step"] == LAST
    check_finishes(config, out, whole_sweep, finished_cells(out, 2))


@linux
@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "open_clip"])
def test_an_export_without_memory_leaves_nothing(form, straight, tmp_path):
    out = tmp_path / "made" / "export"
    command_line = ["export", straight, "--format", form, "--out", out]
    said = last_line(without_memory("clip_randlora.export.exporter:_empty:1", *command_line))
    assert said.startswith(f"error: --format {form} --out {out}: nothing written, out of memory")
    assert not out.parent.exists()


@pytest.mark.parametrize(
    "says",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "could not create a primitive",  # oneDNN, without memory for its code
        "std::bad_alloc",
        "can't start new thread",
    ],
)
def test_the_words_of_each_library_for_no_memory_are_known(
    says, tiny, colors, tmp_path, monkeypatch
):
    def fails(*_):
        raise RuntimeError(says)

    monkeypatch.setattr(trainer.Trainer, "train_step", fails)
    with pytest.raises(UserError, match=r"^out of memory after step 0: end other programs"):
        cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(steps=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_that_is_not_about_memory_is_not_called_so(tiny, colors, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("could not create a primitive descriptor for a matmul primitive")

    monkeypatch.setattr(trainer.Trainer, "train_step", fails)
    with pytest.raises(RuntimeError, match="primitive descriptor"):
        cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(steps=2), tmp_path / "run")


def test_no_image_is_left_out_for_want_of_memory(colors, monkeypatch):
    from clip_randlora.data import decode_image, images

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", fails)
    with pytest.raises(UserError, match=r"0.png: out of memory when decoding it") as caught:
        decode_image(colors / "red" / "0.png")
    assert not isinstance(caught.value, cr.data.UnreadableImage)


# --- disk -----------------------------------------------------------------------------------


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


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def fill(disk: Path) -> Path:
    """Write a file that takes all room but a few KiB; return it."""
    room = os.statvfs(disk)
    path = disk / "filler"
    path.write_bytes(bytes(room.f_bavail * room.f_bsize - 32 * 2**10))
    return path


def test_a_full_disk_is_one_line_and_leaves_no_half_file(small_disk, colors, tiny_folder):
    out = small_disk / "run"
    done = command(*arguments(colors, tiny_folder, out, steps=5))
    last = last_line(done)
    assert last.startswith(f"error: {out}") and "cannot be written" in last, last
    assert not out.exists() or not list(out.glob("*.tmp"))


@pytest.mark.parametrize("writes", ["text", "torch", "figure"])
def test_every_writer_tells_a_full_disk(writes, small_disk):
    from matplotlib.figure import Figure

    from clip_randlora.runs import figures

    path = small_disk / "file"
    with pytest.raises(UserError, match="file: cannot be written"):
        if writes == "figure":
            figure = Figure((20, 20))
            figure.subplots().imshow(torch.rand(500, 500))
            figures.save(figure, path)
        else:
            with atomic_write(path) as temporary:
                if writes == "text":
                    temporary.write_text("x" * 200_000)
                else:
                    torch.save(torch.rand(200_000), temporary)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "sweep", "export"])
def test_a_read_only_file_system_is_one_line(
    verb, small_disk, straight, colors, tiny_folder, tmp_path
):
    remount(small_disk, "ro")
    out = small_disk / "out"
    config = write_sweep(tmp_path / "sweep.yaml", colors, tiny_folder)
    command_line = {
        "train": arguments(colors, tiny_folder, out, steps=2),
        "sweep": ["sweep", config, "--out", out],
        "export": ["export", straight, "--format", "adapter", "--out", out],
    }[verb]
    said = last_line(command(*command_line))
    assert f"--out {out}: " in said and "cannot be written to" in said


def test_a_disk_that_fills_during_a_training_costs_no_finished_step(
    small_disk, tiny, tiny_folder, colors, monkeypatch
):
    remount(small_disk, "size=8m")
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    data, out, filler = cr.load_data(colors), small_disk / "run", []
    config = cr.TrainConfig(steps=12, precision="fp32", method={"method": "randlora", "rank": 4})

    def on_step(step: cr.Step) -> None:
        if step.step == 5:
            filler.append(fill(small_disk))

    with pytest.raises(UserError, match=r"checkpoint.pt: cannot be written \(") as caught:
        cr.fit(tiny, data, config, out, on_step=on_step)
    print(caught.value)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "config.yaml", "images.csv"}
    filler[0].unlink()
    resumed = cr.fit(tiny, data, config, out, resume=True)
    expected = cr.fit(cr.load_model(str(tiny_folder)), data, config)
    assert all(map(torch.equal, resumed.adapter.parameters(), expected.adapter.parameters()))


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_keeps_its_cells(
    small_disk, whole_sweep, colors, tiny_folder, tmp_path
):
    remount(small_disk, "size=8m")
    out = small_disk / "out"
    first = write_sweep(tmp_path / "first.yaml", colors, tiny_folder, "zero_shot")
    assert command("sweep", first, "--out", out).returncode == 0
    finished = finished_cells(out, 1)
    filler = fill(small_disk)
    config = write_sweep(tmp_path / "sweep.yaml", colors, tiny_folder)
    done = command("sweep", config, "--out", out)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    print(done.stderr)
    assert "1 cells finished, 2 failed" in done.stdout
    assert done.stderr.count("cannot be written (") == 2
    assert finished_cells(out, 1) == finished
    filler.unlink()
    check_finishes(config, out, whole_sweep, finished)


@pytest.mark.parametrize("form", ["adapter", "open_clip"])
def test_an_export_on_a_full_disk_leaves_nothing(form, small_disk, straight):
    out = small_disk / "export"
    said = last_line(command("export", straight, "--format", form, "--out", out))
    named = {"adapter": out.with_name(".export.tmp"), "open_clip": f"--format {form} --out {out}: "}
    assert said.startswith(f"error: {named[form]}") and "No space left on device" in said
    assert list(small_disk.iterdir()) == []
