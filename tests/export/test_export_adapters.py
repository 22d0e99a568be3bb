"""Exported adapters: of one run, or of several added up, and how large they are."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import forks
from helpers.exports import train
from safetensors.torch import load_file

import clip_randlora as cr

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


@pytest.mark.slow
def test_the_adapter_is_a_tenth_of_what_peft_saves(tmp_path):
    """On one block of each tower of ViT-B-32; both files grow with every further block alike."""
    from peft import PeftConfig, PeftModel, get_peft_model
    from transformers import CLIPConfig, CLIPModel

    net = cr.load_model("ViT-B-32", None, "cpu").net
    adapter = cr.attach(net, cr.RandLoRA(rank=6, blocks=1))
    adapter.save(tmp_path / "adapter.safetensors")
    cr.save_peft_adapter(adapter, tmp_path / "compact")
    loaded = PeftModel.from_pretrained(CLIPModel(CLIPConfig()), tmp_path / "compact")
    loaded.save_pretrained(tmp_path / "theirs")
    config = PeftConfig.from_pretrained(tmp_path / "compact")
    config.save_projection = False
    get_peft_model(CLIPModel(CLIPConfig()), config).save_pretrained(tmp_path / "bare")
    ours = (tmp_path / "adapter.safetensors").stat().st_size
    theirs, bare = (
        (tmp_path / name / "adapter_model.safetensors").stat().st_size
        for name in ("theirs", "bare")
    )
    shutil.rmtree(tmp_path / "theirs")
    print(f"ours {ours}, peft's {theirs} (1/{theirs / ours:.1f}), without bases {bare}")
    assert ours * 10 <= theirs
    assert ours < 1.02 * bare  # which only peft can load, with the same torch


def test_an_adapter_at_half_strength(tiny_run, quick_folder, tmp_path):
    cr.export_run(tiny_run, "adapter", tmp_path / "half", strength=0.5)
    whole = cr.load_adapter(cr.load_model(str(quick_folder)).net, tiny_run / "adapter.safetensors")
    half = cr.load_adapter(cr.load_model(str(quick_folder)).net, tmp_path / "half")
    for name, delta in whole.deltas().items():
        torch.testing.assert_close(half.deltas()[name], 0.5 * delta)


def test_runs_are_added_in_weight_space(tiny_run, quick_folder, drawings, tmp_path):
    # another seed has other bases: only the updates can be added, not the coefficients
    method = {"method": "randlora", "rank": 3, "seed": 9}
    model = cr.load_model(str(quick_folder))
    other = train(model, drawings, tmp_path / "other", spread=0.1, method=method)

    def deltas(path: Path) -> dict[str, torch.Tensor]:
        return cr.load_adapter(cr.load_model(str(quick_folder)).net, path).deltas()

    first, second = (deltas(run / "adapter.safetensors") for run in (tiny_run, other))
    cr.export_run(tiny_run, "adapter", tmp_path / "average", add=[other])
    cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[other], weights=[1.0, -0.5])
    for name, delta in deltas(tmp_path / "average").items():
        torch.testing.assert_close(delta, (first[name] + second[name]) / 2)
    for name, delta in deltas(tmp_path / "sum").items():
        torch.testing.assert_close(delta, first[name] - 0.5 * second[name])
    assert "1 x tiny + -0.5 x other" in (tmp_path / "sum" / "README.md").read_text()
    cr.export_run(
        tiny_run, "open_clip", tmp_path / "merged", add=[other], weights=[1, -0.5], strength=0.5
    )
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    merged = load_file(tmp_path / "merged" / "open_clip_model.safetensors")[name]
    base = load_file(quick_folder / "open_clip_model.safetensors")[name]
    torch.testing.assert_close(merged - base, 0.5 * (first[name] - 0.5 * second[name]))
    with pytest.raises(cr.UserError, match="is for one randlora run"):
        cr.export_run(tiny_run, "peft", tmp_path / "peft", add=[other])


@pytest.mark.slow
def test_the_command_averages_and_adds(tiny_run, quick_folder, drawings, tmp_path):
    """Two methods on the same weights, in processes of their own."""
    method = {"method": "lora", "rank": 2}
    model = cr.load_model(str(quick_folder))
    other = train(model, drawings, tmp_path / "other", spread=0.1, method=method)

    def deltas(path: Path) -> dict[str, torch.Tensor]:
        return cr.load_adapter(cr.load_model(str(quick_folder)).net, path).deltas()

    def export(out: Path, *options: str) -> dict[str, torch.Tensor]:
        options = ["--format", "adapter", "--out", out, "--add", other, *options]
        done = forks.run_command("export", tiny_run, *options)
        assert done.returncode == 0, done.stderr
        return deltas(out)

    first, second = (deltas(run / "adapter.safetensors") for run in (tiny_run, other))
    average = export(tmp_path / "average")
    added = export(tmp_path / "added", "--weights", "1,-0.5")
    for name, delta in first.items():
        torch.testing.assert_close(average[name], (delta + second[name]) / 2)
        torch.testing.assert_close(added[name], delta - 0.5 * second[name])
    assert any(delta.any() for delta in second.values())


def test_runs_that_cannot_be_added_are_named(tiny_run, quick_folder, drawings, lite0_run, tmp_path):
    with pytest.raises(
        cr.UserError, match=r"lite0.*trained on lite0.*and the model here is local-dir"
    ):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[lite0_run])
    method = {"method": "randlora", "rank": 5, "towers": ["vision"]}
    model = cr.load_model(str(quick_folder))
    other = train(model, drawings, tmp_path / "other", method=method)
    with pytest.raises(cr.UserError, match=r"adapts other weights .*towers"):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[other])
    with pytest.raises(cr.UserError, match="3 for 2 adapters"):
        cr.export_run(tiny_run, "adapter", tmp_path / "sum", add=[tiny_run], weights=[1, 2, 3])
    assert not (tmp_path / "sum").exists()
