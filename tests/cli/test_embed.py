"""The command embed: one file of features, each row of which is an image or a text."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from helpers.commands import command
from helpers.exports import files_in
from pyarrow import parquet

import clip_randlora as cr


@pytest.fixture(scope="module")
def photos(drawings) -> Path:
    return drawings / "test"


@pytest.fixture(scope="module")
def classifier(tiny_run) -> cr.Classifier:
    return cr.Classifier.load(tiny_run)


def columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a parquet file; features as float32 (N, E)."""
    table = parquet.read_table(path)
    for name in ("zero_shot", "tuned"):
        assert table.schema.field(name).type == pyarrow.list_(pyarrow.float32(), 32)
    first = table.column_names[0]
    features = {name: np.stack(table[name].to_numpy()) for name in ("zero_shot", "tuned")}
    assert table.column_names == [first, *features]
    return {first: np.array(table[first].to_pylist()), **features}


def close(got: np.ndarray, expected: torch.Tensor) -> bool:
    return got.dtype == np.float32 and np.allclose(got, expected.numpy(), atol=1e-6)


def test_images_before_and_after_in_a_parquet_file(tiny_run, photos, classifier, tmp_path):
    done = command("embed", tiny_run, photos, "--out", tmp_path / "index.parquet")
    assert done.returncode == 0, done.stderr
    assert "12 images, 32 numbers each: saved to" in done.stderr
    rows = columns(tmp_path / "index.parquet")
    assert list(rows["image"]) == files_in(photos)
    assert close(rows["zero_shot"], classifier.encode_images(files_in(photos), strength=0))
    assert close(rows["tuned"], classifier.encode_images(files_in(photos)))
    assert list(tmp_path.iterdir()) == [tmp_path / "index.parquet"]


def test_npy_has_the_tuned_ones_and_names_in_a_text_file(tiny_run, photos, classifier, tmp_path):
    for name, strength in (("tuned", 1), ("half", 0.5), ("before", 0)):
        out = tmp_path / f"{name}.npy"
        done = command("embed", tiny_run, photos, "--out", out, "--strength", strength)
        assert done.returncode == 0, done.stderr
        rows = np.load(out, allow_pickle=False)
        assert close(rows, classifier.encode_images(files_in(photos), strength))
        assert np.load(out, mmap_mode="r").shape == (12, 32)
        assert out.with_suffix(".txt").read_text().splitlines() == files_in(photos)
    assert len(list(tmp_path.iterdir())) == 6


def test_more_than_a_batch_and_images_that_cannot_be_read(tiny_run, photos, tmp_path, monkeypatch):
    """700 paths on standard input: three batches, of which each has an image without a row."""
    good = files_in(photos)[:2]
    paths = [good[number % 2] for number in range(700)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    for place in (3, 300, 699):
        paths[place] = str(tmp_path / "broken.png")
    for out in ("index.parquet", "index.npy"):
        stream = io.BytesIO("\n".join(paths).encode())
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
        done = command("embed", tiny_run, "-", "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("broken.png: not an image") == 3, done.stderr
        assert "3 of 700 images could not be read." in done.stderr
    rows = columns(tmp_path / "index.parquet")
    kept = [path for path in paths if path in good]
    assert list(rows["image"]) == kept == (tmp_path / "index.txt").read_text().splitlines()
    assert np.array_equal(np.load(tmp_path / "index.npy"), rows["tuned"])
    of_first = rows["tuned"][rows["image"] == good[0]]
    assert (
        np.abs(of_first - of_first[0]).max() < 1e-6 < np.abs(rows["tuned"][1] - of_first[0]).max()
    )


def test_texts_from_options_and_from_a_file(tiny_run, classifier, tmp_path):
    (tmp_path / "queries.txt").write_text("\ufeffa red dragon\n\n  zebra \n", encoding="utf-8")
    done = command(
        "embed", tiny_run, tmp_path / "queries.txt", "--text", "a house, blue", "--out",
        tmp_path / "queries.parquet",
    )  # fmt: skip
    assert done.returncode == 0 and "3 texts, 32 numbers each" in done.stderr, done.stderr
    rows = columns(tmp_path / "queries.parquet")
    texts = ["a red dragon", "zebra", "a house, blue"]
    assert list(rows["text"]) == texts
    assert close(rows["zero_shot"], classifier.encode_texts(texts, 0))
    assert close(rows["tuned"], classifier.encode_texts(texts))

    done = command(
        "embed", tiny_run, "--text", "zebra", "--template", "a {}.", "--template", "one {}.",
        "--out", tmp_path / "zebra.npy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mean = classifier.encode_texts("zebra", templates=["a {}.", "one {}."])
    assert close(np.load(tmp_path / "zebra.npy"), mean)
    assert (tmp_path / "zebra.txt").read_text() == "zebra\n"


@pytest.mark.parametrize("kind", [".parquet", ".npy"])
def test_progress_is_told_and_an_error_on_the_way_leaves_no_file(classifier, tmp_path, kind):
    told = []

    def on_progress(*progress) -> None:
        told.append(progress)

    texts = [f"house {number}" for number in range(300)]
    with pytest.raises(cr.UserError, match="text 301: is empty"):
        cr.embed_texts(classifier, [*texts, ""], tmp_path / f"queries{kind}")
    assert not list(tmp_path.iterdir())
    done = cr.embed_texts(classifier, texts, tmp_path / f"queries{kind}", on_progress=on_progress)
    assert (done.rows, done.width, done.errors, done.notes) == (300, 32, [], [])
    assert told == [("encoding texts", done, 300) for done in (0, 256, 300)]


def test_texts_that_are_cut_are_named(tiny_run, tmp_path):
    done = command("embed", tiny_run, "--text", "zebra " * 100, "--out", tmp_path / "q.npy")
    assert done.returncode == 0 and "Texts longer than the 77 tokens" in done.stderr


def test_a_run_that_tuned_one_encoder_says_so(tiny_folder, drawings, tmp_path):
    (tmp_path / "vision.yaml").write_text("method: {method: randlora, towers: [vision]}")
    done = command(
        "train", drawings, "--model", tiny_folder, "--config", tmp_path / "vision.yaml",
        "--steps", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("embed", tmp_path / "run", "--text", "zebra", "--out", tmp_path / "q.npy")
    assert "did not tune the text encoder" in done.stderr
    done = command("embed", tmp_path / "run", drawings / "test", "--out", tmp_path / "i.npy")
    assert done.returncode == 0 and "did not tune" not in done.stderr


def test_a_head_is_refused_but_for_its_zero_shot_features(tiny_folder, drawings, tmp_path):
    done = command(
        "train", drawings, "--model", tiny_folder, "--method", "gda", "--out", tmp_path / "run"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ask = ["embed", tmp_path / "run", drawings / "test", "--out", tmp_path / "index.parquet"]
    done = command(*ask)
    assert done.returncode == 2 and "gda: its head" in done.stderr and "strength 0" in done.stderr
    assert not (tmp_path / "index.parquet").exists()
    done = command(*ask, "--strength", 0)
    assert done.returncode == 0, done.stderr
    rows = columns(tmp_path / "index.parquet")
    assert np.array_equal(rows["zero_shot"], rows["tuned"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["PHOTOS", "--out", "index.csv"], "ends with .parquet or .npy"),
        (["PHOTOS", "--out", "exists.parquet"], "exists.parquet: exists; choose another"),
        (["PHOTOS", "--out", "exists.npy"], "exists.txt: exists; choose another"),
        (["PHOTOS", "--out", "no/folder/index.npy"], "cannot be written"),
        (["PHOTOS", "--text", "zebra", "--out", "i.npy"], "images and texts"),
        (["PHOTOS", "--template", "a {}", "--out", "i.npy"], "--template: only for texts"),
        (["--text", "zebra", "--template", "a", "--out", "i.npy"], "write {} once"),
        (["--out", "i.npy"], "nothing to encode"),
        (["gone.txt", "--out", "i.npy"], "TEXTS gone.txt: No such file"),
        (["empty.txt", "--out", "i.npy"], "empty.txt: has no text"),
        (["gone.png", "--out", "i.npy"], "gone.png"),
        (["PHOTOS", "--strength", 2, "--out", "i.npy"], "between 0 and 1"),
    ],
)
def test_one_line_for_a_mistake_and_no_file(
    tiny_run, photos, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    for name in ("exists.parquet", "exists.txt", "empty.txt"):
        Path(name).touch()
    arguments = [photos if argument == "PHOTOS" else argument for argument in arguments]
    done = command("embed", tiny_run, *arguments)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "empty.txt", "exists.parquet", "exists.txt",
    ]  # fmt: skip
