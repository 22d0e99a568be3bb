"""Fixes by an edited CSV: what they move, what they refuse, and how they are undone."""

import json
import os

import pytest
from helpers.images import write_classes

import clip_randlora as cr
from clip_randlora.checking import fixes
from clip_randlora.checking.fixes import apply_moves, plan_moves, undo_moves
from clip_randlora.checking.problems_file import read_actions

HEADER = "problem,image,split,class,suggestion,certainty,detail,action\n"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    write_classes(root / "train", ["cat", "dog"], images=3)
    write_classes(root / "test", ["cat", "dog"], images=2, start=50)
    return root


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def plan(folder, tmp_path, *rows):
    table = tmp_path / "problems.csv"
    table.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return plan_moves(folder, cr.load_data(folder, check=False), read_actions(table))


def test_move_and_remove_and_undo(folder, tmp_path):
    before = contents(tmp_path)
    moves = plan(
        folder,
        tmp_path,
        "wrong label,test/cat/1.png,test,cat,dog,0.9,,move",
        "duplicate,train/dog/0.png,train,dog,,,,REMOVE",
        "wrong label,train/cat/0.png,train,cat,dog,0.9,,",
    )
    journal = tmp_path / "journal.jsonl"
    assert apply_moves(moves, journal) == 2
    after = contents(tmp_path)
    assert after["data/test/dog/1-2.png"] == before["data/test/cat/1.png"]  # 1.png was taken
    assert after["data_removed/train/dog/0.png"] == before["data/train/dog/0.png"]
    assert "data/test/cat/1.png" not in after
    assert undo_moves(journal) == (2, [])
    assert not (tmp_path / "data_removed").exists()
    left = contents(tmp_path)
    assert {k: v for k, v in left.items() if k.startswith("data")} == {
        k: v for k, v in before.items() if k.startswith("data")
    }
    assert undo_moves(journal) == (0, [])  # a second time there is nothing to put back


@pytest.mark.parametrize("moment", ["before the move", "between its two steps", "after it"])
def test_a_killed_fix_can_be_undone(folder, tmp_path, monkeypatch, moment):
    before = contents(folder)
    row = "wrong label,train/cat/0.png,train,cat,dog,0.9,,move"
    more = "wrong label,train/cat/1.png,train,cat,dog,0.9,,move"
    moves = plan(folder, tmp_path, row, more)

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    step = {"before the move": "link", "between its two steps": "unlink"}.get(moment)
    if step:
        monkeypatch.setattr(fixes.os, step, kill)
    else:
        real, calls = os.link, []

        def second_fails(*arguments, **options):
            calls.append(arguments)
            return kill() if len(calls) > 1 else real(*arguments, **options)

        monkeypatch.setattr(fixes.os, "link", second_fails)
    with pytest.raises(KeyboardInterrupt):
        apply_moves(moves, tmp_path / "journal")
    monkeypatch.undo()
    with open(tmp_path / "journal", "a") as file:
        file.write('{"before": "half a li')  # killed while it wrote
    done, problems = undo_moves(tmp_path / "journal")
    assert (done, problems) == (0 if moment == "before the move" else 1, [])
    assert contents(folder) == before


def test_nothing_is_overwritten(folder, tmp_path):
    moves = plan(folder, tmp_path, "wrong label,test/cat/1.png,test,cat,dog,0.9,,move")
    moves[0].after.write_bytes(b"appeared since")
    with pytest.raises(cr.UserError, match=r"stopped after 0 files.*--undo"):
        apply_moves(moves, tmp_path / "journal")
    assert moves[0].after.read_bytes() == b"appeared since"
    assert moves[0].before.exists()


def test_undo_leaves_a_file_where_its_place_is_taken(folder, tmp_path):
    moves = plan(folder, tmp_path, "wrong label,test/cat/1.png,test,cat,dog,0.9,,move")
    apply_moves(moves, tmp_path / "journal")
    moves[0].before.write_bytes(b"new")
    done, problems = undo_moves(tmp_path / "journal")
    assert done == 0
    assert str(moves[0].after) in problems[0]
    assert moves[0].before.read_bytes() == b"new"


def test_a_journal_that_exists_is_kept(folder, tmp_path):
    (tmp_path / "journal").write_text("mine")
    with pytest.raises(cr.UserError, match="exists; choose another file"):
        apply_moves([], tmp_path / "journal")
    assert (tmp_path / "journal").read_text() == "mine"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("wrong label,train/cat/9.png,train,cat,dog,,,move", r"line 2: .* has no file"),
        ("wrong label,../secret.png,train,cat,dog,,,move", "has no file"),
        ("wrong label,train/cat/0.png,train,cat,../..,,,move", "there is no class"),
        ("wrong label,train/cat/0.png,train,cat,,,,move", "line 2: move train/cat/0.png where"),
        ("wrong label,train/cat/0.png,train,cat,dog,,,delete", "'delete' is not move"),
    ],
)
def test_wrong_rows(folder, tmp_path, row, message):
    with pytest.raises(cr.UserError, match=message):
        plan(folder, tmp_path, row)


def test_two_rows_that_contradict(folder, tmp_path):
    rows = [
        f"x,train/cat/0.png,train,cat,{name},,,{do}"
        for name, do in (("dog", "move"), ("", "remove"))
    ]
    with pytest.raises(cr.UserError, match="line 3: line 2 wants something else"):
        plan(folder, tmp_path, *rows)


def test_a_table_as_a_spreadsheet_writes_it(tmp_path):
    table = tmp_path / "problems.csv"
    text = "\ufeffimage;suggestion;action\r\ntrain/cat/0.png;dog;Move\r\n"
    table.write_bytes(text.encode())
    (action,) = read_actions(table)
    assert (action.image, action.target) == ("train/cat/0.png", "dog")


def test_what_is_no_journal(tmp_path):
    (tmp_path / "journal").write_text(json.dumps({"format": "other"}) + "\n")
    with pytest.raises(cr.UserError, match="not a journal of --fix"):
        undo_moves(tmp_path / "journal")
    with pytest.raises(cr.UserError, match="cannot be read"):
        undo_moves(tmp_path / "none")
