"""What scripts rely on: JSON alone on standard output, and exit statuses that the help tells."""

import json

import typer
from helpers.commands import command

from clip_randlora import cli

TABLES = (
    "demo", "train", "tune", "eval", "predict", "check", "label", "models", "datasets", "sweep",
    "report",
)  # fmt: skip
"""The commands that print a table."""


def test_the_help_is_by_task_and_tells_exit_statuses_and_json():
    text = command("--help").stdout
    tasks = ["Teach a model", "Use what was trained", "Prepare images", "Compare methods"]
    places = [text.index(task) for task in tasks]
    assert places == sorted(places) and text.index(" export ") > places[1]
    for name in typer.main.get_command(cli.app).commands:
        shown = " ".join(command(name, "--help").stdout.split())
        assert "Exit status: 0 done;" in shown and "130 interrupted" in shown, name
        assert ("1 some cells failed" in shown) == (name == "sweep")
        assert ("--json" in shown) == (name in TABLES), name
    text = command("train", "--help").stdout
    groups = ["─ Data ", "─ Model ", "─ Method ", "─ Training ", "─ Results "]
    assert all(group in text for group in groups)
    assert text.index("─ Method ") < text.index("--rank") < text.index("─ Training ")


def test_models_and_data_sets_as_json():
    models = {row.pop("name"): row for row in json.loads(command("models", "--json").stdout)}
    assert models["lite0"] == {"pretrained": "default", "others": []}
    assert models["ViT-B-32"]["pretrained"] == "openai"
    assert "laion2b_s34b_b79k" in models["ViT-B-32"]["others"]

    rows = {row.pop("name"): row for row in json.loads(command("datasets", "--json").stdout)}
    assert rows["clipart"]["classes"] == 11 and rows["clipart"]["images"] == 452
    assert rows["clipart"]["on_disk"] is True and rows["cifar10"]["classes"] == 10
    assert rows["cifar10"].keys() == rows["clipart"].keys()
    one = json.loads(command("datasets", "clipart", "--json").stdout)
    assert one == {"name": "clipart", **rows["clipart"]}
    spec = json.loads(command("datasets", "cifar10", "--json").stdout)
    assert spec["number_of_classes"] == 10 and spec["images"]["test"] == 10_000


def test_a_mistake_leaves_standard_output_empty():
    done = command("datasets", "nowhere", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere: ") and done.stderr.count("\n") == 1
