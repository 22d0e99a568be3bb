"""Runs on the hub and back: push, the card, load by name, and what is not uploaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from helpers import hub as loopback
from helpers import hub_cards
from helpers.commands import command
from helpers.exports import files_in, train
from huggingface_hub import ModelCard

import clip_randlora as cr
from clip_randlora import export

PETS = "someone/pets"
BASE = "someone/base"


@pytest.fixture(scope="session")
def base_files(tiny_folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_folder.iterdir()}


@pytest.fixture(scope="session")
def run_on_hub_model(hub_server, base_files, drawings, tmp_path_factory) -> Path:
    """A run whose base model is on the hub; its data are a folder of this machine."""
    folder = tmp_path_factory.mktemp("of_hub")
    with pytest.MonkeyPatch.context() as patch:
        loopback.use(hub_server, folder / "cache", patch)
        hub_server.add(BASE, base_files)
        model = cr.load_model(f"hf-hub:{BASE}", device="cpu")
        method = {"method": "lora", "rank": 2}
        return train(model, drawings, folder / "run", spread=0.3, method=method)


@pytest.fixture
def pushed(hub, run_on_hub_model, base_files) -> loopback.Repository:
    hub.add(BASE, base_files)
    assert cr.Classifier.load(run_on_hub_model, device="cpu").push_to_hub(PETS).endswith(PETS)
    return hub.repositories["model", PETS]


def answers(classifier, drawings) -> torch.Tensor:
    """The tuned probabilities of the test images, (N, C)."""
    found = classifier.predict(files_in(drawings / "test"))
    return torch.tensor([[one["tuned"][name] for name in classifier.classes] for one in found])


def test_the_run_comes_back_by_its_name(pushed, run_on_hub_model, drawings):
    there = cr.Classifier.load(run_on_hub_model, device="cpu")
    here = cr.Classifier.from_pretrained(PETS, device="cpu")
    assert here.classes == there.classes
    assert torch.equal(answers(here, drawings), answers(there, drawings))
    assert cr.read_task(f"hf-hub:{PETS}").model == f"hf-hub:{BASE}"
    assert cr.Classifier.from_pretrained(run_on_hub_model, device="cpu").folder == run_on_hub_model


@pytest.mark.slow
def test_predict_by_name_in_a_fresh_process(hub, pushed, run_on_hub_model, drawings, tmp_path):
    image = files_in(drawings / "test")[0]
    arguments = ["predict", f"hf-hub:{PETS}", image, "--json", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "clip_randlora", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **loopback.environment(hub, tmp_path / "new")},
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    (expected,) = cr.Classifier.load(run_on_hub_model, device="cpu").predict(image)
    assert answer["tuned"] == pytest.approx(expected["tuned"], abs=1e-6)


def test_every_command_takes_the_name(pushed, drawings, tmp_path):
    name, images = f"hf-hub:{PETS}", drawings / "test"
    done = command("eval", name, drawings / "train", "--json")
    assert json.loads(done.stdout)["left_out"] == 3  # one of each class was trained on
    done = command("label", name, images, "--csv", tmp_path / "labels.csv")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        f"12 answers: saved to {tmp_path / 'labels.csv'}",
    )
    out = tmp_path / "out"
    done = command("export", name, "--format", "adapter", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "base_model: someone/base\n" in (out / "README.md").read_text()
    assert export.push(out, "someone/adapter").endswith("someone/adapter")
    again = cr.Classifier.from_pretrained("someone/adapter", device="cpu")
    whole = cr.Classifier.from_pretrained(PETS, device="cpu")
    assert torch.allclose(answers(again, drawings), answers(whole, drawings), atol=1e-6)


def test_the_command_push(hub, run_on_hub_model):
    done = command("push", run_on_hub_model, "someone/other", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Uploaded to {hub.address}/someone/other\n"
    assert hub.repositories["model", "someone/other"].private


def test_the_card_passes_the_hubs_validation(hub, pushed, run_on_hub_model):
    card = ModelCard(pushed.files["README.md"].decode())
    card.validate()
    metrics = json.loads((run_on_hub_model / "metrics.json").read_text())
    data = card.data
    assert (data.base_model, data.base_model_relation) == (BASE, "adapter")
    assert (data.license, data.license_link) == ("other", f"https://huggingface.co/{BASE}")
    assert data.tags == ["clip", "few-shot", "lora"]
    assert data.widget[0]["candidate_labels"] == "bird, computer, dessert"
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["accuracy"] == pytest.approx(metrics["tuned"]["top1"], abs=1e-4)
    assert values["ece"] == pytest.approx(metrics["tuned"]["ece"], abs=1e-4)
    data.license = "Apache 2"
    with pytest.raises(ValueError, match="license"):
        card.validate()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"model": "lite0", "pretrained": "default", "data": {"data": "clipart"}},
            ("apache-2.0", "timm/tf_efficientnet_lite0.in1k", None, "clipart"),
        ),
        (
            {
                "model": "ViT-B-32",
                "pretrained": "laion2b_s34b_b79k",
                "data": {"data": "hub:org/birds@train"},
            },
            ("mit", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ["org/birds"], "org/birds"),
        ),
        (
            {
                "model": "ViT-B-32",
                "pretrained": "openai",
                "data": {"data": "/home/me/My photos: summer"},
            },
            ("mit", "timm/vit_base_patch32_clip_224.openai", None, "My photos: summer"),
        ),
        (
            {"model": "MobileCLIP-S1", "pretrained": "datacompdr", "data": {}},
            ("other", "apple/MobileCLIP-S1-OpenCLIP", None, "images"),
        ),
        (
            {"model": "ViT-B-32", "pretrained": "random:7", "data": {"data": "hub:/home/me/set"}},
            ("unknown", None, None, "set"),
        ),
    ],
)
def test_what_the_metadata_says_of_base_and_data(settings, expected):
    from clip_randlora.runs.card_metadata import card_metadata

    metrics = {"tuned": {"top1": 0.5, "ece": 0.1}, "method": "linear_probe"}
    names = ["a: b", "c, d", "#e", "yes"]
    options = {"classes": names, "library": None, "relation": "adapter"}
    text = card_metadata(settings, metrics, "x", **options)
    assert hub_cards.problems(text) == []
    data = ModelCard(text).data
    found = data.license, data.base_model, data.datasets, data.eval_results[0].dataset_name
    assert found == expected
    assert data.widget[0]["candidate_labels"] == "a: b, c  d, #e, yes"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("license: mit", ""),
        ("license: MIT", "license"),
        ("license: other", "license_name"),
        ("license: mit\nbase_model: a/b/c", "base_model"),
        ("license: mit\ndatasets: [a b]", "datasets"),
        ("license: mit\ntags: clip", "tags"),
        ("license: mit\nmodel-index: [{name: x, results: [{task: {type: a}}]}]", "dataset"),
        ("license: mit\nwidget: [{src: cat.png}]", "src"),
    ],
)
def test_the_check_of_cards_finds_what_is_wrong(wrong, says):
    found = " ".join(hub_cards.problems(f"---\n{wrong}\n---\n"))
    assert says in found and bool(found) == bool(says)


def test_nothing_private_is_uploaded(pushed, run_on_hub_model, drawings):
    assert sorted(pushed.files) == [
        ".gitattributes", "README.md", "adapter.safetensors", "calibration.png",
        "confidence.json", "confidence.safetensors", "config.yaml", "confusion.png",
        "curves.png", "history.csv", "images.csv", "metrics.json",
    ]  # fmt: skip
    everything = b"".join(pushed.files.values())
    names = [path.name for path in drawings.rglob("*.*")]
    assert names and (run_on_hub_model / "images.csv").read_text().count(names[0]) == 1
    for private in (str(drawings), str(run_on_hub_model.parent), *names):
        assert private.encode() not in everything, private


def test_a_second_push_replaces_the_run_and_nothing_else(hub, pushed, run_on_hub_model, tmp_path):
    first = pushed.commits[-1][0]
    pushed.commit({**pushed.files, "notes.txt": b"mine"})
    other = shutil.copytree(run_on_hub_model, tmp_path / "other")
    (other / "confidence.json").unlink()
    classifier = cr.Classifier.load(other, device="cpu")
    classifier.adapter.detach()
    classifier.push_to_hub(PETS)
    assert pushed.files["notes.txt"] == b"mine"
    assert "confidence.json" not in pushed.files
    assert not cr.Classifier.from_pretrained(PETS, device="cpu").confidence.unknown
    before = cr.Classifier.from_pretrained(PETS, revision=first, device="cpu")
    same = cr.Classifier.load(f"hf-hub:{PETS}@{first}", device="cpu")
    assert before.confidence == same.confidence != classifier.confidence
    assert before.folder == same.folder


def test_what_cannot_be_pushed_is_one_line(hub, run_on_hub_model, tiny_run, tmp_path, monkeypatch):
    def refused(push, *arguments) -> str:
        with pytest.raises(cr.UserError) as error:
            push(*arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    of_folder = cr.Classifier.load(tiny_run, device="cpu")
    assert "base model is on this machine alone" in refused(of_folder.push_to_hub, PETS)
    others = of_folder.for_classes(["hat", "shoe"])
    assert "of no run folder" in refused(others.push_to_hub, PETS)
    hub.add(BASE, {})
    push = cr.Run(*[None] * 7, folder=run_on_hub_model).push_to_hub
    assert refused(cr.Run(*[None] * 7).push_to_hub, PETS).endswith("give `fit` a folder, out=...")
    assert "no name of a repository" in refused(push, "pets")
    monkeypatch.setenv("HF_TOKEN", loopback.READER)
    assert "someone/pets: the token may not do this" in refused(push, PETS)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "someone/pets: the hub refuses the token" in refused(push, PETS)
    monkeypatch.delenv("HF_TOKEN")
    assert "someone/pets: needs a Hugging Face token that may write" in refused(push, PETS)
    assert list(hub.repositories) == [("model", BASE)]


def test_an_export_loads_in_open_clip_by_its_name(hub, tiny_run, exported, tmp_path):
    folder = exported(tiny_run, "open_clip", tmp_path)
    export.push(folder, "someone/whole")
    card = hub.repositories["model", "someone/whole"].files["README.md"].decode()
    ModelCard(card).validate()
    assert 'folder = snapshot_download("someone/whole")' in card
    there, _ = open_clip.create_model_from_pretrained("hf-hub:someone/whole")
    here, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder.resolve()}")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(there.eval().encode_image(pixels), here.eval().encode_image(pixels))
