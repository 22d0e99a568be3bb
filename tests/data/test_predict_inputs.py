"""`predict` takes images in every form, and one bad image does not end the call."""

import csv
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import command
from PIL import Image
from torchvision.transforms.functional import to_tensor

import clip_randlora as cr
from clip_randlora.cli import progress_bars
from clip_randlora.data import inputs


@pytest.fixture(scope="module")
def classifier(tiny_run) -> cr.Classifier:
    return cr.Classifier.load(tiny_run)


@pytest.fixture(scope="module")
def folder(drawings, tmp_path_factory) -> Path:
    """Images 1, 2 and 10 in two folders, and a file that is no image."""
    root = tmp_path_factory.mktemp("folder") / "photos"
    (root / "more").mkdir(parents=True)
    paths = sorted((drawings / "test").rglob("*.*"))[:3]
    for name, path in zip(("1.png", "2.png", "more/10.png"), paths, strict=True):
        Image.open(path).convert("RGB").resize((40, 30)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def images(folder) -> list[Image.Image]:
    return [Image.open(folder / name) for name in ("1.png", "2.png", "more/10.png")]


@pytest.fixture(scope="module")
def expected(classifier, images) -> list[dict]:
    answers = classifier.predict(images)
    assert [sorted(answer) for answer in answers] == [["tuned", "zero_shot"]] * 3
    assert answers[0] != answers[1]
    return answers


def same(answers: list[dict], expected: list[dict]) -> None:
    """Compare answers: batches of other sizes may round differently."""
    assert len(answers) == len(expected)
    for answer, other in zip(answers, expected, strict=True):
        for which in ("zero_shot", "tuned"):
            assert answer[which] == pytest.approx(other[which], abs=1e-5)


FORMS = {
    "a path": lambda root: root / "1.png",
    "a str": lambda root: str(root / "1.png"),
    "a PIL image": lambda root: Image.open(root / "1.png"),
    "bytes": lambda root: (root / "1.png").read_bytes(),
    "an open file": lambda root: io.BytesIO((root / "1.png").read_bytes()),
    "an array": lambda root: np.asarray(Image.open(root / "1.png")),
    "an array of floats": lambda root: np.asarray(Image.open(root / "1.png")) / 255,
    "a tensor": lambda root: to_tensor(Image.open(root / "1.png")),
    "a tensor of bytes": lambda root: (to_tensor(Image.open(root / "1.png")) * 255).byte(),
    "a tensor with gradients": lambda root: to_tensor(Image.open(root / "1.png")).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_image_in_every_form(form, classifier, folder, expected):
    same(classifier.predict(FORMS[form](folder)), expected[:1])


def test_several_in_every_form(classifier, folder, images, expected, tmp_path):
    pixels = np.stack([np.asarray(image) for image in images])
    tensors = torch.stack([to_tensor(image) for image in images])
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    with pytest.warns(UserWarning, match=r"notes.txt \(not an image"):
        for several in (folder, str(folder), archive, str(folder / "**" / "*")):
            same(classifier.predict(several), expected)
    for several in (pixels, pixels / 255, tensors, (image for image in images)):
        same(classifier.predict(several), expected)
    mixed = [images[0], tensors[1:], folder / "1.png", str(folder / "[12].png")]
    same(classifier.predict(mixed), [*expected, expected[0], *expected[:2]])
    same(classifier.predict([images[0]] * 9), [expected[0]] * 9)  # read by several threads


def test_grey_and_transparent_arrays(classifier):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    clear = np.concatenate([rgb, np.zeros((8, 8, 1), np.uint8)], axis=-1)
    white = np.full_like(rgb, 255)
    forms = [grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], rgb]
    answers = classifier.predict([*forms, clear, white])
    same(answers, [answers[0]] * 5 + [answers[6]] * 2)


def test_names_and_batches(classifier, folder, images, expected, monkeypatch):
    monkeypatch.setattr("clip_randlora.classifier.BATCH", 2)
    with pytest.warns(UserWarning):
        named = list(classifier.predict_each([folder, np.stack([np.asarray(i) for i in images])]))
    paths = [str(folder / name) for name in ("1.png", "2.png", "more/10.png")]
    assert [name for name, _ in named] == [*paths, "image 1", "image 2", "image 3"]
    same([answer for _, answer in named], expected * 2)


NORMALISED = "do not normalise them"
BAD = {
    "a missing file": ("gone.png", "gone.png: no such file"),
    "a glob": ("nothing/*.png", r"nothing/\*.png: no image matches"),
    "another scheme": ("file:///etc/passwd", "address that begins with http or https"),
    "normalised": (torch.linspace(-2, 2, 3 * 64).view(3, 8, 8), f"image 1: .*{NORMALISED}"),
    "0 to 255 as floats": (np.full((8, 8, 3), 255.0), r"floats from 255 to 255; .*from 0 to 1"),
    "not a number": (np.full((8, 8, 3), np.nan), "floats from nan to nan"),
    "integers": (np.zeros((8, 8, 3), np.int64), "values of type int64; give uint8"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); give .*\(H, W, 3\)"),
    "channels last": (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\); give .*\(3, H, W\)"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "an array of shape"),
    "five dimensions": (torch.zeros(1, 1, 3, 8, 8), "a tensor of shape"),
    "text": (io.StringIO("x"), "image 1: is open as text"),
    "no image": (b"hello", "image 1: not an image that can be read"),
    "None": (None, "image 1: NoneType is no image"),
    "a mapping": ({"image": "1.png"}, "dict is no image"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_is_named_and_ends_nothing(what, classifier, images, expected):
    source, says = BAD[what]
    with pytest.raises(cr.UserError, match=says):
        classifier.predict(source)
    first, bad, last = classifier.predict([images[0], source, images[1]], on_error="return")
    same([first, last], expected[:2])
    assert list(bad) == ["error"]
    with pytest.raises(cr.UserError, match="on_error maybe"):
        classifier.predict(images, on_error="maybe")


def test_a_folder_without_images_is_named(classifier, tmp_path):
    with pytest.raises(cr.UserError, match=f"{tmp_path}: has no images"):
        classifier.predict(tmp_path)
    assert classifier.predict([]) == []


# --- URLs -----------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """A server with an image, and with the faults that servers have."""

    image = b""

    def do_GET(self) -> None:
        if self.path == "/photo%20%C3%A9.png?size=1":
            self.send(200, self.image)
        elif self.path == "/away":
            self.send(302, b"", Location="/photo%20%C3%A9.png?size=1")
        elif self.path == "/local":
            self.send(302, b"", Location="file:///etc/passwd")
        elif self.path == "/ftp":
            self.send(302, b"", Location="ftp://127.0.0.1/cat.png")
        elif self.path == "/large":
            self.send(200, b"", length=2**40)
        elif self.path == "/endless":
            self.send(200, bytes(3000), length=None)
        elif self.path == "/slow":
            self.send(200, b"", length=10)
            for _ in range(20):
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self.send(404, b"")

    def send(self, code: int, content: bytes, length: int | None = -1, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(folder):
    Answers.image = (folder / "1.png").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.mark.parametrize("path", ["photo é.png?size=1", "photo%20%C3%A9.png?size=1", "away"])
def test_a_url(path, classifier, server, expected):
    same(classifier.predict(f"{server}/{path}"), expected[:1])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone.png", "/gone.png: the server answers 404 Not Found"),
        ("local", "Redirection to url 'file:///etc/passwd' is not allowed"),
        ("ftp", "leads to ftp://127.0.0.1/cat.png, which is neither http nor https"),
        ("large", "1048576 MiB, at most"),
        ("endless", "at most"),
        ("slow", "takes longer than"),
    ],
)
def test_what_a_server_does_wrong(path, says, classifier, server, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(inputs, "_SECONDS_TO_FETCH", 0.2)
    with pytest.raises(cr.UserError, match=says) as caught:
        classifier.predict(f"{server}/{path}")
    assert str(caught.value).startswith(server)


def test_no_server(classifier):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/cat.png"
        with pytest.raises(cr.UserError, match=r"cat.png: cannot be fetched \(.*refused"):
            classifier.predict(url)
    for url in ("http://", "http://a b/", "https://[::1"):
        with pytest.raises(cr.UserError, match="cannot be fetched"):
            classifier.predict(url)


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def standard_input(monkeypatch):
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


predict_json = partial(command, "predict", "--json")


def test_the_command_on_a_folder_a_glob_and_a_url(tiny_run, folder, server, expected):
    done = predict_json(tiny_run, folder, f"{folder}/*.png", f"{server}/away")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    names = [str(folder / name) for name in ("1.png", "2.png", "more/10.png", "1.png", "2.png")]
    assert [row.pop("image") for row in rows] == [*names, f"{server}/away"]
    same(rows, [*expected, *expected[:2], expected[0]])
    assert "Left out 1 file:" in done.stderr and "notes.txt" in done.stderr


@pytest.mark.parametrize("form", ["image", "paths", "ppm"])
def test_standard_input(form, tiny_run, folder, expected, standard_input):
    paths = [folder / "1.png", folder / "2.png"]
    ppm = io.BytesIO()
    Image.open(paths[0]).save(ppm, "PPM")
    content = {
        "image": paths[0].read_bytes(),
        "ppm": ppm.getvalue(),
        "paths": "".join(f"{path}\r\n" for path in paths).encode() + b"\n",
    }[form]
    standard_input(content)
    done = predict_json(tiny_run, "-")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    named = form == "paths"
    assert [row.pop("image") for row in rows] == ([*map(str, paths)] if named else ["image 1"])
    same(rows, expected[: len(rows)])


def test_nothing_on_standard_input_is_one_line(tiny_run, standard_input):
    standard_input(b"")
    done = predict_json(tiny_run, "-")
    assert done.returncode == 2 and done.stderr.startswith("error: IMAGE: no images given")


def test_a_bad_file_is_named_and_the_others_are_answered(tiny_run, folder, expected, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    paths = folder / "1.png", tmp_path / "broken.jpg", tmp_path / "gone.png", folder / "2.png"
    done = predict_json(tiny_run, *paths, "--csv", tmp_path / "answers.csv")
    assert done.returncode == 0
    assert [row["image"] for row in json.loads(done.stdout)] == [str(paths[0]), str(paths[3])]
    assert "broken.jpg: not an image" in done.stderr and "gone.png: no such file" in done.stderr
    assert "2 of 4 images could not be read." in done.stderr
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(paths[0]), str(paths[3])]
    with open(tiny_run / "predictions.csv", newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert list(rows[0]) == [name for name in header if name != "label"]
    for row, answer in zip(rows, expected, strict=False):
        for which in ("zero_shot", "tuned"):
            assert row[which] == next(iter(answer[which]))
            for name, p in answer[which].items():
                assert float(row[f"{which}: {name}"]) == pytest.approx(p, abs=1e-5)


def test_if_none_can_be_read_the_status_is_2(tiny_run, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    table = tmp_path / "answers.csv"
    done = predict_json(tiny_run, tmp_path / "broken.jpg", "--csv", table)
    assert done.returncode == 2 and not done.stdout and not table.exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/broken.jpg: not an image")
    done = command("predict", tiny_run, tmp_path / "broken.jpg", tmp_path / "gone.png")
    assert done.returncode == 2 and "gone.png: no such file" in done.stderr
    assert "error: none of 2 images can be read" in done.stderr.splitlines()[-1]


def test_a_file_that_is_there_is_not_overwritten(tiny_run, folder, tmp_path):
    (tmp_path / "labels.csv").write_text("mine")
    done = command("predict", tiny_run, folder, "--csv", tmp_path / "labels.csv")
    assert done.returncode == 2 and "labels.csv: exists; choose another file" in done.stderr
    assert (tmp_path / "labels.csv").read_text() == "mine"


def test_names_that_are_no_utf_8(tiny_run, folder, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copyfile(folder / "1.png", path)
    done = predict_json(tiny_run, os.fsdecode(path), "--csv", tmp_path / "answers.csv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["image"] == f"{tmp_path}/caf\\xe9.png"


def test_the_table_and_the_figure(tiny_run, folder, tmp_path, fine_figures):
    done = command("predict", tiny_run, folder / "1.png", folder, "--figure", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1.png") == 2 and "more/10.png" in done.stdout
    assert Image.open(tmp_path / "a.png").size[1] > 700


def test_progress_in_lines_where_there_is_no_terminal(tiny_run, folder, monkeypatch):
    for name in ("_SECONDS_UNSEEN", "_SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress_bars, name, 0.001)
    done = command("predict", tiny_run, folder)
    assert "classifying images: " in done.stderr and " of 3" in done.stderr
