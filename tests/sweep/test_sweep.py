"""Sweeps: what they run, what survives a kill, and what the report says."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.commands import command, without_progress
from helpers.sweeps import plant
from PIL import Image
from rich.console import Console

from clip_randlora.errors import UserError
from clip_randlora.report import write_report
from clip_randlora.sweep import Cell, SweepConfig, SweepFolder, read_sweep, run_sweep

RAY = ("--engine", "ray")
COLORS = {"blue": (30, 60, 220), "red": (220, 40, 30)}
TIMES = ("train_seconds", "step_seconds_median", "peak_memory_bytes")


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "colors"
    noise = np.random.default_rng(0)
    for name, color in COLORS.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = np.clip(np.array(color) + noise.normal(0, 60, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def tiny_sweep(tiny_folder, colors, tmp_path) -> Path:
    return write(tmp_path / "sweep.yaml", tiny_folder, [str(colors)])


def write(path: Path, model: Path, datasets: list[str], /, **changes) -> Path:
    settings = {
        "datasets": datasets,
        "models": [{"name": str(model), "label": "tiny"}],
        "methods": ["zero_shot", {"method": "randlora", "rank": 4}, "lora"],
        "shots": [1, 2],
        "seeds": [1, 2],
        "training": {"steps": 2, "learning_rate": 0.01, "precision": "fp32"},
    }
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def start(config: Path, out: Path, *options: str) -> subprocess.Popen:
    """Start a sweep in a process of its own, as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "clip_randlora", "sweep", config, "--out", out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def results_of(out: Path) -> dict[str, dict]:
    """The metrics of every cell, less its times."""
    cells = {path.name: path for path in (out / "cells").iterdir()}
    metrics = {name: json.loads((p / "metrics.json").read_text()) for name, p in cells.items()}
    return {
        name: {key: value for key, value in row.items() if key not in TIMES}
        for name, row in metrics.items()
    }


def test_a_cell_for_each_combination_and_zero_shot_once(tiny_sweep):
    names = [cell.id for cell in read_sweep(tiny_sweep).cells()]
    grid = [
        f"tiny--colors--{method}--{shots}-shots--seed-{seed}"
        for method in ("randlora", "lora")
        for shots in (1, 2)
        for seed in (1, 2)
    ]
    assert names == ["tiny--colors--zero_shot", *grid]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sots": [1]}, r"sots: no such setting; did you mean shots\?"),
        ({"zebra": 1}, "zebra: no such setting; there are model, pretrained, datasets"),
        ({"methods": ["randlore"]}, "method.*randlore"),
        ({"methods": [{"method": "lora", "bases": "sparse"}]}, "bases"),
        ({"methods": ["lora", "lora"]}, "two cells would be called .*lora"),
        ({"training": {"epoch": 3}}, "epoch: "),
        ({"training": {"seed": 3}}, "training: seed: not here; use methods, shots and seeds"),
        ({"shots": [0]}, r"shots: \[0\]; give a number of images per class"),
        ({"shots": 4}, "shots: "),
        (
            {"where": [{"models": ["big"], "training": {}}]},
            "where: models: big: not in models; choo",
        ),
        ({"where": [{"shots": [3]}]}, "where: shots: 3: not in shots; choose 1, 2"),
        (
            {"where": [{"shots": [1], "splits": {"validation": 2}}]},
            "splits: of data sets; give data",
        ),
        ({"where": [{"training": {"seed": 2}}]}, "where: training: seed: not here"),
        (
            {"methods": [{"method": "lora", "models": ["big"]}]},
            "methods: models: big: not in models",
        ),
        (
            {"reference": "vera"},
            "reference: vera: no such method; choose zero_shot, randlora, lora",
        ),
        ({"datasets": ["no_such_set"]}, "datasets: no_such_set: neither a path"),
        ({"datasets": "clipart"}, r"datasets: give a list, as \[clipart\]"),
        ({"model": "lite0"}, "give either models, or model and pretrained"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_in_one_line(
    tiny_folder, colors, tmp_path, changes, complaint
):
    config = write(tmp_path / "wrong.yaml", tiny_folder, [str(colors)], **changes)
    result = command("sweep", config, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert re.search(complaint, result.stderr), result.stderr
    assert result.stderr.startswith(f"error: {config}: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["offline", "offline-equal", "offline-randlora", "paper", "paper-code", "coop11"]
)
def test_the_packaged_sweeps_are_in_order(name):
    config = read_sweep(name)
    assert len({cell.id for cell in config.cells()}) == len(list(config.cells())) > 30


def test_a_data_set_is_added_from_the_command_line(tiny_sweep, colors, tmp_path, monkeypatch):
    described = tmp_path / "mine.yaml"
    described.write_text(f"name: my_set\nfolder: {colors}\nclasses: {{red: crimson}}\n")
    monkeypatch.chdir(tmp_path)
    config = read_sweep(tiny_sweep, ["mine.yaml", "digits"])
    assert config.datasets == (str(colors), str(described), "digits")
    assert {cell.data_label for cell in config.cells()} == {"colors", "my_set", "digits"}


def test_finished_cells_stay_and_failed_ones_are_tried_again(tiny_folder, colors, tmp_path):
    broken = tmp_path / "later"  # has one class only, so far
    (broken / "blue").mkdir(parents=True)
    image = (colors / "blue" / "0.png").read_bytes()
    (broken / "blue" / "0.png").write_bytes(image)
    config = write(
        tmp_path / "sweep.yaml", tiny_folder, [str(broken), str(colors)], shots=[1], seeds=[1]
    )
    out = tmp_path / "out"
    first = command("sweep", config, "--out", out)
    assert first.returncode == 1, first.stderr
    assert "3 cells finished, 3 failed" in first.stdout
    last = first.stderr.splitlines()[-1]
    assert last.startswith("failed: tiny--later--zero_shot, tiny--later--randlora--1-shots--seed-1")
    assert "the same command tries again" in last
    assert len(results_of(out)) == 3 and not any((out / "running").iterdir())
    report = write_report(out).read_text()
    assert "| tiny--later--lora--1-shots--seed-1 | " in report and "only one class" in report
    assert report.count("| failed |") == 6  # three on the data set, three averages
    stamps = {p: p.stat().st_mtime_ns for p in (out / "cells").glob("*/metrics.json")}

    for number in range(1, 6):
        for name in COLORS:
            (broken / name).mkdir(exist_ok=True)
            source = (colors / name / f"{number}.png").read_bytes()
            (broken / name / f"{number}.png").write_bytes(source)
    second = command("sweep", config, "--out", out)
    assert second.returncode == 0 and "6 cells finished, 0 failed" in second.stdout
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert (
        "failed"
        not in command("report", out).stdout
        + write_report(out).read_text().split("standard deviations", 1)[1].split("missing.", 1)[1]
    )


def test_json_and_trackers_of_a_sweep(tiny_folder, colors, tmp_path):
    settings = {"methods": ["lora"], "shots": [1], "seeds": [1], "training": {"steps": 2}}
    config = write(tmp_path / "a.yaml", tiny_folder, [str(colors)], **settings)
    out, track = tmp_path / "out", ["--track", "tensorboard"]
    result = command("sweep", config, "--out", out, "--json", *track)
    assert result.returncode == 0, result.stderr
    cell = "tiny--colors--lora--1-shots--seed-1"
    assert json.loads(result.stdout) == {"folder": str(out), "done": [cell], "failed": {}}
    assert list((out / "cells" / cell / "tensorboard").glob("events.out.tfevents.*"))
    report = json.loads(command("report", out, "--json").stdout)
    assert report["report"] == str(out / "report.md")
    row = report["rows"][0]
    assert (row["data"], row["method"], row["shots"], row["finished"]) == ("colors", "lora", 1, 1)
    metrics = json.loads((out / "cells" / cell / "metrics.json").read_text())
    assert row["top1_mean"] == pytest.approx(metrics["tuned"]["top1"])
    assert row["top1_std"] is None  # of one seed


def test_other_settings_under_the_name_of_a_finished_cell_are_refused(
    tiny_folder, colors, tmp_path
):
    methods = {"methods": ["lora"], "shots": [1], "seeds": [1]}
    config = write(tmp_path / "a.yaml", tiny_folder, [str(colors)], **methods)
    assert command("sweep", config, "--out", tmp_path / "out").returncode == 0
    config = write(
        tmp_path / "b.yaml", tiny_folder, [str(colors)], **methods, training={"steps": 3}
    )
    result = command("sweep", config, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "tiny--colors--lora--1-shots--seed-1 was run with other settings (training." in (
        result.stderr
    )


@pytest.mark.slow
def test_seeds_reach_the_methods_own_randomness_and_the_report_says_so(
    tiny_folder, colors, tmp_path
):
    methods = ["lora", {"label": "fixed", "method": "randlora", "rank": 4, "seed": 5}]
    config = write(tmp_path / "a.yaml", tiny_folder, [str(colors)], methods=methods, shots=[1])
    out = tmp_path / "out"
    assert command("sweep", config, "--out", out).returncode == 0
    seeds = {
        path.parent.name: yaml.safe_load(path.read_text())["train"]["method"]["seed"]
        for path in (out / "cells").glob("*/config.yaml")
    }
    assert seeds == {
        "tiny--colors--lora--1-shots--seed-1": 1,
        "tiny--colors--lora--1-shots--seed-2": 2,
        "tiny--colors--fixed--1-shots--seed-1": 5,
        "tiny--colors--fixed--1-shots--seed-2": 5,
    }
    report = write_report(out).read_text()
    assert (
        "Seeds vary the draw of the training images, their order, their augmentation and the "
        "method's own random start and bases. fixed: its cells have the method's own seed fixed at "
        "5, so its random start and bases do not vary." in report
    )


def begin(config: Path, out: Path) -> list[Cell]:
    """Ask a sweep's folder for the cells, and return those that are left to run."""
    with SweepFolder(out).lock():
        return SweepFolder(out).begin(list(read_sweep(config).cells()))


def test_a_sweep_of_before_seeds_reached_the_methods_is_not_mixed(tiny_folder, colors, tmp_path):
    grid = {"methods": ["lora"], "shots": [1], "seeds": [1]}
    old = {**grid, "methods": [{"method": "lora", "seed": 0}]}  # what every method had
    config = write(tmp_path / "old.yaml", tiny_folder, [str(colors)], **old)
    out = tmp_path / "out"
    assert command("sweep", config, "--out", out).returncode == 0
    record = json.loads((out / "sweep.json").read_text())
    del record["format"]  # as it was then
    (out / "sweep.json").write_text(json.dumps(record))
    now = write(tmp_path / "now.yaml", tiny_folder, [str(colors)], **{**grid, "seeds": [1, 2]})
    refused = command("sweep", now, "--out", out)
    assert refused.returncode == 2
    assert "method.settings.seed: 0, now None" in refused.stderr
    assert "give each method `seed: 0`" in refused.stderr
    going_on = write(tmp_path / "on.yaml", tiny_folder, [str(colors)], **{**old, "seeds": [1, 2]})
    assert [cell.seed for cell in begin(going_on, out)] == [2]
    assert "lora: its cells have the method's own seed fixed at 0" in write_report(out).read_text()

    other = write(tmp_path / "3.yaml", tiny_folder, [str(colors)], **{**grid, "seeds": [3]})
    assert [cell.seed for cell in begin(other, out)] == [3]
    assert "lora: its cells of seeds 1, 2 have the method's own seed" in (
        write_report(out).read_text()
    )
    record["format"] = 99
    (out / "sweep.json").write_text(json.dumps(record))
    newer = command("sweep", now, "--out", out)
    assert newer.returncode == 2 and "use a newer clip-randlora" in newer.stderr


@pytest.mark.slow
def test_a_second_process_is_refused(tiny_sweep, tmp_path):
    out = tmp_path / "out"
    with SweepFolder(out).lock():
        second = start(tiny_sweep, out)
        _, errors = second.communicate(timeout=120)
    assert second.returncode == 2
    line = f"error: --out {out}: another process is writing there"
    said = without_progress(errors)
    assert said.startswith(line) and said.count("\n") == 1


def test_a_sweep_goes_where_another_was_killed_at_its_first_file(tiny_sweep, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    (out / "sweep.json.tmp").write_text("{")
    cells = list(read_sweep(tiny_sweep).cells())
    with SweepFolder(out).lock():
        assert SweepFolder(out).begin(cells) == cells
    assert [path.name for path in out.iterdir()] == ["sweep.json"]


def test_a_folder_of_something_else_is_refused(tiny_sweep, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a sweep"):
        run_sweep(read_sweep(tiny_sweep), tmp_path)
    with pytest.raises(UserError, match="not the folder of a sweep"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_broken_model_fails_its_cells_and_no_others(tiny_folder, colors, tmp_path):
    empty = tmp_path / "empty_model"
    empty.mkdir()
    config = write(
        tmp_path / "sweep.yaml",
        tiny_folder,
        [str(colors)],
        models=[{"name": str(empty), "label": "none"}, {"name": str(tiny_folder), "label": "tiny"}],
        methods=["lora"],
    )
    lines = Console(record=True, width=300, file=open(os.devnull, "w"))  # noqa: SIM115
    progress = run_sweep(read_sweep(config), tmp_path / "out", console=lines)
    assert len(progress.failed) == len(progress.done) == 4
    text = lines.export_text()
    assert text.count("failed  none--colors--lora") == 4
    assert text.count("done    tiny--colors--lora") == 4 and "cells left, about" in text


def test_rules_hold_for_the_cells_they_name():
    config = SweepConfig(
        datasets=["clipart", "digits"],
        models=["lite0", {"name": "ViT-B-32", "label": "vit"}],
        methods=[
            {"method": "lora", "training": {"epochs": 3}},
            {"label": "rand", "method": "randlora", "rank": 6, "models": ["lite0"]},
            {"label": "rand", "method": "randlora", "rank": 8, "models": ["vit"]},
        ],
        shots=[1, "50%"],
        training={"epochs": 2},
        where=[
            {"datasets": ["digits"], "shots": ["50%"], "training": {"epochs": 4}},
            {"models": ["vit"], "methods": ["lora"], "training": {"epochs": 5, "accumulate": 2}},
            {"datasets": ["digits"], "splits": {"validation": 30}},
        ],
    )
    cells = {cell.id: cell for cell in config.cells()}
    assert len(cells) == 2 * 2 * 2 * 2
    epochs = {
        "lite0--clipart--lora--1-shots--seed-1": 3,
        "lite0--digits--lora--1-shots--seed-1": 3,
        "lite0--digits--lora--50-percent--seed-1": 4,
        "vit--digits--lora--50-percent--seed-1": 5,  # the later rule
        "vit--digits--rand--50-percent--seed-1": 4,
        "vit--clipart--rand--1-shots--seed-1": 2,
    }
    assert {name: cells[name].train_config().epochs for name in epochs} == epochs
    assert {cell.train_config().accumulate for cell in cells.values()} == {None, 2}
    ranks = {c.model.label: c.method.settings.rank for c in cells.values() if "rand" in c.id}
    assert ranks == {"lite0": 6, "vit": 8}
    held = {cell.data_label: cell.splits.validation for cell in cells.values()}
    assert held == {"clipart": None, "digits": 30}


def test_shares_of_the_images_stand_between_numbers_and_all(tmp_path):
    numbers = {
        f"lite0--{data}--lora--{amount}--seed-1": (top1, 0.1, 10, 1.0)
        for data in ("clipart", "digits")
        for amount, top1 in (("16-shots", 0.3), ("50-percent", 0.4), ("all-shots", 0.5))
    }
    out = plant(tmp_path / "out", numbers, methods=["lora"], shots=["all", "50.0%", 16])
    lines = write_report(out).read_text().splitlines()
    assert "| method | 16 shots | 50% of the images | all images |" in lines
    assert "| lora | 30.0 | 40.0 | 50.0 |" in lines
    assert {cell.train_config().shots for cell in SweepFolder(out).asked()} == {16, "50%", None}


def test_the_reports_numbers_by_hand(tmp_path, fine_figures):
    numbers = {
        f"lite0--{data}--zero_shot": (start, start, 0, 0.0)
        for data, start in (("clipart", 0.5), ("digits", 0.1))
    }
    tuned = {
        ("clipart", "lora"): (0.60, 0.64),  # 62.0 +- 2.8
        ("clipart", "full"): (0.69, 0.71),  # 70.0 +- 1.4; the best by 8.0 > 2.8 + 1.4
        ("digits", "lora"): (0.40, 0.44),  # 42.0 +- 2.8
        ("digits", "full"): (0.45, 0.47),  # 46.0 +- 1.4; by 4.0 < 4.2
    }
    for (data, method), values in tuned.items():
        start = numbers[f"lite0--{data}--zero_shot"][0]
        trained = {"lora": 1000, "full": 50_000}[method]
        for seed, value in enumerate(values, 1):
            row = (value, start, trained, 10.0 * seed)
            numbers[f"lite0--{data}--{method}--4-shots--seed-{seed}"] = row
    out = plant(
        tmp_path / "out", numbers, methods=["lora", "full", "zero_shot"], shots=[4], seeds=[1, 2]
    )
    lines = write_report(out).read_text().splitlines()
    assert lines[0] == "# Sweep"
    clipart, digits, average = (
        lines.index(f"### {title}") for title in ("clipart", "digits", "average over the data sets")
    )
    table = ["| method | 4 shots |", "| --- | --- |"]
    assert lines[clipart + 2 : clipart + 7] == [
        *table, "| zero_shot | 50.0 |", "| lora | 62.0 ± 2.8 |", "| full | **70.0 ± 1.4** |",
    ]  # fmt: skip
    assert lines[digits + 2 : digits + 7] == [
        *table, "| zero_shot | 10.0 |", "| lora | 42.0 ± 2.8 |", "| full | 46.0 ± 1.4 |",
    ]  # fmt: skip
    # by seed: lora 50, 54; full 57, 59: 58 - 52 = 6 > 2.8 + 1.4
    assert lines[average + 2 : average + 7] == [
        *table, "| zero_shot | 30.0 |", "| lora | 52.0 ± 2.8 |", "| full | **58.0 ± 1.4** |",
    ]  # fmt: skip
    assert "| lora | 79 |" in lines  # (52 - 30) / (58 - 30)
    assert "| full | 50,000 | 15 s |" in lines
    with open(out / "report.csv", newline="") as file:
        rows = {(row["data"], row["method"]): row for row in csv.DictReader(file)}
    assert float(rows["average", "lora"]["top1_mean"]) == pytest.approx(0.52)
    assert float(rows["average", "lora"]["gap_closed"]) == pytest.approx(22 / 28)
    assert float(rows["clipart", "lora"]["top1_std"]) == pytest.approx(0.04 / 2**0.5)
    assert float(rows["digits", "full"]["trainable_parameters"]) == 50_000
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {"accuracy-by-shots.png", "accuracy-by-trained-numbers.png", "gap-closed.png"}


def test_missing_cells_are_shown_as_missing_and_nothing_is_bold_by_one_seed(tmp_path):
    numbers = {
        "lite0--clipart--lora--4-shots--seed-1": (0.6, 0.5, 1000, 10.0),
        "lite0--clipart--full--4-shots--seed-1": (0.9, 0.5, 9000, 10.0),
        "lite0--clipart--full--4-shots--seed-2": (0.9, 0.5, 9000, 10.0),
    }
    out = plant(tmp_path / "out", numbers, methods=["lora", "full"], shots=[4], seeds=[1, 2])
    text = write_report(out).read_text()
    assert (
        "| lora | 60.0 (1 of 2) |" in text and "| full | 90.0 ± 0.0 |" in text and "**9" not in text
    )
    assert "- lite0--digits--full--4-shots--seed-2" in text.partition("## Missing")[2]
    assert text.count("| missing |") == 4  # both methods on digits, and both averages
    with open(out / "report.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "average"]
    assert [row["method"] for row in rows] == ["lora", "full"]
    assert {row["gap_closed"] for row in rows} == {row["top1_mean"] for row in rows} == {""}


def test_a_report_of_somebody_else_is_not_overwritten(tmp_path):
    out = plant(tmp_path / "out", {}, methods=["lora"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "report.md").write_text("# My thesis")
    result = command("report", out, "--out", other)
    assert result.returncode == 2 and "has a report.md that is not a sweep's" in result.stderr
    assert (other / "report.md").read_text() == "# My thesis"


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tiny_sweep, tmp_path):
    out = tmp_path / "out"
    process = start(tiny_sweep, out)
    while not (out / "cells").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command to go on" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    last = start(tiny_sweep, out)
    assert last.wait(timeout=300) == 0
    assert len(results_of(out)) == 9


def test_an_address_where_nothing_answers_is_refused_at_once(tiny_sweep, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as bound:  # and not listening
        bound.bind(("0.0.0.0", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        result = command("sweep", tiny_sweep, "--out", tmp_path / "a", *RAY, "--address", address)
        assert result.returncode == 2
        assert f"--address {address}: nothing answers there" in result.stderr.splitlines()[-1]
        monkeypatch.setenv("RAY_ADDRESS", address)  # which Ray's own commands go by
        result = command("sweep", tiny_sweep, "--out", tmp_path / "b", *RAY)
        assert result.returncode == 2
        assert f"RAY_ADDRESS={address}: nothing answers there" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_and_survives_a_lost_worker(
    tiny_folder, colors, tmp_path, ray_folder
):
    import psutil

    ray_folder.mkdir()
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")  # of one that was killed
    config = write(
        tmp_path / "sweep.yaml",
        tiny_folder,
        [str(colors)],
        methods=[
            "zero_shot",
            "randlora",
            {"label": "broken", "method": "lora", "targets": ["conv"]},
        ],
        training={"steps": 30, "learning_rate": 0.01, "precision": "fp32"},
    )
    here = tmp_path / "here"
    assert command("sweep", config, "--out", here).returncode == 1
    process = start(config, tmp_path / "ray", *RAY)
    killed = None
    while killed is None and process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # also a zombie's: it ended meanwhile
            for worker in psutil.Process(process.pid).children(recursive=True):
                if any("_run_cell" in part for part in worker.cmdline()):
                    worker.kill()
                    killed = worker.pid
                    break
        time.sleep(0.05)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 1, errors
    assert killed is not None
    assert "5 cells finished, 4 failed" in output
    expected, got = results_of(here), results_of(tmp_path / "ray")
    assert expected.keys() == got.keys()
    for name, row in expected.items():
        assert got[name]["tuned"]["top1"] == pytest.approx(row["tuned"]["top1"], abs=0.26), name
        assert got[name]["zero_shot"]["top1"] == row["zero_shot"]["top1"]


def await_cluster(port: int, head: subprocess.Popen) -> None:
    import ray.util

    while head.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((ray.util.get_node_ip_address(), port), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"ray start ended with {head.returncode}")


@pytest.mark.slow
def test_a_running_cluster_is_used_and_its_token_asked_for(
    tiny_sweep, tmp_path, ray_folder, monkeypatch
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 40)
    ray = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
    head = subprocess.Popen(
        [*ray, "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false"],
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    options = (*RAY, "--address", f"127.0.0.1:{port}")
    try:
        await_cluster(port, head)
        without = start(tiny_sweep, tmp_path / "without", *options)
        _, errors = without.communicate(timeout=120)
        assert without.returncode == 2 and "Traceback" not in errors
        assert "set RAY_AUTH_MODE=token" in errors.splitlines()[-1]
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        sweep = start(tiny_sweep, tmp_path / "out", *options)
        output, errors = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, errors
        assert "9 cells finished, 0 failed" in output
        assert head.poll() is None  # the cluster is left running
    finally:
        head.terminate()
        head.wait(timeout=60)
