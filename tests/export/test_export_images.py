"""The snippets of exports on images that are easily opened wrongly: they say what predict says."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.exports import elsewhere, snippet
from PIL import Image

import clip_randlora as cr

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

# run, format, strength: exports that other tests make too
ELSEWHERE = [
    ("tiny_run", "open_clip", 1.0),
    ("tiny_run", "transformers", 1.0),
    ("tiny_run", "peft", 1.0),
    ("tiny_run", "onnx", 0.5),
    ("tiny_run", "head", 1.0),
    ("lite0_run", "open_clip", 1.0),
]
NAME = '"image.jpg"'
# Runs snippets, the models loaded once: the first image's answer is that of the whole snippet, the
# others' that of its last line, which names the image.
RUN_SNIPPETS = """
import ast
import contextlib
import io
import json
import os

NAME = '"image.jpg"'

def run(code, path, names):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace(NAME, json.dumps(path)), names)
    return ast.literal_eval(printed.getvalue())

def answers(folder, code, paths):
    os.chdir(folder)
    assert code.count(NAME) == 1
    names, last = {}, code.splitlines()[-1]
    return [run(code, paths[0], names), *(run(last, path, names) for path in paths[1:])]
"""


@pytest.fixture(scope="module")
def paths(difficult_images) -> list[str]:
    return [path for of_kind in difficult_images.values() for path in of_kind]


def predicted(run: Path, paths: list, strength: float = 1.0) -> list[dict[str, float]]:
    classifier = cr.Classifier.load(run, strength=strength, device="cpu")
    return [row["tuned"] for row in classifier.predict(paths)]


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) for name in one)


def require_same(paths: list[str], got: list[dict], wanted: list[dict]) -> None:
    assert len(paths) == len(got) == len(wanted) >= 30
    for path, one, other in zip(paths, got, wanted, strict=True):
        assert difference(one, other) < 1e-3, (Path(path).name, one, other)
        assert max(one, key=one.get) == next(iter(other)), (Path(path).name, one, other)


def job(run: Path, format: str, strength: float, exported, folder: Path) -> tuple[str, str]:
    """Put the export of a run into a folder, with what its snippet needs; return both."""
    folder.mkdir()
    exported(run, format, folder, **({} if strength == 1 else {"strength": strength}))
    if format == "peft":
        exported(run, "transformers", folder, "BASE", strength=0)
    if format == "head":
        exported(run, "open_clip", folder, "ENCODER")
    return str(folder), snippet(folder)


def answered_elsewhere(jobs: list[tuple[str, str]], paths: list[str], folder: Path) -> list:
    """Each job's answers {class: probability} for each image, of a process without this package."""
    code = f"{RUN_SNIPPETS}\nprint(json.dumps([answers(*job, {paths!r}) for job in {jobs!r}]))"
    return json.loads(elsewhere(code, folder).splitlines()[-1])


@pytest.fixture(scope="module")
def answers_of(tiny_run, lite0_run, paths, exported, tmp_path_factory) -> dict[tuple, list[dict]]:
    """The answers of all formats that need no package of ours, from one process."""
    folder, runs = tmp_path_factory.mktemp("jobs"), {"tiny_run": tiny_run, "lite0_run": lite0_run}
    jobs = [
        job(runs[run], format, strength, exported, folder / f"{run}_{format}")
        for run, format, strength in ELSEWHERE
    ]
    return dict(zip(ELSEWHERE, answered_elsewhere(jobs, paths, folder), strict=True))


def test_wrongly_opened_these_images_get_other_answers(tiny_run, difficult_images):
    """With Pillow's own ``convert`` alone, as in many examples; else nothing here could fail."""
    for kind in ("turned", "transparent", "16-bit"):
        wrong = []
        for path in difficult_images[kind]:
            image = Image.open(path).convert("RGB")
            wrong.append(Image.frombytes("RGB", image.size, image.tobytes()))  # without EXIF
        right = predicted(tiny_run, difficult_images[kind])
        for path, one, other in zip(
            difficult_images[kind], predicted(tiny_run, wrong), right, strict=True
        ):
            assert difference(one, other) > 3e-3, Path(path).name


def test_the_first_prompt_of_a_class_alone_would_get_other_answers(tiny_run, paths):
    settings = yaml.safe_load((tiny_run / "config.yaml").read_text())["train"]
    assert len(settings["templates"]) * len(settings["prompts"]["bird"]) == 4
    classifier = cr.Classifier.load(tiny_run, device="cpu")
    with torch.inference_mode():
        scale, features = classifier.model.logit_scale(), classifier.text.features()
        firsts = torch.tensor([int((classifier.text.owners < c).sum()) for c in range(3)])
        assert float((features - classifier.text.features(firsts)).abs().max()) * scale > 0.5


@pytest.mark.parametrize(("run", "format", "strength"), ELSEWHERE)
def test_the_snippet_says_what_predict_says(run, format, strength, request, answers_of, paths):
    """The top class of every image, and probabilities to 1e-3."""
    wanted = predicted(request.getfixturevalue(run), paths, strength)
    if (run, strength) == ("tiny_run", 1):
        assert len({next(iter(answer)) for answer in wanted}) > 1
    require_same(paths, answers_of[run, format, strength], wanted)


@pytest.mark.slow
def test_lite0_in_onnx_says_what_predict_says(lite0_run, paths, exported, tmp_path):
    jobs = [job(lite0_run, "onnx", 0.5, exported, tmp_path / "onnx")]
    (answers,) = answered_elsewhere(jobs, paths, tmp_path)
    require_same(paths, answers, predicted(lite0_run, paths, 0.5))


def test_the_adapters_snippet_says_what_predict_says(
    tiny_run, paths, exported, tmp_path, monkeypatch, capsys
):
    """It is for this package, so it runs here."""
    folder, code = job(tiny_run, "adapter", 1.0, exported, tmp_path / "adapter")
    monkeypatch.chdir(folder)
    assert code.count(NAME) == 1
    exec(code.replace(f"[{NAME}])[0]", f"{paths!r})").replace('["tuned"]', ""), {})
    got = [answer["tuned"] for answer in ast.literal_eval(capsys.readouterr().out)]
    require_same(paths, got, predicted(tiny_run, paths))


def test_a_base_on_the_hub_stands_where_a_folder_would(tiny_run, tmp_path):
    """OpenAI's weights, which cannot be had here: the same Python as for a base of one's own."""
    known = tmp_path / "known"
    shutil.copytree(tiny_run, known)
    settings = yaml.safe_load((known / "config.yaml").read_text())
    settings |= {"model": "ViT-B-32", "pretrained": "openai"}
    (known / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    code = cr.loading_snippet(known, "peft").replace("openai/clip-vit-base-patch32", "BASE")
    of_its_own = cr.loading_snippet(tiny_run, "peft")
    remark = "  # BASE: an export with --format transformers --strength 0"
    assert remark in of_its_own
    assert code == of_its_own.replace(remark, "")
