"""Model cards, and the hub that they are uploaded to."""

import json

import pytest
from helpers.cases import slow_cases
from helpers.exports import refused, snippet

import clip_randlora as cr
from clip_randlora import export
from clip_randlora.utils import hub

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


@pytest.mark.parametrize("format", slow_cases(cr.export_formats(), "onnx", "web"))
def test_the_card_says_what_it_is(format, tiny_run, exported, tmp_path):
    options = {"strength": 0.5} if format == "onnx" else {}  # shared with the other tests
    card = (exported(tiny_run, format, tmp_path, **options) / "README.md").read_text()
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for said in (
        f"{metrics['zero_shot']['top1']:.1%}",
        f"{metrics['tuned']['top1']:.1%}",
        "Base model: ",
        "Licence of the base: ",
        "method.rank | 5",
        "classes: `bird`, `computer`, `dessert`.",
    ):
        assert said in card
    assert cr.loading_snippet(tiny_run, format, "exported").strip() in card
    if format != "adapter":  # whose base has to be found again
        assert str(tmp_path.parent) not in card  # it may be published: no path of this machine
    written = {path.suffix for path in (tmp_path / "exported").resolve().iterdir()}
    page = {".html", ".css", ".js"}
    assert written <= {".safetensors", ".json", ".md", ".onnx", ".py", *page}  # no pickle


def test_the_adapters_snippet_runs(tiny_run, exported, tmp_path, monkeypatch):
    exported(tiny_run, "adapter", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(tmp_path), names)
    assert names["classifier"].adapter.strength == 1


def test_formats_are_listed_in_order():
    formats = cr.export_formats()
    assert list(formats) == ["adapter", "open_clip", "transformers", "peft", "onnx", "web", "head"]
    assert all(sentence.endswith(".") for sentence in formats.values())


def test_push_to_without_a_token_says_what_is_needed(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    options = ["--format", "head", "--out", tmp_path / "exported", "--push-to", "someone/birds"]
    line = refused(monkeypatch, capsys, "export", tiny_run, *options)
    assert "--push-to: needs a Hugging Face token that may write; run `hf auth login`" in line
    assert not (tmp_path / "exported").exists()


def test_push_reports_what_the_hub_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(cr.UserError, match="--push-to not a name"):
        export.push(tmp_path, "not a name")
