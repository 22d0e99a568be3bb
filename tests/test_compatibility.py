"""What users call and what they have saved goes on working, as recorded from the version before.

`files/before/interface.json` has its names, signatures, commands, settings and endpoints; the
folders beside it are its runs, and `answers.json` what it answered with them.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import interface
from helpers.commands import command
from PIL import Image

import clip_randlora as cr
from clip_randlora import cli
from clip_randlora.data.dataset_spec import DatasetSpec
from clip_randlora.sweep import SweepConfig

BEFORE = Path(__file__).parent / "files" / "before"
CLIPART = Path(cr.__file__).parent / "bundled" / "clipart"
INTERFACE = json.loads((BEFORE / "interface.json").read_text())
ANSWERS = json.loads((BEFORE / "answers.json").read_text())
IMAGES = [CLIPART / name for name in ANSWERS["images"]]
PROMPTS = ["a photo of a bird.", "a drawing of a house."]


# --- what users call ------------------------------------------------------------------------


def refused(before: interface.Parameters, now: interface.Parameters) -> str:
    """Say why a call that was right before is not any more; empty if there is no reason."""
    positional = [
        [name for name, kind in of.items() if kind.split(" ")[0] in ("positional", "any")]
        for of in (before, now)
    ]
    if positional[1][: len(positional[0])] != positional[0]:
        return f"takes {positional[1]}, took {positional[0]}"
    for name, kind in before.items():
        default = kind.partition(" = ")[2]
        if name not in now and not name.startswith("*"):
            return f"has no {name}"
        if now[name].partition(" = ")[2] != default:
            return f"{name}: {now[name]}, was {kind}"
    needed = [
        name
        for name, kind in now.items()
        if name not in before and " = " not in kind and not kind.startswith("*")
    ]
    return f"needs {needed}" if needed else ""


def lost(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """List what is there no longer, or has another meaning."""
    found = []
    for name, value in before.items():
        where = f"{path}{name}"
        if name not in now:
            found.append(f"{where} is gone")
        elif isinstance(value, dict) and isinstance(now[name], dict):
            found += lost(value, now[name], f"{where}: ")
        elif isinstance(value, list) and isinstance(now[name], list):
            found += [f"{where}: {gone} is gone" for gone in value if gone not in now[name]]
        elif value != now[name]:
            found.append(f"{where}: {now[name]}, was {value}")
    return found


def changed(where: str, before: Any, now: Any) -> list[str]:
    """List what a public name can no longer do: a function, a class, or something else."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return lost({where: before}, {where: now})
    if all(isinstance(kind, str) for kind in before.values()):  # the parameters of a function
        reason = refused(before, now)
        return [f"{where}: {reason}"] if reason else []
    found = [f"{where}.{name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        if before[name] is not None:
            found += changed(f"{where}.{name}", before[name], now[name])
    return found


def test_every_public_name_takes_what_it_took():
    now, found = interface.public_names(cr), []
    for name, before in INTERFACE["names"].items():
        found += changed(name, before, now[name]) if name in now else [f"{name} is gone"]
    assert not found, "\n".join(sorted(found))


def test_every_command_has_its_options():
    now = interface.commands(cli.app)
    assert not lost(INTERFACE["commands"], now)


def test_every_setting_of_a_yaml_file_is_read():
    models = {"train": cr.TrainConfig, "data set": DatasetSpec, "sweep": SweepConfig}
    models |= {f"method {name}": method for name, method in cr.METHODS.items()}
    assert not lost(INTERFACE["settings"], interface.settings(models))


def test_every_endpoint_of_the_app_takes_what_it_took(tmp_path):
    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.page import build
    from clip_randlora.app.service import Service

    now = interface.endpoints(build(Service(Settings(folder=tmp_path))))
    assert {name: now.get(name) for name in INTERFACE["endpoints"]} == INTERFACE["endpoints"]


# --- what they have saved -------------------------------------------------------------------


@pytest.fixture
def model() -> cr.Model:
    return cr.load_model("lite0", device="cpu")


def close(got: Any, expected: Any) -> bool:
    """Compare nested lists and mappings; numbers to 1e-4."""
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(close(got[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(close, got, expected))
    return got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ANSWERS["runs"])
def test_a_run_answers_as_before(name, model):
    expected = ANSWERS["runs"][name]
    with closing(cr.Classifier.load(BEFORE / name, model=model)) as classifier:
        assert close(classifier.predict(IMAGES), expected["predict"])
        classifier.adapter.strength = 0.5
        half = [answer["tuned"] for answer in classifier.predict(IMAGES)]
    assert close(half, expected["half"])


@pytest.mark.parametrize("name", [n for n, of in ANSWERS["runs"].items() if "features" in of])
def test_an_adapter_changes_a_model_as_before(name, model):
    cr.load_adapter(model.net, BEFORE / name / "adapter.safetensors")
    pixels = torch.stack([model.preprocess(Image.open(path).convert("RGB")) for path in IMAGES])
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.net.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(
            model.net.encode_text(model.tokenizer(PROMPTS)), dim=-1
        )
    assert close((images @ texts.T).tolist(), ANSWERS["runs"][name]["features"])


def test_eval_counts_as_before(tmp_path):
    for folder in (CLIPART / "test").iterdir():
        (tmp_path / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:3]:
            shutil.copy(image, tmp_path / folder.name)
    done = command("eval", BEFORE / "randlora", tmp_path, "--count", "all", "--json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert close({key: got[key] for key in ANSWERS["eval"]}, ANSWERS["eval"])


def test_an_unfinished_run_is_finished_as_before(tmp_path):
    out = shutil.copytree(BEFORE / "unfinished", tmp_path / "run")
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load((out / "config.yaml").read_text())["train"]))
    done = command(
        "train", "clipart", "--config", settings, "--device", "cpu", "--resume", "--out", out
    )
    assert done.returncode == 0, done.stderr
    metrics, expected = json.loads((out / "metrics.json").read_text()), ANSWERS["resumed"]
    assert metrics["steps"] == expected["steps"]
    assert close(metrics["tuned"], expected["tuned"])
    with closing(cr.Classifier.load(out, device="cpu")) as classifier:
        assert close(classifier.predict(IMAGES), expected["predict"])
