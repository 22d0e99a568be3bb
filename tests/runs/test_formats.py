"""Files of earlier versions are read as what they were; those of later ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.images import write_colors
from safetensors import safe_open
from safetensors.torch import save_file

import clip_randlora as cr
from clip_randlora.cli.options import settings_of_file
from clip_randlora.runs import run_config
from clip_randlora.utils import formats

# of the commit before config.yaml had a version, to the letter but for the numbers in braces
VERSION_1 = """\
model: {model}
pretrained: default
data:
  data: colors
classes:
- blue
- green
- red
train:
  method:
    method: randlora
    towers:
    - vision
    - text
    targets:
    - q
    - k
    - v
    - out
    - mlp
    - conv
    blocks: null
    seed: 0
    rank: 4
    alpha: 1.0
    bases: uniform
  shots: 4
  seed: 1
  steps: 6
  epochs: 16.0
  min_steps: 60
  batch_size: 32
  learning_rate: 0.01
  weight_decay: 0.1
  beta2: null
  warmup: 0.1
  label_smoothing: 0.1
  clip_norm: 1.0
  precision: fp32
  templates:
  - a photo of a {{}}.
  prompts: {{}}
  crop_scale:
  - 0.5
  - 1.0
  crop_size: null
  flip: true
  views: null
  prompts_per_step: 256
"""
METHOD = {"method": "randlora", "rank": 4}
SETTINGS = {"shots": 4, "steps": 6, "learning_rate": 0.01, "precision": "fp32", "method": METHOD}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> cr.Data:
    return cr.load_data(write_colors(tmp_path_factory.mktemp("data") / "colors", {"": 8}))


@pytest.fixture(scope="module")
def trained(tiny_folder, colors, tmp_path_factory) -> Path:
    """A run of today with the method's seed and the mirrored images of earlier versions."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = cr.TrainConfig.parse({**SETTINGS, "flip": True, "method": {**METHOD, "seed": 0}})
    cr.fit(cr.load_model(str(tiny_folder)), colors, config, out)
    return out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def without(text: str, line: str) -> str:
    assert f"  {line}\n" in text
    return text.replace(f"  {line}\n", "")


@pytest.mark.parametrize("change", [str, lambda text: without(text, "beta2: null")])
def test_a_run_of_version_1_is_read_as_it_was_trained(change, run, tiny_folder):
    now = cr.Classifier.load(run)
    text = change(VERSION_1.format(model=json.dumps(f"local-dir:{tiny_folder}")))
    (run / "config.yaml").write_text(text)
    before = cr.Classifier.load(run)
    assert before.classes == now.classes == ("blue", "green", "red")
    for (name, old), (_, new) in zip(
        before.adapter.deltas().items(), now.adapter.deltas().items(), strict=True
    ):
        assert torch.equal(old, new), name
    train = cr.TrainConfig.parse(run_config.read_config(run)["train"])
    assert train.beta2 == (None if "beta2" in text else 0.999)  # AdamW's, before one could set it
    assert train.method.seed == 0
    assert settings_of_file(run / "config.yaml")["beta2"] == train.beta2  # as --config reads it


@pytest.mark.parametrize("change", [str, lambda text: without(text, "beta2: null")])
def test_a_run_of_version_1_goes_on_as_it_began(change, trained, tiny_folder, colors, tmp_path):
    """With seed 0 of the method and mirrored images, which were the defaults of that time."""

    def stop(step: cr.Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    out, config = tmp_path / "run", cr.TrainConfig.parse({**SETTINGS, "method": METHOD})
    begun = cr.TrainConfig.parse({**SETTINGS, "flip": True, "method": {**METHOD, "seed": 0}})
    with pytest.raises(cr.Interrupted):
        cr.fit(cr.load_model(str(tiny_folder)), colors, begun, out, on_step=stop)
    text = change(VERSION_1.format(model=json.dumps(f"local-dir:{tiny_folder}")))
    (out / "config.yaml").write_text(text)
    resumed = cr.fit(cr.load_model(str(tiny_folder)), colors, config, out, resume=True)
    assert resumed.config.method.seed == 0
    model = cr.load_model(str(tiny_folder))
    straight = cr.load_adapter(model.net, trained)
    for name, delta in straight.deltas().items():
        torch.testing.assert_close(resumed.adapter.deltas()[name], delta)


def test_the_methods_seed_is_the_trainings_unless_it_has_one(tiny_folder, colors, tmp_path):
    recorded = []
    for name, method in (("open", METHOD), ("own", {**METHOD, "seed": 7})):
        config = cr.TrainConfig.parse({**SETTINGS, "steps": 1, "seed": 2, "method": method})
        run = cr.fit(cr.load_model(str(tiny_folder)), colors, config, tmp_path / name)
        run.adapter.detach()
        stored = cr.load_adapter(run.model.net, tmp_path / name).config.seed
        assert stored == run_config.read_config(tmp_path / name)["train"]["method"]["seed"]
        recorded.append(stored)
    assert recorded == [2, 7]
    assert cr.attach(cr.load_model(str(tiny_folder)).net, cr.LoRA(rank=2)).config.seed == 0


def test_a_config_that_was_cut_anywhere_is_refused(run):
    path = run / "config.yaml"
    whole = path.read_text()
    assert whole.startswith("format: 3\n") and whole.endswith("\ncomplete: true\n")
    places = {*range(0, len(whole) - 1, 11), *(at for at, c in enumerate(whole[:-1]) if c == "\n")}
    for end in sorted(places | {len(whole) - 2}):
        path.write_text(whole[:end])
        with pytest.raises(cr.UserError, match=r"config\.yaml: "):
            run_config.read_config(run)
    path.write_text(whole)
    run_config.read_config(run)


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("99", r"config\.yaml: format 99, .* reads formats 1 to 3; use a newer clip-randlora"),
        ("0", "format '0': damaged"),
        ("two", "format 'two': damaged"),
        ("[2]", "damaged"),
        ("true", "damaged"),
    ],
)
def test_a_config_of_a_version_that_is_not_known_is_refused(run, version, says):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("format: 3", f"format: {version}"))
    with pytest.raises(cr.UserError, match=says):
        cr.read_task(run)


def test_records_that_only_later_runs_have_do_not_stop_a_reader(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("classes:", "a_later_record: [1, 2]\nclasses:", 1))
    assert cr.read_task(run).classes == ("blue", "green", "red")


def test_what_a_later_version_adds_renames_and_removes(run, monkeypatch):
    """As if version 4 brought `flip`, called `warm_up` warmup, and dropped `momentum`."""
    change = formats.Change({"flip": False}, {"warm_up": "warmup"}, frozenset({"momentum"}))
    monkeypatch.setattr(formats, "RUN", 4)
    monkeypatch.setitem(formats.TRAIN, 4, change)
    path = run / "config.yaml"
    recorded = yaml.safe_load(path.read_text())
    train = recorded["train"]
    del train["flip"], train["warmup"]
    train |= {"warm_up": 0.3, "momentum": 0.9}
    path.write_text(yaml.safe_dump(recorded, sort_keys=False))
    read = cr.TrainConfig.parse(run_config.read_config(run)["train"])
    assert (read.flip, read.warmup) == (False, 0.3)
    del train["momentum"]
    path.write_text(yaml.safe_dump(recorded, sort_keys=False))
    with pytest.raises(cr.UserError, match="damaged, train has no momentum"):
        run_config.read_config(run)


def rewrite(path: Path, **changes: str | None) -> None:
    """Give an adapter file other metadata; None leaves an entry out."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    save_file(tensors, path, metadata=metadata)


def test_an_adapter_file_of_version_2_is_read(run, tiny_folder):
    path = run / "adapter.safetensors"
    before = cr.load_adapter(cr.load_model(str(tiny_folder)).net, path).deltas()
    config = {
        **{"method": "randlora", "towers": ["vision", "text"], "blocks": None, "seed": 0},
        **{"targets": ["q", "k", "v", "out", "mlp", "conv"]},
        **{"rank": 4, "alpha": 1.0, "bases": "uniform"},
    }
    for recorded in (config, {"method": "randlora", "rank": 4}):
        rewrite(path, version="2", format="clip-randlora-adapter", config=json.dumps(recorded))
        adapter = cr.load_adapter(cr.load_model(str(tiny_folder)).net, path)
        assert adapter.config == cr.RandLoRA(rank=4, seed=0)
        assert all(torch.equal(delta, before[name]) for name, delta in adapter.deltas().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "4"}, "adapter format 4, .* reads formats 2 to 3; use a newer clip-randlora"),
        ({"version": "1"}, "adapter format 1, .* use the version that wrote it, or train again"),
        ({"version": "new"}, "adapter format 'new': damaged"),
        ({"version": None}, "not a readable adapter file"),
        ({"config": '{"method": "randlora", "rakn": 4}'}, "rakn: no such setting; .* rank"),
    ],
)
def test_an_adapter_file_of_another_version_is_refused(run, tiny_folder, changes, says):
    rewrite(run / "adapter.safetensors", **changes)
    with pytest.raises(cr.UserError, match=says):
        cr.load_adapter(cr.load_model(str(tiny_folder)).net, run)


def test_a_methods_setting_that_a_later_version_adds(run, tiny_folder, monkeypatch):
    """As if version 4 of adapter files brought `alpha`, and all updates before had one of 2."""
    before = cr.load_adapter(cr.load_model(str(tiny_folder)).net, run).deltas()
    rewrite(run / "adapter.safetensors", config='{"method": "randlora", "rank": 4}')
    monkeypatch.setattr(formats, "ADAPTER", 4)
    monkeypatch.setitem(formats.METHODS, 4, {"randlora": formats.Change({"alpha": 2.0})})
    adapter = cr.load_adapter(cr.load_model(str(tiny_folder)).net, run)
    assert adapter.config.alpha == 2.0
    for name, delta in adapter.deltas().items():
        torch.testing.assert_close(delta, 2 * before[name])
    terms = [{"method": "randlora"}, {"method": "lora"}]
    added = formats.upgrade_method({"method": "sum", "terms": terms, "weights": [1, 1]}, 3)
    assert added["terms"] == [{"method": "randlora", "alpha": 2.0}, {"method": "lora"}]


COMMON = "method towers targets blocks seed"
SETTINGS_OF_TODAY = {
    "training": "method shots seed steps epochs min_steps batch_size learning_rate weight_decay "
    "beta2 warmup label_smoothing clip_norm precision templates prompts crop_scale crop_size flip "
    "views prompts_per_step max_steps accumulate checkpoint_blocks logit_scale strength stream "
    "calibrate",
    "randlora": f"{COMMON} rank alpha bases as_released",
    "lora": f"{COMMON} rank alpha",
    "clip_lora": f"{COMMON} rank alpha",
    "vera": f"{COMMON} rank alpha initial_d as_released",
    "nola": f"{COMMON} rank alpha number_of_bases",
    "dora": f"{COMMON} rank alpha",
    "kradapter": f"{COMMON} alpha",
    "norm_tuning": "method towers blocks",
    "full": "method towers",
    "linear_probe": "method C",
    "anchored_head": "method strength views",
    "tip_adapter_f": "method alpha beta views epochs learning_rate",
    "gda": "method alpha views",
    "zero_shot": "method",
}


def test_a_new_setting_needs_a_new_version():
    """Fails where a setting changed: `clip_randlora.utils.formats` says how to go on."""
    now = {"training": cr.TrainConfig, **cr.METHODS}
    assert {name: set(of.model_fields) for name, of in now.items()} == {
        name: set(names.split()) for name, names in SETTINGS_OF_TODAY.items()
    }
    assert (formats.RUN, formats.ADAPTER) == (3, 3)
