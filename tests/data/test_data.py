"""The data package through its public interface, on files that the tests write."""

from __future__ import annotations

import io
import re
import shutil
import struct
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_randlora.data import (
    DATASETS,
    Item,
    Skipped,
    Split,
    UnreadableImage,
    check_image,
    decode_batches,
    decode_image,
    decode_shots,
    draw_shots,
    images,
    load_data,
    loading,
    sources,
    summarize_skipped,
)
from clip_randlora.data.sources import MemoryImage
from clip_randlora.errors import UserError


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(number: int, size: int = 24) -> Image.Image:
    """A different image for every number."""
    colour = (number * 37 % 256, number // 7 % 256, number * 91 % 256)
    return Image.new("RGB", (size, size), colour)


def write_classes(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"img{number}.png").write_bytes(encode(picture(start)))
            start += 1
    return root


def zip_of(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1)


def names(split) -> list[str]:
    return [item.name for item in split]


def said(data, words: str) -> str:
    """The one note that contains ``words``."""
    (note,) = [note for note in data.notes if words in note]
    return note


# --- decoding -------------------------------------------------------------------------------


def palette(transparent: int | None) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encode(image, **({} if transparent is None else {"transparency": transparent}))


def one_row(mode: str, *pixels) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def deep(*values: int) -> Image.Image:
    """One row of 16-bit grey."""
    return Image.fromarray(np.array([values], np.uint16))


def packed_12_bit(*values: int) -> bytes:
    """A TIFF of one row with two pixels in every three bytes."""
    row = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2]))  # noqa: B905
    entries = {
        256: len(values),
        257: 1,
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 1,
        279: len(row),
    }
    start = 8 + len(row) + len(row) % 2
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = b"II*\0" + struct.pack("<I", start) + row.ljust(start - 8, b"\0")
    return head + struct.pack("<H", len(entries)) + directory + bytes(4)


def deep_colour(*pixel: int) -> bytes:
    """A PNG of one 16-bit RGB pixel, which PIL reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">3H", *pixel))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


GREY_16 = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))


@pytest.mark.parametrize(
    ("content", "expected"),
    {
        "grey": (encode(one_row("L", 0, 77)), [(0, 0, 0), (77, 77, 77)]),
        "1 bit": (encode(one_row("1", 0, 1)), [(0, 0, 0), (255, 255, 255)]),
        "grey alpha": (encode(one_row("LA", (0, 0), (40, 255))), [(255,) * 3, (40,) * 3]),
        "rgba": (
            encode(one_row("RGBA", (9, 9, 9, 0), (0, 0, 100, 51), (1, 2, 3, 255))),
            [(255, 255, 255), (204, 204, 224), (1, 2, 3)],
        ),
        "palette": (palette(None), [(10, 20, 30), (200, 100, 50)]),
        "palette, transparent": (palette(0), [(255, 255, 255), (200, 100, 50)]),
        "16 bit": (encode(GREY_16), [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
        "12 bit in 16": (
            encode(deep(0, 256, 2048, 4095), "TIFF"),
            [(0,) * 3, (16,) * 3, (128,) * 3, (255,) * 3],
        ),
        "10 bit in 16": (encode(deep(0, 512, 1023)), [(0,) * 3, (128,) * 3, (255,) * 3]),
        "14 bit in 16": (encode(deep(4096, 16383)), [(64,) * 3, (255,) * 3]),
        "8 bit in 16": (encode(deep(0, 100, 255), "TIFF"), [(0,) * 3, (100,) * 3, (255,) * 3]),
        "12 bit packed": (
            packed_12_bit(0, 2048, 4095, 1024),
            [(v,) * 3 for v in (0, 128, 255, 64)],
        ),
        "colour, 16 bit": (deep_colour(65535, 32768, 257), [(255, 128, 1)]),
        "colour, 12 bit in 16": (deep_colour(4095, 2048, 0), [(255, 136, 0)]),
        "16 bit tiff": (encode(GREY_16, "TIFF"), [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
        "colour key": (
            encode(one_row("RGB", (1, 2, 3), (4, 5, 6)), transparency=(1, 2, 3)),
            [(255, 255, 255), (4, 5, 6)],
        ),
        "cmyk tiff": (
            encode(one_row("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"),
            [(255, 0, 0), (0, 0, 0)],
        ),
        "bmp": (encode(one_row("RGB", (1, 2, 3)), "BMP"), [(1, 2, 3)]),
        "webp": (encode(one_row("RGB", (1, 2, 3)), "WEBP", lossless=True), [(1, 2, 3)]),
        "gif": (encode(one_row("L", 5, 6), "GIF"), [(5, 5, 5), (6, 6, 6)]),
    }.values(),
)
def test_every_pixel_type_becomes_rgb(content, expected):
    image = decode_image(content)
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == expected


def test_cmyk_jpeg_has_the_right_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = decode_image(encode(red, "JPEG", quality=95)).getpixel((8, 8))
    assert np.abs(np.array(pixel) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(fmt, orientation):
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 32, 16))
    upright.paste("blue", (32, 16, 64, 32))
    t = Image.Transpose
    stored = {  # how a camera stores the upright picture under each orientation
        1: [], 2: [t.FLIP_LEFT_RIGHT], 3: [t.ROTATE_180], 4: [t.FLIP_TOP_BOTTOM],
        5: [t.FLIP_LEFT_RIGHT, t.ROTATE_90], 6: [t.ROTATE_90],
        7: [t.FLIP_LEFT_RIGHT, t.ROTATE_270], 8: [t.ROTATE_270],
    }  # fmt: skip
    image = upright
    for turn in stored[orientation]:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(image, fmt, exif=exif))
    assert decoded.size == upright.size
    difference = np.asarray(decoded, int)[8::8, 8::8] - np.asarray(upright, int)[8::8, 8::8]
    assert np.abs(difference).mean() < 12
    assert decode_image(decoded).tobytes() == decoded.tobytes()  # not turned a second time


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_sources_of_every_kind(tmp_path):
    path = tmp_path / "a.png"
    picture(3).save(path)
    expected = picture(3).tobytes()
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file, Image.open(path)):
            assert decode_image(source).tobytes() == expected
        assert not file.closed


def test_broken_images_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    broken = {
        "truncated.jpg": whole[: len(whole) // 2],
        "text.jpg": b"hello, this is no image",
        "empty.png": b"",
        "float.tiff": encode(Image.new("F", (2, 2)), "TIFF"),
        "wide.tiff": encode(Image.fromarray(np.array([[70000]], np.int32)), "TIFF"),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            decode_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableImage, match=r"missing\.png: no such file"):
        decode_image(tmp_path / "missing.png")
    with pytest.raises(UnreadableImage, match="is a folder"):
        decode_image(tmp_path)
    check_image(tmp_path / "truncated.jpg")  # its header is whole


def test_formats_off_the_list_are_refused():
    with pytest.raises(UnreadableImage, match="upload: not an image"):
        decode_image(encode(picture(1), "ICO"), name="upload")


def test_size_is_bounded_from_the_header(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert decode_image(encode(picture(1, 10))).size == (10, 10)
    for source in (encode(picture(1, 11)), picture(1, 11)):
        for function in (decode_image, check_image):
            with pytest.raises(UnreadableImage, match="11 x 11 pixels"):
                function(source)


def test_a_huge_header_is_refused_quietly():
    content = bytearray(encode(Image.new("1", (8, 8)), "BMP"))
    content[18:26] = np.array([13_000, 13_000], "<i4").tobytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImage, match="13000 x 13000"):
            decode_image(bytes(content))
    assert not caught


# --- folders and archives -------------------------------------------------------------------


def test_class_folders_with_a_held_out_share(tmp_path):
    root = write_classes(tmp_path / "set", {"dog": 10, "cat10": 10, "Cat2": 20})
    data = load_data(root)
    assert data.name == "set"
    assert data.classes == ("Cat2", "cat10", "dog")
    assert data.train.counts() == {0: 14, 1: 7, 2: 7}
    assert data.test.counts() == {0: 6, 1: 3, 2: 3}
    assert said(data, "held out") == (
        "No test split: held out 30 % of each class (12 of 40 images)."
    )
    assert not set(names(data.train)) & set(names(data.test))
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    item = data.train.items[0]
    assert item.name.startswith("Cat2/img")
    assert item.open().tobytes() == Image.open(root / item.name).tobytes()


def test_held_out_share_is_the_same_everywhere(tmp_path):
    write_classes(tmp_path / "set", {"a": 10, "b": 3})
    data = load_data(tmp_path / "set")
    assert names(data.test) == HELD_OUT
    archive = zip_of(tmp_path / "set", tmp_path / "other.zip", "wrapped/")
    assert names(load_data(archive).test) == [f"wrapped/{name}" for name in HELD_OUT]


def test_every_class_keeps_train_and_test_images(tmp_path):
    root = write_classes(tmp_path, {"one": 1, "two": 2, "three": 3})
    data = load_data(root, held_out=0.9)
    assert data.train.counts() == {0: 1, 1: 1, 2: 1}
    assert data.test.counts() == {1: 2, 2: 1}
    assert said(data, "No test images") == "No test images for one."


def test_validation_images_are_held_back(tmp_path):
    root = write_classes(tmp_path / "set", {"a": 6, "b": 6, "c": 1})
    shutil.copy(root / "a" / "img0.png", root / "a" / "img9.png")
    shutil.copy(root / "b" / "img0.png", root / "b" / "img9.png")
    test = write_classes(tmp_path / "test", {"a": 1}, start=90)
    everything, data = load_data(root, test=test), load_data(root, test=test, validation=5)
    assert everything.validation is None
    assert len(data.train) == 10 and len(data.validation) == 5 and len(data.test) == 1
    assert data.validation.classes == data.classes
    assert sorted(names(data.train) + names(data.validation)) == sorted(names(everything.train))
    assert "c/img0.png" in names(data.train)  # its class has no other
    assert {"a/img0.png", "a/img9.png"} <= set(names(data.train))  # copies of each other
    assert said(data, "Held back") == "Held back for validation: 5 of 15 training images."
    assert names(load_data(root, test=test, validation=5).validation) == names(data.validation)
    most = load_data(root, test=test, validation=10)
    assert most.train.counts() == {0: 2, 1: 2, 2: 1}
    assert set(names(data.validation)) < set(names(most.validation))
    with pytest.raises(UserError, match=r"validation: 11, but .* has 15 training .* give 0 to 10"):
        load_data(root, test=test, validation=11)

    described = tmp_path / "mine.yaml"
    described.write_text(f"name: mine\nfolder: {root}\nvalidation: 3\n")
    assert len(load_data(described, test=test).validation) == 3
    assert load_data(described, test=test, validation=0).validation is None


def test_train_and_test_folders(tmp_path):
    write_classes(tmp_path / "Train", {"cat": 3, "dog": 4})
    write_classes(tmp_path / "test", {"cat": 2, "dog": 1}, start=50)
    write_classes(tmp_path / "val", {"cat": 2}, start=60)
    data = load_data(tmp_path)
    assert (len(data.train), len(data.test)) == (7, 3)
    assert data.notes == ("val/ is left out (2 images).",)
    assert names(data.test) == ["test/cat/img0.png", "test/cat/img1.png", "test/dog/img0.png"]


def test_validation_folder_stands_in_for_a_test_folder(tmp_path):
    write_classes(tmp_path / "train", {"cat": 3, "dog": 4})
    write_classes(tmp_path / "valid", {"cat": 2, "dog": 1}, start=50)
    data = load_data(tmp_path)
    assert len(data.test) == 3
    assert "valid/ is the test split" in data.notes[0]


def test_unlabelled_test_folder_is_left_out_and_said_so(tmp_path):
    write_classes(tmp_path / "train", {"cat": 4, "dog": 4})
    write_classes(tmp_path, {"test": 3}, start=50)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert said(data, "left out (3") == "test/ is left out (3 images, no class folders)."
    assert said(data, "held out")


def test_train_can_be_a_class(tmp_path):
    root = write_classes(tmp_path, {"train": 3, "car": 3})
    assert load_data(root).classes == ("car", "train")


def test_test_source_apart(tmp_path):
    train = write_classes(tmp_path / "a", {"cat": 3, "dog": 3})
    test = write_classes(tmp_path / "b", {"cat": 2}, start=50)
    data = load_data(train, test=test)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.notes == ("No test images for dog.",)
    write_classes(test, {"cow": 1}, start=70)
    with pytest.raises(UserError, match=r"b: test classes that training has not: cow;"):
        load_data(train, test=test)


def test_what_is_left_out_is_named(tmp_path):
    root = write_classes(tmp_path, {"cat": 3, "dog": 3, "cow": 0})
    (root / "cat" / "nested").mkdir()
    (root / "cat" / "nested" / "UPPER.PNG").write_bytes(encode(picture(90)))
    (root / "cat" / "broken.jpg").write_bytes(b"no image")
    (root / "cat" / "phone.HEIC").write_bytes(b"...")
    (root / "dog" / "labels.csv").write_text("a,b")
    (root / "dog" / ".DS_Store").write_bytes(b"")
    (root / "dog" / ".hidden.png").write_bytes(encode(picture(91)))
    (root / "loose.png").write_bytes(encode(picture(92)))
    (root / "dog" / "nowhere.png").symlink_to(root / "gone.png")
    (root / "dog" / "loop").symlink_to(root)
    data = load_data(root)
    assert len(data.train) + len(data.test) == 7
    assert "cat/nested/UPPER.PNG" in names(data.train) + names(data.test)
    reasons = {entry.name: entry.reason for entry in data.skipped}
    assert reasons.keys() == {
        "cat/broken.jpg", "cat/phone.HEIC", "dog/labels.csv", "dog/.hidden.png", "loose.png",
        "dog/nowhere.png", "dog/loop",
    }  # fmt: skip
    assert "not an image that can be read" in reasons["cat/phone.HEIC"]
    assert reasons["dog/labels.csv"] == "not an image (.csv)"
    assert said(data, "cow") == "No images in cow/: left out."
    line = summarize_skipped(data.skipped, most=1)
    assert line.startswith("Left out 7 files: ")
    assert line.endswith(" and 6 more.")


def test_links_to_elsewhere_are_followed(tmp_path):
    elsewhere = write_classes(tmp_path / "elsewhere", {"cats": 3})
    root = write_classes(tmp_path / "set", {"dog": 3}, start=20)
    (root / "cat").symlink_to(elsewhere / "cats")
    assert load_data(root).train.counts() == {0: 2, 1: 2}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no images found; put the images into one folder per class"),
        ({"1.png": 1, "2.png": 2}, "2 images but no class folders; put"),
        ({"cat/1.png": 1, "cat/2.png": 2}, r'only one class \("cat"\), at least two'),
        ({"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": None}, 'class "dog": no training image'),
        ({"cat/1.png": 1, "dog/2.png": 2}, "no test image can be held out, there are too few"),
    ],
)
def test_layouts_that_cannot_work(tmp_path, layout, message):
    for name, number in layout.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?" if number is None else encode(picture(number)))
    with pytest.raises(UserError, match=message):
        load_data(tmp_path)


def test_unknown_source_lists_the_names(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"clipar: no such folder.*clipart, digits"):
        load_data("clipar")
    with pytest.raises(UserError, match="held_out"):
        load_data("clipart", held_out=1.5)
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "digits", {"a": 2, "b": 2})
    assert load_data("digits").classes == ("a", "b")  # an existing path wins


def test_zip_gives_what_the_folder_gives(tmp_path):
    root = write_classes(tmp_path / "set", {"cat": 6, "dog": 6})
    archive = zip_of(root, tmp_path / "set.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/cat/._img0.png", b"x")
        file.writestr("cat/.DS_Store", b"x")
    folder, zipped = load_data(root), load_data(archive)
    assert zipped.name == "set"
    assert zipped.skipped == ()
    assert names(zipped.train) == names(folder.train)
    assert names(zipped.test) == names(folder.test)
    for a, b in zip(folder.test, zipped.test, strict=True):
        assert a.open().tobytes() == b.open().tobytes()


def test_zip_paths_are_not_trusted(tmp_path):
    root = write_classes(tmp_path / "set", {"cat": 3, "dog": 3})
    archive = zip_of(root, tmp_path / "set.zip")
    unsafe = ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:\\evil.png"]
    with zipfile.ZipFile(archive, "a") as file:
        for name in unsafe:
            file.writestr(name, encode(picture(80)))
        file.writestr("dog\\windows.png", encode(picture(81)))
        file.writestr("cat/two\nlines.png", encode(picture(82)))
    before = sorted(tmp_path.rglob("*"))
    data = load_data(archive)
    assert [(entry.name, entry.reason) for entry in data.skipped] == [
        (name, "unsafe path") for name in unsafe
    ]
    everything = names(data.train) + names(data.test)
    assert {"dog/windows.png", "cat/two\\nlines.png"} <= set(everything)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "evil.png").exists()


def test_zip_that_cannot_be_used(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "set", {"cat": 3, "dog": 3})
    archive = zip_of(root, tmp_path / "set.zip")
    (tmp_path / "fake.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"fake\.zip: not a zip archive"):
        load_data(tmp_path / "fake.zip")

    encrypted = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = encrypted.find(signature)
        while at >= 0:
            encrypted[at + offset] |= 1
            at = encrypted.find(signature, at + 1)
    (tmp_path / "secret.zip").write_bytes(encrypted)
    with pytest.raises(UserError, match=r"secret\.zip: the archive is encrypted"):
        load_data(tmp_path / "secret.zip")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "MAX_ARCHIVE_BYTES", 100)
        with pytest.raises(UserError, match="when unpacked"):
            load_data(archive)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "MAX_FILES", 5)
        patch.setattr(sources, "MAX_FOLDER_FILES", 5)
        for source in (root, archive):
            with pytest.raises(UserError, match=r"5|6 files"):
                load_data(source)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_file_over_the_bound_is_left_out(tmp_path, monkeypatch, kind):
    root = write_classes(tmp_path / "set", {"cat": 3, "dog": 3})
    (root / "cat" / "big.bmp").write_bytes(encode(picture(70), "BMP"))
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1000)
    data = load_data(root if kind == "folder" else zip_of(root, tmp_path / "set.zip"))
    assert [entry.name for entry in data.skipped] == ["cat/big.bmp"]


def test_files_are_in_natural_order_of_their_whole_names(tmp_path):
    names = [
        f"{folder}/{name}"
        for folder in ("c1", "c01", "c10", "c2", "cat", "cats", "Cat", "cat/b", "cat/b2", "cat-1")
        for name in ("1.png", "01.png", "10.png", "2.png", "B.png", "a.png", "b.png", "é.png")
    ]
    names += ["2.png", "10.png", "a\n1/x.png", "a0/x.png", "a\n1/\n.png", "cat/0b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listing = sources.list_folder(tmp_path)
    found = [file.name for file in listing.files]
    escaped = [name.replace("\n", "\\n") for name in names]
    assert found == sorted(escaped, key=lambda name: (plain_natural_key(name), name))
    assert [file.content.path.is_file() for file in listing.files] == [True] * len(names)


def plain_natural_key(text):
    """Numbers as numbers, other text without case."""
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)]


def test_headers_of_a_large_set_are_not_read_and_copies_not_looked_for(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "set", {"cat": 5, "dog": 5})
    (root / "cat" / "img4.png").write_bytes(b"broken")
    (root / "dog" / "img4.png").write_bytes((root / "dog" / "img0.png").read_bytes())
    small = load_data(root)
    assert [entry.name for entry in small.skipped] == ["cat/img4.png"]

    monkeypatch.setattr(loading, "MOST_CHECKED", 9)
    large = load_data(root)
    assert not large.skipped and len(large.train) + len(large.test) == 10
    assert "There are more than 9 images (10): their headers were not read" in large.notes[0]
    everything = Split(large.train.items + large.test.items, large.classes)
    batch = decode_shots(everything, None, 1, to_tensor)
    assert [entry.name for entry in batch.skipped] == ["cat/img4.png"]  # found when it is decoded
    again = load_data(root, check=True)
    assert (again.train, again.test, again.notes) == (small.train, small.test, small.notes)


def test_a_member_broken_inside_the_archive_is_named(tmp_path):
    root = write_classes(tmp_path / "set", {"cat": 3, "dog": 3})
    archive = zip_of(root, tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    at = content.find((root / "cat" / "img1.png").read_bytes())
    content[at + 50] ^= 0xFF
    archive.write_bytes(content)
    data = load_data(archive)
    assert [entry.name for entry in data.skipped] == ["cat/img1.png"]
    assert "cannot be unpacked" in data.skipped[0].reason


def test_copies_stay_on_one_side(tmp_path):
    root = write_classes(tmp_path, {"cat": 10, "dog": 10})
    for number in range(10):
        shutil.copy(root / "cat" / f"img{number}.png", root / "cat" / f"copy{number}.png")
    data = load_data(root)
    assert data.train.counts()[0] + data.test.counts()[0] == 20
    assert data.test.counts()[0] == 6
    stems = [
        {Path(name).stem[-1] for name in names(s) if "cat" in name} for s in (data.train, data.test)
    ]
    assert not stems[0] & stems[1]
    assert len(data.notes) == 1


def test_copies_across_splits_and_classes_are_said(tmp_path):
    write_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    write_classes(tmp_path / "test", {"cat": 1, "dog": 3}, start=2)  # cat 2, dogs 3 to 5
    data = load_data(tmp_path)
    note = said(data, "30 % of them stay for testing alone, the rest for training, in dog, where")
    assert note.startswith("4 of 6 training images are test images too (train/cat/img2.png = ")
    assert (data.train.counts(), data.test.counts()) == ({0: 2, 1: 2}, {0: 1, 1: 1})
    assert not {i.digest() for i in data.train} & {i.digest() for i in data.test}
    (tmp_path / "train/dog/new.png").write_bytes(encode(picture(40)))
    data = load_data(tmp_path)
    assert said(data, "kept out").startswith(
        "4 of 7 training images are test images too (train/cat/img2.png = test/cat/img0.png, "
    )
    assert names(data.train) == ["train/cat/img0.png", "train/cat/img1.png", "train/dog/new.png"]
    shutil.copy(tmp_path / "train/cat/img0.png", tmp_path / "train/dog/cat.png")
    note = said(load_data(tmp_path), "two classes")
    assert "1 times: train/cat/img0.png = train/dog/cat.png" in note


# --- shots ----------------------------------------------------------------------------------


@pytest.fixture
def twenty(tmp_path):
    root = write_classes(tmp_path / "twenty", {"a": 20, "b": 20})
    test = write_classes(tmp_path / "test", {"a": 1, "b": 1}, start=100)
    return load_data(root, test=test)


HELD_OUT = ["a/img2.png", "a/img8.png", "a/img9.png", "b/img1.png"]
DRAWN = {
    1: ["a/img17.png", "a/img11.png", "a/img6.png", "a/img0.png"],
    2: ["a/img7.png", "a/img8.png", "a/img6.png", "a/img18.png"],
}


@pytest.mark.parametrize("seed", [1, 2])
def test_draws_are_the_same_on_every_machine(twenty, seed):
    assert [item.name for item in draw_shots(twenty.train, 4, seed)[0]][:4] == DRAWN[seed]


def test_draws_are_nested_and_differ_by_seed_and_class(twenty):
    four = decode_shots(twenty.train, 4, 1, to_tensor)
    sixteen = decode_shots(twenty.train, 16, 1, to_tensor)
    assert four.names == sixteen.names[:4] + sixteen.names[16:20]
    assert four.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(four.images[:4], sixteen.images[:4])
    assert four.names != decode_shots(twenty.train, 4, 2, to_tensor).names
    order = draw_shots(twenty.train, 4, 1)
    assert [i.name[1:] for i in order[0]] != [i.name[1:] for i in order[1]]
    assert sorted(names(order[0])) == sorted(item.name for item in twenty.train.by_class()[0])
    with pytest.raises(UserError, match="shots: 0"):
        draw_shots(twenty.train, 0, 1)


def test_shares_of_the_images_are_nested_in_the_draws_of_numbers(twenty):
    names = {
        shots: decode_shots(twenty.train, shots, 1, to_tensor).names for shots in (1, 2, "10%")
    }
    counts = Counter(item.label for item in twenty.train.items)
    assert set(counts.values()) == {20}
    assert names["10%"] == names[2]  # 10 % of 20 images
    assert decode_shots(twenty.train, "1%", 1, to_tensor).names == names[1]  # at least one
    half = decode_shots(twenty.train, "50%", 1, to_tensor)
    assert half.names == decode_shots(twenty.train, 10, 1, to_tensor).names
    assert half.notes == []  # no class has fewer images than asked for
    for wrong in ("0%", "101%", "half", "%", "-5%"):
        with pytest.raises(UserError, match=f"shots: {wrong}; give a number .* a share such as"):
            draw_shots(twenty.train, wrong, 1)


def test_a_draw_does_not_depend_on_other_classes(tmp_path, twenty):
    test = write_classes(tmp_path / "test2", {"0": 1, "b": 1}, start=200)
    root = write_classes(tmp_path / "other", {"0": 3, "b": 20}, start=300)
    other = load_data(root, test=test)
    drawn = [[item.name for item in draw_shots(data.train, 4, 1)[1]] for data in (twenty, other)]
    assert drawn[0] == drawn[1]


def test_decoded_shots(twenty):
    decoded = decode_shots(twenty.train, None, 1, to_tensor)
    assert decoded.images.shape == (40, 3, 8, 8)
    assert decoded.images.dtype == torch.uint8
    assert decoded.labels.dtype == torch.int64
    assert (decoded.skipped, decoded.notes) == ([], [])
    by_name = {item.name: item for item in twenty.train}
    for name, image, label in zip(decoded.names, decoded.images, decoded.labels, strict=True):
        assert torch.equal(image, to_tensor(by_name[name].open()))
        assert by_name[name].label == label


def test_fewer_images_than_shots(tmp_path):
    root = write_classes(tmp_path / "set", {"a": 3, "b": 10, "c": 5})
    test = write_classes(tmp_path / "test", {"a": 1}, start=50)
    decoded = decode_shots(load_data(root, test=test).train, 8, 1, to_tensor)
    assert torch.bincount(decoded.labels).tolist() == [3, 8, 5]
    note = "2 classes have fewer than 8 training images, all are used: a 3 and c 5."
    assert decoded.notes == [note]


def test_a_broken_image_is_replaced_by_the_next(twenty, tmp_path):
    order = [item.name for item in draw_shots(twenty.train, 4, 1)[0]]
    for name in (order[1], order[4]):  # one of the draw, and its first replacement
        path = tmp_path / "twenty" / name
        path.write_bytes(path.read_bytes()[:45])
    decoded = decode_shots(twenty.train, 4, 1, to_tensor)
    assert decoded.names[:4] == [order[0], order[2], order[3], order[5]]
    assert [entry.name for entry in decoded.skipped] == [order[1], order[4]]
    assert decode_shots(twenty.train, 16, 1, to_tensor).names[:4] == decoded.names[:4]
    assert decoded.images.shape[0] == 8

    for file in (tmp_path / "twenty" / "a").iterdir():
        file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(UserError, match='class "a": none of its 20 images can be decoded'):
        decode_shots(twenty.train, 4, 1, to_tensor)


def test_batches_in_order_with_the_broken_named(twenty, tmp_path):
    everything = names(twenty.train)
    for index in (0, 5, 38, 39):
        path = tmp_path / "twenty" / everything[index]
        path.write_bytes(path.read_bytes()[:45])
    batches = list(decode_batches(twenty.train, to_tensor, 12))
    assert [len(batch) for batch in batches] == [12, 12, 12]
    assert [name for batch in batches for name in batch.names] == everything[1:5] + everything[6:38]
    skipped = [entry for batch in batches for entry in batch.skipped]
    assert [entry.name for entry in skipped] == [everything[i] for i in (0, 5, 38, 39)]
    assert all(isinstance(entry, Skipped) for entry in skipped)
    assert batches[-1].labels.tolist() == [1] * 12
    with pytest.raises(UserError, match="batch_size"):
        next(decode_batches(twenty.train, to_tensor, 0))


def test_the_next_batch_is_decoded_while_one_is_in_use():
    image = Image.new("RGB", (8, 8))
    split = Split(tuple(Item(str(n), 0, MemoryImage(image)) for n in range(400)), ("one",))
    decoded = []

    def transform(image: Image.Image) -> torch.Tensor:
        decoded.append(image)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    batches = decode_batches(split, transform, 100)
    next(batches)
    end = time.monotonic() + 10
    while len(decoded) < 200 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(decoded) == 200  # and no more
    assert [len(batch) for batch in batches] == [100] * 3


def test_batches_of_nothing_but_broken_images(twenty, tmp_path):
    for item in twenty.train:
        (tmp_path / "twenty" / item.name).write_bytes(b"")
    with pytest.raises(UserError, match="none of 40 images can be decoded"):
        list(decode_batches(twenty.train, to_tensor, 12))


# --- registered sets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_registered_sets_are_what_they_say(name):
    data = load_data(name)
    assert data.name == name
    assert len(data.classes) == DATASETS[name].classes
    assert len(data.train) + len(data.test) == DATASETS[name].images
    assert data.skipped == ()
    assert not set(names(data.train)) & set(names(data.test))
    assert min(data.train.counts().values()) >= 16
    assert min(data.test.counts().values()) >= 15
    assert len(data.train.counts()) == len(data.test.counts()) == len(data.classes)
    assert decode_shots(data.train, 1, 1, to_tensor).images.shape == (len(data.classes), 3, 8, 8)


def test_clipart_comes_with_its_own_split_and_no_copies():
    data = load_data("clipart")
    assert data.notes == ()
    assert "musical_instrument" in data.classes
    assert data.train.items[0].open().size == (176, 176)


def test_digits_are_dark_on_white():
    data = load_data("digits")
    assert data.classes == tuple("0123456789")
    image = np.asarray(data.train.items[0].open())
    assert image.shape == (64, 64, 3)
    assert image[:, :4].min() > 200  # the margin is paper
    assert image.min() < 30


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size():
    """600 rows are six times twice the side of 50: a quarter is the least that leaves 100."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    jpeg = encode(coarse.resize((800, 600), Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole, reduced = decode_image(jpeg), decode_image(jpeg, side=50)
    assert (whole.size, reduced.size) == ((800, 600), (200, 150))
    assert decode_image(jpeg, side=200).size == (800, 600)
    small = [
        np.asarray(image.resize((66, 50), Image.Resampling.BICUBIC), int)
        for image in (whole, reduced)
    ]
    assert np.abs(small[0] - small[1]).mean() < 1
