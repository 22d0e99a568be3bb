"""What trackers hold of a training is what its run folder holds."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import command
from helpers.images import write_colors

import clip_randlora as cr

FAST = {"shots": 2, "steps": 6, "method": {"method": "randlora", "rank": 4}}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 4})


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Trackio with its files in a folder of the test's; it asks for it when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    kept = {name: module for name, module in sys.modules.items() if _is_trackio(name)}
    for name in kept:
        del sys.modules[name]
    yield importlib.import_module("trackio")
    for name in filter(_is_trackio, list(sys.modules)):
        del sys.modules[name]


def _is_trackio(module: str) -> bool:
    return module.partition(".")[0] == "trackio"


def history_of(run: Path) -> list[dict[str, float]]:
    with open(run / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def curves_of(scalars: dict[str, dict[int, float]], names) -> list[dict[str, float]]:
    """The rows of ``history.csv`` from the curves by step."""
    return [
        {"step": step, **{name: scalars[f"train/{name}"][step] for name in names if name != "step"}}
        for step in sorted(scalars["train/loss"])
    ]


def read_tensorboard(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    return events, scalars


def test_tensorboard_and_trackio_hold_the_curves_and_metrics(
    colors, tiny_folder, tmp_path, monkeypatch, trackio
):
    monkeypatch.setenv("TRACKIO_PROJECT", "pets")
    run = tmp_path / "first"
    done = command(
        "train", colors, "--model", tiny_folder, "--shots", 2, "--steps", 6, "--rank", 4,
        "--out", run, "--json", "--track", "tensorboard", "--track", "trackio",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # what trackio prints is on standard error
    metrics, history = json.loads((run / "metrics.json").read_text()), history_of(run)
    assert printed["metrics"] == metrics and len(history) == 6

    events, scalars = read_tensorboard(run)
    assert curves_of(scalars, history[0]) == [pytest.approx(row, rel=1e-6) for row in history]
    assert scalars["tuned/top1"] == {6: pytest.approx(metrics["tuned"]["top1"])}
    assert scalars["images/train"] == {6: 6}
    assert sorted(events.Tags()["images"]) == ["confusion", "curves"]
    settings = next((run / "tensorboard").rglob("hparams.yml")).read_text()
    assert "method/rank: 4\n" in settings and "classes: 3\n" in settings

    [held] = trackio.Api().runs("pets")
    assert held.name == "first" and held.config["method/rank"] == 4
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("pets", "first", run_id=held.id)
    scalars = {
        f"train/{name}": {row["step"]: row[f"train/{name}"] for row in rows if "train/loss" in row}
        for name in list(history[0])[1:]
    }
    assert curves_of(scalars, history[0]) == [pytest.approx(row) for row in history]
    [final] = [row for row in rows if "tuned/top1" in row]
    assert final["zero_shot/ece"] == pytest.approx(metrics["zero_shot"]["ece"])
    [figures] = [row for row in rows if "confusion" in row]
    assert figures["curves"]["_type"] == "trackio.image"
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2
    assert trackio.context_vars.current_run.get() is None  # else a line is printed at the exit


def test_a_tracker_that_fails_midway_costs_the_training_nothing(
    colors, tiny, tmp_path, monkeypatch
):
    from torch.utils.tensorboard import SummaryWriter

    write = SummaryWriter.add_scalar

    def fill_up(writer, name, value, global_step, **options):
        if global_step == 3:
            raise OSError(28, "No space left on device")
        write(writer, name, value, global_step, **options)

    monkeypatch.setattr(SummaryWriter, "add_scalar", fill_up)
    data, config = cr.load_data(colors), cr.TrainConfig(**FAST)
    run = cr.fit(tiny, data, config, tmp_path / "run", track="tensorboard")
    said = [note for note in run.notes if "--track" in note]
    assert said == [
        "--track tensorboard failed and was left out from then on: [Errno 28] No space left on "
        "device"
    ]
    assert said[0] in (tmp_path / "run" / "README.md").read_text()
    assert len(run.history) == 6 and (tmp_path / "run" / "metrics.json").exists()
    assert sorted(read_tensorboard(tmp_path / "run")[1]["train/loss"]) == [1, 2]


def test_a_training_that_starts_again_or_is_resumed_has_each_step_once(colors, tiny, tmp_path):
    def upset(step):
        if step.step == 1 and step.learning_rate > 5e-3:
            with torch.no_grad():
                next(p for p in tiny.net.parameters() if p.requires_grad).fill_(float("nan"))
        if step.step == 4:
            raise KeyboardInterrupt

    data, config = cr.load_data(colors), cr.TrainConfig(**FAST, learning_rate=9e-3, warmup=0)
    run = tmp_path / "run"
    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, data, config, run, on_step=upset, track="tensorboard")
    cr.fit(tiny, data, config, run, resume=True, track="tensorboard")
    history, (_, scalars) = history_of(run), read_tensorboard(run)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert curves_of(scalars, history[0]) == [pytest.approx(row, rel=1e-6) for row in history]


@pytest.mark.parametrize(
    ("track", "out", "says"),
    [
        ("neptune", "run", "--track neptune: no such tracker; choose tensorboard, trackio, wandb"),
        ("tensorboard", None, "--track tensorboard: writes into the run folder; give one as `out`"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_before_the_training(
    track, out, says, colors, tiny, tmp_path
):
    out = out and tmp_path / out
    with pytest.raises(cr.UserError) as refused:
        cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST), out, track=track)
    assert str(refused.value).startswith(says)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_opened_leaves_the_folder_free(
    colors, tiny, tmp_path, monkeypatch
):
    from accelerate.tracking import TrackioTracker

    def refuse(self):
        raise RuntimeError("You must be\nlogged in")

    monkeypatch.setattr(TrackioTracker, "start", refuse)
    data, config, out = cr.load_data(colors), cr.TrainConfig(**FAST), tmp_path / "run"
    with pytest.raises(cr.UserError, match="--track trackio: You must be logged in"):
        cr.fit(tiny, data, config, out, track=["tensorboard", "trackio"])
    assert not out.exists()


def test_nothing_is_reported_unless_asked(colors, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "pets")
    config = cr.TrainConfig(method="zero_shot")
    cr.fit(tiny, cr.load_data(colors), config, tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert "track" not in (tmp_path / "run" / "config.yaml").read_text()
