"""What cannot be exported: one line, status 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cases import slow_cases
from helpers.exports import refused, train
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora.export import exporter

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


def test_bad_options_are_one_line_and_status_2(tiny_run, lite0_run, tmp_path, monkeypatch, capsys):
    for run, format, options, says in (
        (lite0_run, "transformers", [], "lite0 has other layers"),
        (lite0_run, "peft", [], "lite0 has other layers; use open_clip or onnx"),
        (tiny_run, "gguf", [], "--format gguf: there is adapter, open_cl"),
        (tiny_run, "head", ["--strength", "2"], "strength: 2.0"),
        (tiny_run, "head", ["--strength", "nan"], "strength: nan; give a number between 0 and 1"),
        (tiny_run, "head", ["--precision", "fp16"], "--precision fp16"),
        (tiny_run, "head", ["--weights", "1,2"], "one run only"),
        (tiny_run, "head", ["--weights", "a"], "--weights a"),
    ):
        options = ["--format", format, "--out", tmp_path / "out", *options]
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def padding_run(quick_folder, drawings, tmp_path_factory) -> Path:
    """A run on a model that pads its images, which only open_clip can do."""
    folder = tmp_path_factory.mktemp("padding") / "padding"
    shutil.copytree(quick_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"resize_mode": "longest"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return train(cr.load_model(str(folder)), drawings, folder.parent / "run")


FORMATS = list(cr.export_formats())


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_refuses_in_one_line(format, tiny_run, tmp_path, monkeypatch, capsys):
    """Incomplete and damaged runs, and paths that are taken or cannot be written."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("metrics.json", "adapter.safetensors", "config.yaml"):
        shutil.copytree(tiny_run, tmp_path / f"without {name}")
        (tmp_path / f"without {name}" / name).unlink()
        shutil.copytree(tiny_run, tmp_path / f"half a {name}")
        whole = (tiny_run / name).read_bytes()
        half = whole[: len(whole) // 2]
        if name == "config.yaml":
            half = half[: half.rindex(b"\n") + 1]  # whole lines, so that it is still YAML
        (tmp_path / f"half a {name}" / name).write_bytes(half)
    before = sorted(tmp_path.rglob("*"))
    for run, out, says in (
        (tmp_path / "without metrics.json", "out", "the run is not finished"),
        (tmp_path / "without adapter.safetensors", "out", "the run is not finished"),
        (tmp_path / "without config.yaml", "out", "not a run folder"),
        (tmp_path / "half a metrics.json", "out", "damaged, not the metrics"),
        (tmp_path / "half a adapter.safetensors", "out", "not a readable adapter file"),
        (tmp_path / "half a config.yaml", "out", "config.yaml: damaged, train has no "),
        (tmp_path / "no", "out", "not a run folder"),
        (tiny_run, "taken", "exists; choose another"),
        (tiny_run, "file", "exists; choose another"),
        (tiny_run, "link", "exists; choose another"),
        (tiny_run, "file/x", "cannot be written"),
        (tiny_run, "x" * 300, "cannot be written"),
        (tiny_run, Path("/proc/out"), "--out /proc/out: cannot be"),  # even root cannot write there
    ):
        options = ["--format", format, "--out", tmp_path / out]
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_that_does_not_fit_is_one_line(
    format, lite0_run, padding_run, tmp_path, monkeypatch, capsys
):
    """adapter, open_clip and head fit every model, and are written for these too."""
    refusals = {
        "transformers": [(lite0_run, "lite0 has other layers"), (padding_run, "pads")],
        "peft": [(lite0_run, "lite0 has other layers"), (padding_run, "pads")],
        "onnx": [(padding_run, "pads")],
        "web": [(padding_run, "pads")],
    }
    for run, says in refusals.get(format, []):
        options = ["--format", format, "--out", tmp_path / "out"]
        assert says in refused(monkeypatch, capsys, "export", run, *options)
        assert not list(tmp_path.iterdir())
    if format not in refusals:
        assert cr.export_run(padding_run, format, tmp_path / "out").is_dir()


@pytest.mark.parametrize("format", slow_cases(FORMATS, "onnx", "web"))
def test_no_format_leaves_what_does_not_load_back(
    format, tiny_run, exported, tmp_path, tmp_path_factory, monkeypatch
):
    """Every file of weights is cut in half before the check."""
    writer = exporter._import_writer(format)
    options = {"strength": 0.5} if format == "onnx" else {}  # shared with the other tests
    whole = exported(tiny_run, format, tmp_path_factory.mktemp("whole"), **options)

    def write_half(source, folder, **_):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.onnx")]:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    monkeypatch.setattr(writer, "write", write_half)
    with pytest.raises(cr.UserError) as told:
        cr.export_run(tiny_run, format, tmp_path / "deep" / "exported")
    assert len(str(told.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_if_the_check_fails(tiny_run, tmp_path, monkeypatch):
    from clip_randlora.export import open_clip_format

    written = open_clip_format.write

    def write_damaged(source, folder):
        written(source, folder)
        path = folder / "open_clip_model.safetensors"
        weights = load_file(path)
        weights["visual.proj"] *= -1
        save_file(weights, path)

    monkeypatch.setattr(open_clip_format, "write", write_damaged)
    with pytest.raises(cr.UserError, match="nothing written: image features of the export differ"):
        cr.export_run(tiny_run, "open_clip", tmp_path / "deep" / "exported")
    assert not list(tmp_path.iterdir())


def test_a_library_that_fails_is_told_in_one_line(tiny_run, tmp_path, monkeypatch):
    from clip_randlora.export import head_format

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head_format, "write", full)
    with pytest.raises(cr.UserError, match=r"nothing written \(No space left on device\); choose"):
        cr.export_run(tiny_run, "head", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_a_run_on_random_weights_is_exported(quick_folder, drawings, tmp_path):
    model = cr.load_model(str(quick_folder), pretrained=None)
    run = train(model, drawings, tmp_path / "run", spread=0.1)
    cr.export_run(run, "open_clip", tmp_path / "exported", strength=0)
    merged = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    base = cr.load_model(model.name, model.pretrained).net.state_dict()
    moved = {key for key, tensor in base.items() if not torch.equal(merged[key], tensor)}
    assert moved <= {"logit_scale"}  # which has the temperature of zero-shot
    assert "none; its weights are random" in (tmp_path / "exported" / "README.md").read_text()


def test_obstacles_are_known_before_an_export(lite0_run, padding_run):
    fits = {"adapter": "", "open_clip": "", "head": ""}
    assert cr.export_obstacles(lite0_run) == fits | {
        "transformers": "it takes OpenAI's and LAION's ViT models, and lite0 has other layers; use "
        "open_clip or onnx",
        "peft": "it takes OpenAI's and LAION's ViT models, and lite0 has other layers; use "
        "open_clip or onnx",
        "onnx": "",
        "web": "",
    }
    assert "pads its images; use open_clip" in cr.export_obstacles(padding_run)["onnx"]
