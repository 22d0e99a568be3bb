"""Images are put into class folders: none is overwritten, lost or sorted twice."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.images import encoded, picture

import clip_randlora as cr
from clip_randlora.data.inputs import each_input
from clip_randlora.labelling import sorting


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images in two folders; two of them are called a.png and differ."""
    for number, name in enumerate(("x/a.png", "x/b.png", "x/c.png", "y/a.png", "y/d.png", "y/e")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    (tmp_path / "photos/y/e").rename(tmp_path / "photos/y/e.jpeg")
    return tmp_path / "photos"


def labelled(images, above: float = 0.5, answers=(0, 0, 1, 0, 1, 1)):
    """Answers as `label_images` gives them: the sixth image is below the line."""
    entries = list(each_input(images, lambda left_out: None))
    labelling = cr.Labelling(
        ("hat", "shoe"),
        above,
        torch.arange(6),
        [entry.name for entry in entries],
        torch.tensor(answers),
        torch.tensor([0.9, 0.8, 0.7, 0.95, 0.6, 0.4]),
        [],
        [],
    )
    return labelling, entries


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != sorting.LIST
    }


def expected(photos: Path) -> dict[str, bytes]:
    """By hand: y/a.png is the surest, so that x/a.png is the second of its name."""
    return {
        "hat/a-2.png": (photos / "x/a.png").read_bytes(),
        "hat/a.png": (photos / "y/a.png").read_bytes(),
        "hat/b.png": (photos / "x/b.png").read_bytes(),
        "shoe/c.png": (photos / "x/c.png").read_bytes(),
        "shoe/d.png": (photos / "y/d.png").read_bytes(),
    }


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_each_labelled_image_is_in_its_class_folder(photos, tmp_path, how):
    wanted, before = expected(photos), files(photos)
    done = cr.sort_into_folders(*labelled(photos), tmp_path / "out", how)
    assert files(tmp_path / "out") == wanted
    assert done.counts == {"hat": 3, "shoe": 2} and not done.errors and not done.copied
    left = {"y/e.jpeg": before["y/e.jpeg"]} if how == "move" else before
    assert files(photos) == left
    is_same_file = [p.stat().st_nlink == 2 for p in (tmp_path / "out").rglob("*.png")]
    assert is_same_file == [how == "link"] * 5
    data = cr.load_data(tmp_path / "out")
    assert data.classes == ("hat", "shoe") and not data.skipped


def test_a_file_that_is_there_is_not_overwritten(photos, tmp_path):
    (tmp_path / "out/hat").mkdir(parents=True)
    (tmp_path / "out/hat/a.png").write_bytes(b"mine")
    cr.sort_into_folders(*labelled(photos), tmp_path / "out")
    found = files(tmp_path / "out")
    assert found["hat/a.png"] == b"mine"
    assert found["hat/a-2.png"] == (photos / "y/a.png").read_bytes()
    assert found["hat/a-3.png"] == (photos / "x/a.png").read_bytes()


@pytest.mark.parametrize("how", ["copy", "link", "move"])
@pytest.mark.parametrize("where", ["before it is listed", "in the middle of the list"])
def test_killed_and_begun_again_nothing_is_doubled(photos, tmp_path, monkeypatch, how, where):
    wanted = expected(photos)
    every = labelled(photos)
    add, count = sorting._List.add, [0]

    def die(self, image, file):
        count[0] += 1
        if count[0] == 3:
            if where == "in the middle of the list":
                self._file.write(f'["{image[:-3]}')  # cut short
                self._file.flush()
            raise KeyboardInterrupt
        add(self, image, file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sorting._List, "add", die)
        cr.sort_into_folders(*every, tmp_path / "out", how)
    again = every
    if how == "move":  # the command lists what is left
        left = [entry for entry in every[1] if entry.content.exists()]
        keep = [row for row, entry in enumerate(every[1]) if entry in left]
        full = every[0]
        again = (
            cr.Labelling(
                full.classes,
                full.above,
                torch.arange(len(keep)),
                [full.names[row] for row in keep],
                full.answers[keep],
                full.probabilities[keep],
                [],
                [],
            ),
            left,
        )
    done = cr.sort_into_folders(*again, tmp_path / "out", how)
    assert files(tmp_path / "out") == wanted
    assert sum(done.counts.values()) + done.before == len(again[1]) - 1


def test_what_was_sorted_by_hand_since_stays(photos, tmp_path):
    cr.sort_into_folders(*labelled(photos), tmp_path / "out")
    (tmp_path / "out/hat/b.png").rename(tmp_path / "out/shoe/b.png")
    (tmp_path / "out/shoe/c.png").unlink()
    before = files(tmp_path / "out")
    better = labelled(photos, answers=(1, 1, 1, 0, 0, 1))  # another run answers otherwise
    done = cr.sort_into_folders(*better, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert done.before == 5 and not sum(done.counts.values())


def test_without_hard_links_files_are_copied(photos, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(sorting.os, "link", refuse)
    done = cr.sort_into_folders(*labelled(photos), tmp_path / "out", "link")
    assert done.copied == 5 and files(tmp_path / "out") == expected(photos)


def test_images_of_an_archive_are_copied_but_not_moved(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.*")):
            archive.write(path, path.relative_to(photos))
    done = cr.sort_into_folders(*labelled(tmp_path / "photos.zip"), tmp_path / "moved", "move")
    assert len(done.errors) == 5 and "archive" in done.errors[0]
    assert not files(tmp_path / "moved")
    cr.sort_into_folders(*labelled(tmp_path / "photos.zip"), tmp_path / "out")
    assert files(tmp_path / "out") == expected(photos)


def test_a_file_that_is_gone_is_named_and_the_others_are_sorted(photos, tmp_path):
    every = labelled(photos)
    (photos / "x/b.png").unlink()
    done = cr.sort_into_folders(*every, tmp_path / "out")
    assert len(done.errors) == 1 and "b.png" in done.errors[0]
    assert "hat/b.png" not in files(tmp_path / "out") and sum(done.counts.values()) == 4


@pytest.mark.parametrize("name", ["../up", "/root", ".hidden", "a/../../b", "."])
def test_a_class_cannot_lead_out_of_the_folder(photos, tmp_path, name):
    labelling, entries = labelled(photos)
    wrong = cr.Labelling(
        ("hat", name),
        0.0,
        labelling.places,
        labelling.names,
        labelling.answers,
        labelling.probabilities,
        [],
        [],
    )
    with pytest.raises(cr.UserError, match="cannot be a folder's name"):
        cr.sort_into_folders(wrong, entries, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "up").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs Linux")
def test_a_folder_that_cannot_be_made(photos, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(cr.UserError, match="cannot be written"):
        cr.sort_into_folders(*labelled(photos), tmp_path / "out")
