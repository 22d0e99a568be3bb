"""Bad input wherever it can enter: one line that names the thing, status 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import forks
from helpers.commands import command
from helpers.images import encoded, picture, write_classes
from helpers.trainings import ADAPTER
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora.data import sources
from clip_randlora.errors import UserError


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def refused(*arguments, says: str, out: Path | None = None) -> str:
    """Run the command; return its one line, after checking that it is one and leaves nothing."""
    done = command(*arguments, *(("--out", out) if out else ()))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last, last
    assert out is None or not out.exists(), "a part of the output is left"
    return last


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "colors", ["blue", "red"], 6)


@pytest.fixture(scope="module")
def run(tiny_folder, colors, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "good"
    done = command(
        "train", colors, "--model", tiny_folder, "--steps", 2, "--rank", 4, "--out", out
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(out.glob(".*")) and not list(out.glob("*.tmp"))
    return out


# --- settings -------------------------------------------------------------------------------

SETTINGS = {
    "learning_rat: 1": "learning_rat: no such setting; did you mean learning_rate?",
    "method: {method: randlora, rnk: 4}": "randlora.rnk: no such setting; did you mean rank?",
    "zebra: 1": "zebra: no such setting; there are method, shots",
    "1: 2": "'1' is not a name",
    "shots: yes": "shots: give a number",
    "shots: many": "shots: give a number of images per class, a share such as 50%, or all",
    "shots: 0": "shots: give a number of images per class, a share such as 50%, or all",
    "seed: -1": "seed: Input should be greater than or equal to 0",
    "epochs: .inf": "epochs: Input should be a finite number",
    "learning_rate: .nan": "learning_rate: Input should be",
    "method: {method: randlora, alpha: .inf}": "alpha: Input should be a finite number",
    "crop_size: 100000000": "crop_size: Input should be less than or equal to 1024",
    "crop_size: 64": "takes images of 32 pixels only",
    "crop_scale: [1, 0]": "crop_scale: two numbers 0 < smallest",
    "prompts: {cow: [cow]}": "prompts: there is no class 'cow'",
    "method: null": "method: give a name (",
    "method: [randlora]": "method: give a name (",
    "method: {method: randlora, rank: 100000}": "rank: 100000, but no adapted weight has a rank",
    "method: {method: lora, rank: 100000}": "rank: 100000, but no adapted weight has a rank",
    "method: {method: nola, rank: 100000}": "rank: 100000, but no adapted weight has a rank",
    "method: {method: vera, rank: 1000000000}": "rank: 1000000000, whose random matrices would",
    "method: {method: nola, number_of_bases: 1000000000}": "number_of_bases: 1000000000, whose",
    "method: {method: linear_probe, C: .inf}": "C: Input should be a finite number",
    "method: {method: randlora, targets: [conv]}": "match no weight of this model",
    "templates: ['{0.__class__}']": "write {} once",
    "precision: fp8": "precision: Input should be 'auto'",
    "!!python/object/apply:os.system ['touch pwned']": "could not determine a constructor",
    "a: !!python/name:os.system": "could not determine a constructor",
    "shots: 2020-99-99": "not YAML (month must be in 1..12)",
    "[" * 3000: "nested too deeply",
    "shots: " + "9" * 5000: "not YAML (Exceeds the limit",
    "a: &a [*a]": "a: no such setting",
    "a: \x00": "not YAML (unacceptable character",
    "- 1": "expected settings as `name: value` lines",
    "\udcff": "not text in UTF-8",
}


@pytest.mark.parametrize("text", SETTINGS, ids=lambda text: ascii(text)[:40])
def test_settings(text, colors, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    arguments = ["train", colors, "--model", tiny_folder, "--config", "c.yaml", "--steps", 2]
    refused(*arguments, says=SETTINGS[text], out=tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


OPTIONS = [
    (["--shots", "0"], "--shots 0: give a number of images per class"),
    (["--seed", "-1"], "seed: Input should be greater than or equal to 0"),
    (["--rank", "1000000"], "rank: 1000000, but no adapted weight"),
    (["--learning-rate", "fast"], "--learning-rate"),
    (["--learning-rate", "nan"], "learning_rate: Input should be"),
    (["--blocks", "-1"], "blocks: Input should be greater than or equal to 1"),
    (["--towers", "vision,,text"], "towers.1: Input should be 'vision' or 'text'"),
    (["--config", "/"], "--config /: Is a directory"),
    (["--preset", "slow"], "preset slow: choose fast"),
    (["--model", "/etc"], "could not load the weights of local-dir:/etc"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=lambda value: str(value)[:30])
def test_options(options, says, colors, tiny_folder, tmp_path):
    chosen = ["--model", tiny_folder, "--steps", 30, *options]
    refused("train", colors, *chosen, says=says, out=tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


def test_more_shots_than_images_is_a_note(tiny_folder, colors, tmp_path):
    done = command(
        "train", colors, "--model", tiny_folder, "--steps", 2, "--rank", 4, "--shots", 10**9,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0
    assert "2 classes have fewer than 1000000000 training images, all are used" in done.stderr


def test_a_diverged_training_keeps_its_last_good_state(tiny, colors, tmp_path):
    def upset(step):
        if step.step == 5:
            with torch.no_grad():
                next(p for p in tiny.net.parameters() if p.requires_grad).fill_(float("nan"))

    config = cr.TrainConfig(steps=30, method={"method": "randlora", "rank": 4})
    with pytest.raises(UserError, match=r"at step 6: .*the state of step 5 is kept; set a lower"):
        cr.fit(tiny, cr.load_data(colors), config, tmp_path / "out", on_step=upset)
    kept = load_file(tmp_path / "out" / ADAPTER)
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert any(tensor.abs().max() > 0 for tensor in kept.values())
    assert not (tmp_path / "out" / "metrics.json").exists()
    (answer,) = cr.Classifier.load(tmp_path / "out", model=tiny).predict([picture(0)])
    assert answer["tuned"] != answer["zero_shot"]


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    {
        "": "DATA: an empty name",
        "x" * 5000: "no path (File name too long)",
        "~nosuchuser/x": "no path (Could not determine home directory.)",
        "pipe.zip": "pipe.zip: neither a folder nor a file",
        "empty.zip": "empty.zip: not a zip archive",
        "empty": "empty: no images found; put the images into one folder per class",
        "a.yaml": "a.yaml: foldr: no such setting; did you mean folder?",
        "tag.yaml": "tag.yaml: not YAML (could not determine a constructor",
        "nowhere.yaml": "nowhere.yaml: No such file or directory",
        "type.yaml": "type.yaml: classes: give a list of names",
    }.items(),
    ids=lambda value: value[:12],
)
def test_sources(source, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.zip")
    Path("empty.zip").touch()
    Path("empty").mkdir()
    Path("a.yaml").write_text("name: a\nfoldr: x\n")
    Path("tag.yaml").write_text("!!python/object/apply:os.system ['touch pwned']")
    Path("type.yaml").write_text("name: a\nfolder: x\nclasses: 3\n")
    refused("train", source, says=says, out=tmp_path / "out")
    assert not Path("pwned").exists()


def test_names_train_and_print(tiny_folder, tmp_path):
    names = [
        "😀 party", "שלום", "a,b", "q\"u'ote", "two\nlines", "con", "[red]", "$\\frac$", "Cat",
        "cat", "<b>x", "{0}", "x" * 250, "=1+1", "..a",
    ]  # fmt: skip
    root = write_classes(tmp_path / "[bold]", names, 3)
    options = ["--model", tiny_folder, "--shots", 1, "--steps", 2, "--rank", 4]
    done = command("train", root, *options, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "the classes 'Cat' and 'cat' have the same prompt" in done.stderr
    (tmp_path / "words.yaml").write_text("prompts: {cat: [kitten]}\n")
    options += ["--config", tmp_path / "words.yaml"]
    done = command("train", root, *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "differ in capitals only: Cat and cat" in done.stderr
    assert "..a (hidden)" in done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["per_class"]) == {*names} - {"..a", "two\nlines"} | {"two\\nlines"}
    assert "[red]" in done.stdout and "[bold]" in done.stderr
    done = command("predict", tmp_path / "run", root / "con" / "0.png")
    assert done.returncode == 0 and "[bold]" in done.stdout


def test_numbers_in_names_that_are_none_to_python(tmp_path):
    found = ["²", "9" * 5000, "10", "9", "b"]
    members = {f"{name}/{n}.png": encoded(picture(n)) for name in found for n in (0, 1)}
    classes = load(zip_of(tmp_path / "a.zip", members)).classes
    assert classes == ("9", "10", "9" * 5000, "b", "²")


def test_a_name_of_300_characters_in_an_archive(tmp_path):
    members = {f"{name}/{n}.png": encoded(picture(n)) for name in ("y" * 300, "b") for n in (0, 1)}
    assert load(zip_of(tmp_path / "a.zip", members)).classes == ("b", "y" * 300)


def load(source) -> cr.Data:
    return cr.load_data(source)


def test_images_in_train_and_test_are_counted_and_kept_out_of_training(tmp_path):
    write_classes(tmp_path / "train", ["cat", "dog"], 3)  # 0 to 5
    write_classes(tmp_path / "test", ["cat"], 2, start=2)  # 2 is cat's, 3 is dog's
    data = load(tmp_path)
    assert len(data.train) == 4 and len(data.test) == 2
    (note,) = [note for note in data.notes if "kept out" in note]
    assert note.startswith("2 of 6 training images are test images too (train/cat/2.png = test/cat")
    with pytest.raises(UserError, match='class "cat": all its training images are test images'):
        cr.load_data(tmp_path / "train", test=tmp_path / "train")


def test_links_and_depth(tmp_path):
    root = write_classes(tmp_path / "set", ["a", "b"])
    outside = write_classes(tmp_path / "outside", ["c"], start=50)
    (root / "c").symlink_to(outside / "c")  # the person's own link: followed
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "etc.png").symlink_to("/etc/passwd")
    deep = root / "b"
    here = os.getcwd()
    try:
        os.chdir(deep)
        for _ in range(1500):  # beyond Python's recursion
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)
        data = load(root)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", deep / "d"], check=True)
    reasons = {entry.name: entry.reason for entry in data.skipped}
    assert reasons["a/loop"] == "a link to a folder it lies in"
    assert reasons["a/self"] == "a link to nothing"
    assert "not an image that can be read" in reasons["a/etc.png"]
    assert "more than 64 folders deep" in reasons.values()
    assert data.classes == ("a", "b", "c")


def test_3000_classes(tmp_path):
    content = [encoded(picture(n, 2), "BMP") for n in range(2)]
    members = {f"c{i}/{n}.bmp": content[n] + str(i).encode() for i in range(3000) for n in (0, 1)}
    data = load(zip_of(tmp_path / "many.zip", members))
    assert len(data.classes) == 3000 == len(data.train) == len(data.test)


# --- archives -------------------------------------------------------------------------------


def good_members() -> dict[str, bytes]:
    return {f"{name}/{n}.png": encoded(picture(n)) for name in ("a", "b") for n in range(3)}


def test_members_that_are_left_out(tmp_path):
    path = zip_of(tmp_path / "a.zip", good_members())
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.writestr("../../up.png", b"x")
        zipped.writestr("/absolute.png", b"x")
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
        zipped.writestr("d/" * 30_000 + "deep.png", b"x")
        zipped.writestr("a/inner.zip", path.read_bytes()[:100])
    before = sorted(tmp_path.rglob("*"))
    data = load(path)
    reasons = {entry.name: entry.reason for entry in data.skipped}
    assert reasons == {
        "../../up.png": "unsafe path",
        "/absolute.png": "unsafe path",
        "a/link.png": "a link, not followed in archives",
        "d/d/d/...": "more than 64 folders deep",
        "a/inner.zip": "not an image (.zip)",
    }
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


def test_a_bomb_by_ratio(tmp_path):
    path = zip_of(tmp_path / "bomb.zip", good_members() | {"a/9.bmp": bytes(2**20)})
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02", content.rfind(b"a/9.bmp") - 46)
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)  # what the directory says it unpacks to
    path.write_bytes(content)
    refused("train", path, says="more than 100 times its size", out=tmp_path / "out")


def test_a_bomb_by_count_is_counted_before_it_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILES", 50)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    path = tmp_path / "many.zip"
    path.write_bytes(b"PK\x01\x02" * 51)
    refused("train", path, says="51 members, at most 50; split", out=tmp_path / "out")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_archive(keep, tmp_path):
    path = zip_of(tmp_path / "cut.zip", good_members())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    refused("train", path, says="cut.zip: not a zip archive that can be", out=tmp_path / "out")


def test_member_names_in_another_encoding(tmp_path):
    path = zip_of(tmp_path / "a.zip", good_members() | {"XXXX/1.png": encoded(picture(9))})
    path.write_bytes(path.read_bytes().replace(b"XXXX", "猫犬".encode("shift-jis")))
    classes = load(path).classes
    assert len(classes) == 3 and all(name.isprintable() for name in classes)


# --- images ---------------------------------------------------------------------------------


def png_of_30000() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(3751 * 30_000), 1))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


IMAGES = {
    "zero.png": (b"", "not an image that can be read"),
    "cut.jpg": (encoded(picture(1), "JPEG")[:300], "broken or truncated image"),
    "text.png": (b"hello", "not an image that can be read"),
    "huge.png": (png_of_30000(), "pixels, more than 64 million; make it smaller"),
    "float.tif": (encoded(Image.new("F", (9, 9)), "TIFF"), "pixel type F is not supported"),
    "as.jpg": (encoded(picture(2)), None),
    "animated.gif": (
        encoded(picture(3), "GIF", save_all=True, append_images=[picture(4)]),
        None,
    ),
    "cmyk.jpg": (encoded(picture(5).convert("CMYK"), "JPEG"), None),
    "deep.png": (encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16))), None),
    "palette.png": (encoded(picture(6).convert("P"), transparency=0), None),
    "profile.png": (encoded(picture(7), icc_profile=b"no profile at all"), None),
    "profile.jpg": (encoded(picture(8), "JPEG", icc_profile=bytes(500)), None),
    "turned.jpg": (encoded(picture(9), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), None),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, run, tmp_path):
    content, says = IMAGES[name]
    path = tmp_path / name
    path.write_bytes(content)
    if says:
        assert name in refused("predict", run, path, says=says)
    else:
        assert command("predict", run, path).returncode == 0


def test_what_is_no_file_is_not_read_for_ever(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused("predict", run, tmp_path / "pipe.png", says="pipe.png: is not a regular file")
    refused("predict", run, "/dev/zero", says="/dev/zero: is not a regular file")
    refused("predict", run, tmp_path, says=f"{tmp_path}: has no images")


# --- adapters and runs ----------------------------------------------------------------------


def metadata(**changes: str):
    def change(folder: Path) -> None:
        with safe_open(folder / ADAPTER, "pt") as stored:
            before = stored.metadata()
        save_file(load_file(folder / ADAPTER), folder / ADAPTER, metadata=before | changes)

    return change


def tensors(change):
    def rewrite(folder: Path) -> None:
        with safe_open(folder / ADAPTER, "pt") as stored:
            before = stored.metadata()
        new = {key: change(value) for key, value in load_file(folder / ADAPTER).items()}
        save_file(new, folder / ADAPTER, metadata=before)

    return rewrite


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def cut(share: float):
    def shorten(folder: Path) -> None:
        whole = (folder / ADAPTER).read_bytes()
        (folder / ADAPTER).write_bytes(whole[: int(len(whole) * share)])

    return shorten


def cut_before(setting: str):
    def shorten(folder: Path) -> None:
        path = folder / "config.yaml"
        path.write_text(path.read_text().partition(f"  {setting}:")[0])

    return shorten


BAD_RUNS = {
    "truncated": (cut(0.9), "adapter.safetensors: not a readable adapter file"),
    "empty": (cut(0), "adapter.safetensors: not a readable adapter file"),
    "pickle": (lambda f: torch.save({"a": 1}, f / ADAPTER), "not a readable adapter file"),
    "newer": (metadata(version="99"), "adapter format 99, this version of clip-randlora reads"),
    "setting": (metadata(config='{"method": "randlora", "new": 1}'), "new: no such setting"),
    "huge rank": (
        metadata(config='{"method": "randlora", "rank": 100000}'),
        "rank: 100000, but",
    ),
    "no mapping": (metadata(config="[1]"), "not a readable adapter file"),
    "deep": (metadata(config="[" * 100_000), "not a readable adapter file"),
    "other base": (metadata(base='{"name": "x", "fingerprint": "0"}'), "was trained on x (0)"),
    "base": (metadata(base='{"name": "x", "fingerprint": 5}'), "not a readable adapter file"),
    "NaN": (tensors(lambda t: t * float("nan")), "is not all finite numbers"),
    "integers": (tensors(lambda t: t.int()), "is not all finite numbers"),
    "shapes": (tensors(lambda t: t[:1].clone()), "has another shape"),
    "no settings": (lambda f: (f / "config.yaml").unlink(), "not a run folder"),
    "empty settings": (text("config.yaml", ""), "config.yaml: damaged, model: Field required"),
    "object": (text("config.yaml", "!!python/name:os.system"), "config.yaml: not YAML"),
    "classes": (
        text("config.yaml", "model: lite0\npretrained: null\nclasses: 3\ntrain: {}"),
        "config.yaml: damaged, classes: Input should be a valid list",
    ),
    "train": (
        text("config.yaml", "model: lite0\npretrained: default\nclasses: [a]\ntrain: {lr: 1}"),
        "lr: no such setting",
    ),
    "data": (
        text("config.yaml", "model: lite0\npretrained: null\nclasses: [a]\ntrain: {}\ndata: 5"),
        "config.yaml: damaged, data: Input should be a valid dictionary",
    ),
    "cut settings": (cut_before("templates"), "config.yaml: damaged, train has no templates"),
    "unfinished": (lambda f: (f / ADAPTER).unlink(), "the run is not finished"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
@pytest.mark.parametrize("verb", ["predict", "export"])
def test_runs(case, verb, run, colors, tmp_path):
    change, says = BAD_RUNS[case]
    bad = shutil.copytree(run, tmp_path / "bad")
    change(bad)
    if verb == "predict":
        refused("predict", bad, colors / "red" / "0.png", says=says)
    else:
        refused("export", bad, "--format", "adapter", says=says, out=tmp_path / "out")


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def stopped(step) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "adapter": {}},
        lambda state: {**state, "optimizer": {}},
        lambda state: {key: state[key] for key in ("format", "drawn")},
        lambda state: [1],
        lambda state: Evil(),
    ],
)
def test_a_damaged_checkpoint(change, tiny, colors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, config = cr.load_data(colors), cr.TrainConfig(steps=3, method={"method": "randlora"})
    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, data, config, tmp_path / "run", on_step=stopped)
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError, match=r"checkpoint.pt: damaged; start again"):
        cr.fit(tiny, data, config, tmp_path / "run", resume=True)
    assert not (tmp_path / "pwned").exists()


# --- output ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "export"])
def test_outputs_that_cannot_be(verb, run, colors, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    start = ["train", colors, "--model", tiny_folder, "--steps", 2, "--rank", 4]
    start = start if verb == "train" else ["export", run, "--format", "adapter"]
    for out in (tmp_path / "file" / "below", tmp_path / ("z" * 300), Path("/proc/nothing")):
        done = command(*start, "--out", out)
        assert done.returncode == 2 and "error: --out" in done.stderr, done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_in_a_process_of_its_own():
    done = forks.run_command("train", "nowhere", "--out", "never")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: nowhere: no such folder")
    assert not Path("never").exists()
