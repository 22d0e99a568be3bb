"""What is promised about crashes: killed and ended processes, folders that two want."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import forks
from helpers.crash import OFTEN, kill_and_go_on, run
from helpers.images import write_classes
from helpers.trainings import ADAPTER, STEPS, arguments, check_same, contents
from safetensors.torch import load_file

import clip_randlora as cr
from clip_randlora.errors import UserError
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.utils.outputs import lock_folder

KILLS = os.environ.get("CLIP_RANDLORA_KILLS", "3").split(",")
"""How often trainings, sweeps, and exports of each format are killed: one number, or three."""
TRAININGS, SWEEPS, EXPORTS = map(int, KILLS * 3 if len(KILLS) == 1 else KILLS)
SEED = int(os.environ.get("CLIP_RANDLORA_SEED", "1"))


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "colors", ["blue", "red"], 8)


@pytest.fixture(scope="module")
def straight(colors, tiny_folder, tmp_path_factory) -> tuple[Path, float]:
    """A run that nothing disturbed, and its seconds."""
    out = tmp_path_factory.mktemp("straight") / "run"
    forks.of_the_package().run("")  # so that its start is not counted
    return out, seconds_of(arguments(colors, tiny_folder, out))


def seconds_of(command_line: list) -> float:
    """Run a command that succeeds; return what it took."""
    started = time.monotonic()
    done = run(command_line)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.alone
def test_killed_trainings_end_at_the_same_weights(straight, colors, tiny_folder, tmp_path):
    expected, seconds = straight
    out = tmp_path / "run"
    begun, trained, ended = (
        (expected / name).stat().st_ctime for name in ("config.yaml", ADAPTER, "metrics.json")
    )
    begun, trained = seconds - (ended - begun), seconds - (ended - trained)
    steps = []

    def moments() -> tuple[float, float]:
        if any(0 < step < STEPS for step in steps):
            return 0.7 * begun, seconds
        return begun + 0.2 * (trained - begun), trained  # until one falls into the training

    def check_and_start_over() -> None:
        check_same(out, expected)
        shutil.rmtree(out)

    def look() -> None:
        found = out / "checkpoint.pt"
        steps.append(torch.load(found, weights_only=True)["step"] if found.exists() else 0)

    report = kill_and_go_on(
        arguments(colors, tiny_folder, out),
        lambda: ["--resume"] if (out / "config.yaml").exists() else [],
        lambda: (out / "metrics.json").exists(),
        check_and_start_over,
        TRAININGS,
        SEED,
        moments,
        look,
    )
    assert report.errors == [] and report.kills == TRAININGS
    assert any(0 < step < STEPS for step in steps), steps  # some fell into the training
    check_same(out, expected)
    print(f"{report.kills} kills, {report.finished} runs ended in between; states at {steps}")


CELLS = 7
SWEEP = """
datasets: [{data}]
models: [{{name: {model}, label: tiny}}]
methods: [zero_shot, {{method: randlora, rank: 4}}, lora, linear_probe]
shots: [4]
seeds: [1, 2]
training: {{steps: 20, learning_rate: 0.01, precision: fp32}}
"""


@pytest.fixture(scope="module")
def whole_sweep(colors, tiny_folder, tmp_path_factory) -> tuple[Path, Path, float]:
    """A sweep's file, its folder after a run that nothing disturbed, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    config, whole = folder / "sweep.yaml", folder / "whole"
    config.write_text(SWEEP.format(data=colors, model=tiny_folder))
    forks.of_the_package().run("")  # so that its start is not counted
    return config, whole, seconds_of(["sweep", config, "--out", whole])


@pytest.mark.slow
def test_killed_sweeps_lose_and_repeat_no_finished_cell(whole_sweep, tmp_path):
    (config, whole, seconds), out = whole_sweep, tmp_path / "killed"
    first = min(path.stat().st_ctime for path in (whole / "cells").iterdir())
    last = max(path.stat().st_ctime for path in (whole / "cells").iterdir())
    a_cell = (last - first) / (CELLS - 1)
    before = seconds - CELLS * a_cell  # imports, and reading the model and the images
    seen: dict[str, tuple] = {}
    counts: list[int] = []

    def cells() -> list[Path]:
        return sorted((out / "cells").iterdir()) if (out / "cells").exists() else []

    def moments() -> tuple[float, float]:
        return 0.7 * before, before + (CELLS - len(cells())) * a_cell

    def look() -> None:
        now = {path.name: contents(path) for path in cells()}
        assert {name: now.get(name) for name in seen} == seen, "a finished cell was touched"
        for name in now.keys() - seen.keys():
            check_same(out / "cells" / name, whole / "cells" / name)
            read_metrics(out / "cells" / name)
        seen.update(now)
        counts.append(len(now))

    def look_and_start_over() -> None:
        look()
        counts.pop()
        shutil.rmtree(out)
        seen.clear()

    report = kill_and_go_on(
        ["sweep", config, "--out", out],
        list,
        lambda: len(cells()) == CELLS,
        look_and_start_over,
        SWEEPS,
        SEED,
        moments,
        look,
    )
    assert report.errors == [] and report.kills == SWEEPS
    look()
    assert sorted(seen) == sorted(path.name for path in (whole / "cells").iterdir())
    assert not any((out / "running").iterdir())
    counts.pop()
    print(f"{report.kills} kills, {report.finished} sweeps ended in between; cells at {counts}")


def what_is_in(folder: Path) -> dict[str, bytes]:
    """The bytes of each file of an export; of tensors their values, sorted by name."""
    return {
        path.name: safetensors.torch.save(dict(sorted(load_file(path).items())))
        if path.suffix == ".safetensors"  # the order of its metadata is another in each process
        else path.read_bytes()
        for path in folder.iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "open_clip"])
def test_killed_exports_are_whole_or_not_there(form, straight, tmp_path):
    expected, out = tmp_path / "expected", tmp_path / "there" / "expected"
    seconds = seconds_of(["export", straight[0], "--format", form, "--out", expected])
    files = what_is_in(expected)

    def is_whole() -> bool:
        if not out.exists():
            return False
        assert what_is_in(out) == files
        return True

    report = kill_and_go_on(
        ["export", straight[0], "--format", form, "--out", out],
        list,
        is_whole,
        lambda: shutil.rmtree(out),
        EXPORTS,
        SEED,
        lambda: (0.5 * seconds, seconds),
        is_whole,
    )
    assert report.errors == [] and report.kills == EXPORTS and is_whole()
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no remains of the killed
    print(f"{report.kills} kills, {report.finished} exports ended in between")


def ended(arguments: list, is_time: Callable[[], bool]) -> str:
    """Run the command, and end it with SIGTERM when it is time; return its last line."""
    process = forks.of_the_package().start(OFTEN, arguments)
    while not is_time():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    return errors.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_training_ended_by_the_system_goes_on(straight, colors, tiny_folder, tmp_path):
    out = tmp_path / "run"
    said = ended(arguments(colors, tiny_folder, out), (out / "checkpoint.pt").exists)
    print(said)
    assert re.fullmatch(
        rf"interrupted after step \d+: saved to {out}; run the same command with --resume to go on",
        said,
    )
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < STEPS and f"after step {step}:" in said
    seconds_of([*arguments(colors, tiny_folder, out), "--resume"])
    check_same(out, straight[0])


@pytest.mark.slow
def test_a_sweep_ended_by_the_system_goes_on(whole_sweep, tmp_path):
    (config, whole, _), out = whole_sweep, tmp_path / "ended"
    started = out / "running" / "tiny--colors--lora--4-shots--seed-1"
    said = ended(["sweep", config, "--out", out], (started / "checkpoint.pt").exists)
    print(said)
    assert re.fullmatch(
        rf"interrupted: [34] cells left, finished ones are in {out}; run the same command to go on",
        said,
    )
    finished = {path.name: contents(path) for path in (out / "cells").iterdir()}
    assert CELLS - len(finished) == int(said.split()[1])
    seconds_of(["sweep", config, "--out", out])
    for path in (whole / "cells").iterdir():
        check_same(out / "cells" / path.name, path)
    assert {name: contents(out / "cells" / name) for name in finished} == finished


@pytest.mark.slow
def test_an_export_ended_by_the_system_leaves_nothing(straight, tmp_path):
    out = tmp_path / "there" / "export"
    command_line = ["export", straight[0], "--format", "open_clip", "--out", out]
    unfinished = out.parent / ".export.tmp"
    said = ended(command_line, lambda: any(unfinished.glob("[!.]*")))
    assert said == "interrupted; start again"
    assert not out.parent.exists()


HOLD = """
import sys, time
from pathlib import Path
from clip_randlora.utils.outputs import lock_folder
with lock_folder(Path(sys.argv[1])):
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
            with lock_folder(tmp_path / "out"):
                pass
        except UserError as error:
            refused.append(str(error))

    with lock_folder(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path / "out" / ".lock").exists()
    assert len(refused) == 1 and "another process is writing there" in refused[0]
