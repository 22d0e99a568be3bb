"""What a training meets around it: a notebook's settings, figures that fail, modes, the umask."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

import clip_randlora as cr
from clip_randlora.report import write_report
from clip_randlora.runs import figures
from clip_randlora.sweep.config import read_sweep
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils import outputs

INLINE = "module://matplotlib_inline.backend_inline"
FAST = {"steps": 2, "shots": 2, "method": {"method": "randlora", "rank": 4}}
FIGURES = {"curves.png", "confusion.png", "calibration.png", "examples.png"}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 3, "test": 2})


def in_a_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


DRAW = """
import os, sys
from clip_randlora.runs import figures
metrics = {"tuned": {"top1": 0.9}, "zero_shot": {"top1": 0.5}}
figures.save(figures.curves([], metrics), sys.argv[1])
print(os.environ["MPLBACKEND"])
"""


@pytest.mark.slow
def test_a_notebooks_matplotlib_backend_costs_no_figure_and_stays(tmp_path):
    done = in_a_process("-c", DRAW, tmp_path / "curves.png", MPLBACKEND=INLINE)
    assert done.stdout.split() == [INLINE], done.stderr
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_a_backend_that_is_there_is_left_to_matplotlib():
    code = "import clip_randlora.utils.plotting, matplotlib; print(matplotlib.get_backend())"
    assert in_a_process("-c", code, MPLBACKEND="svg").stdout.split() == ["svg"]


def test_a_figure_that_fails_is_a_note_of_a_finished_run(tiny, colors, tmp_path, monkeypatch):
    def fails(*_: object) -> Figure:
        raise RuntimeError("latex could\nnot be found")

    monkeypatch.setattr(figures, "examples", fails)
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST), tmp_path / "run")
    note = "examples.png could not be drawn (latex could not be found)."
    assert note in run.notes
    assert {path.name for path in run.folder.glob("*.png")} == FIGURES - {"examples.png"}
    assert json.loads((run.folder / "metrics.json").read_text())["steps"] == 2
    card = (run.folder / "README.md").read_text()
    assert f"- {note}" in card and "![examples]" not in card


def test_a_matplotlib_that_cannot_be_imported_costs_the_figures_alone(
    tiny, colors, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "clip_randlora.runs.figures", None)
    monkeypatch.delattr("clip_randlora.runs.figures")
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST), tmp_path / "run")
    assert len([note for note in run.notes if "could not be drawn" in note]) == 4
    assert (run.folder / "metrics.json").exists() and not list(run.folder.glob("*.png"))


def test_a_report_is_written_without_the_figures_that_fail(tmp_path, monkeypatch):
    config = tmp_path / "sweep.yaml"
    config.write_text("datasets: [digits]\nmethods: [zero_shot]\nshots: [1]\nseeds: [1]\n")
    monkeypatch.setattr("clip_randlora.report.plots.draw", lambda results: 1 / 0)
    SweepFolder(tmp_path).begin(list(read_sweep(config).cells()))
    report = write_report(tmp_path).read_text()
    assert "The figures could not be drawn (division by zero)." in report
    assert (tmp_path / "report.csv").exists()


# --- modes ----------------------------------------------------------------------------------


@pytest.fixture
def group_may_read():
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}


def test_every_file_has_the_mode_that_the_umask_says(group_may_read, tiny, colors, tmp_path):
    run = cr.fit(tiny, cr.load_data(colors), cr.TrainConfig(**FAST), tmp_path / "run")
    for format in ("adapter", "open_clip", "head"):
        cr.export_run(run.folder, format, tmp_path / format)
    for folder, weights in (
        ("run", "adapter.safetensors"),
        ("adapter", "adapter.safetensors"),
        ("open_clip", "open_clip_model.safetensors"),
        ("head", "class_embeddings.safetensors"),
    ):
        found = modes(tmp_path / folder)
        assert weights in found and set(found.values()) == {group_may_read}, found


def test_what_a_killed_writer_left_does_not_give_its_mode(group_may_read, tmp_path):
    left = tmp_path / "file.tmp"
    left.write_text("half")
    left.chmod(0o600)
    with outputs.atomic_write(tmp_path / "file") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
    assert modes(tmp_path) == {"file": group_may_read}


# --- locks ----------------------------------------------------------------------------------


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", fails)
    with outputs.lock_folder(tmp_path / "out"):
        (tmp_path / "out" / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_who_waits_for_a_folder_gets_it_when_it_is_free(tmp_path):
    for _ in range(2):
        with outputs.lock_folder(tmp_path), pytest.raises(cr.UserError, match="another process"):  # noqa: SIM117
            with outputs.lock_folder(tmp_path):
                pass
        assert list(tmp_path.iterdir()) == []
