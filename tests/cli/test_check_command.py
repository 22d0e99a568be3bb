"""The command check: its outputs, and its repairs."""

import csv
import json
import shutil

import pytest
from helpers.commands import command
from helpers.images import write_colors


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder with a wrong label and a broken file of a strange name, and what a check wrote."""
    root = tmp_path_factory.mktemp("check")
    write_colors(root / "data", {"": 7})
    shutil.copy(root / "data/red/0.png", root / "data/blue/wrong.png")
    (root / "data/red/<b>&.png").write_bytes(b"no image")
    done = command(
        "check", root / "data", "--html", root / "r.html", "--csv", root / "p.csv", "--json"
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def test_json_and_csv_have_every_problem(checked):
    root, answer = checked
    with open(root / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert answer["images"] == 22
    assert [row["image"] for row in rows] == [row["image"] for row in answer["problems"]]
    wrong = next(row for row in rows if row["image"] == "blue/wrong.png")
    assert (wrong["problem"], wrong["class"], wrong["suggestion"]) == ("wrong label", "blue", "red")
    assert {"unreadable", "duplicate across classes"} <= {row["problem"] for row in rows}


def test_the_report_is_one_file_in_which_names_are_escaped(checked):
    root, _ = checked
    page = (root / "r.html").read_text()
    assert "red/&lt;b&gt;&amp;.png" in page and "<b>" not in page
    assert page.count("data:image/jpeg;base64,") == 3  # the wrong label, and the two copies
    assert "http" not in page and "<script" not in page


def test_fix_and_undo(checked):
    root, _ = checked
    with open(root / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["action"] = "move" if row["problem"] == "wrong label" else ""
    with open(root / "edited.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = command(
        "check", root / "data", "--fix", root / "edited.csv", "--journal", root / "journal"
    )
    assert (done.returncode, (root / "data/red/wrong.png").exists()) == (0, True)
    assert f"--undo {root / 'journal'}" in done.stdout
    undone = command("check", root / "data", "--undo", root / "journal", "--json")
    assert (undone.returncode, json.loads(undone.stdout)) == (0, {"put_back": 1, "notes": []})
    assert (root / "data/blue/wrong.png").exists()
    assert not (root / "data/red/wrong.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clipart", "--fix", "p.csv"], "clipart: --fix moves files of a folder"),
        (["clipart", "--html", __file__], "exists; choose another file"),
        (["clipart", "--journal", "j"], "--journal: only with --fix"),
        (["clipart", "--fix", "a", "--undo", "b"], "give one of them"),
    ],
)
def test_what_is_refused(arguments, message):
    done = command("check", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_table_with_columns_that_are_named_is_checked(checked):
    root, _ = checked
    images = sorted((root / "data").glob("*/[0-9].png"))
    table = root / "data" / "table.csv"
    lines = [f"{image.relative_to(root / 'data')},{image.parent.name},x" for image in images]
    table.write_text("\n".join(["datei,was,label", *lines]))
    done = command("check", table, "--columns", "path=datei,label=was", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 21
