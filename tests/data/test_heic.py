"""HEIC, the format of phones: read if pillow-heif is installed, else an error that names it."""

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from pillow_heif.as_plugin import HeifImageFile

from clip_randlora.data import UnreadableImage, check_image, decode_image, images, load_data


def heic(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=-1, **options)
    return buffer.getvalue()


def halves() -> Image.Image:
    """Red above, blue below on the right: it differs in each of the eight orientations."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 64, 16))
    image.paste("blue", (32, 16, 64, 32))
    return image


def distance(image: Image.Image, expected: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean())


@pytest.mark.parametrize("form", ["bytes", "file", "path"])
def test_a_heic_image_is_read_in_every_form(form, tmp_path):
    content = heic(halves())
    (tmp_path / "photo.heic").write_bytes(content)
    make = {"bytes": bytes, "file": io.BytesIO, "path": lambda _: tmp_path / "photo.heic"}[form]
    check_image(make(content))
    image = decode_image(make(content))
    assert image.mode == "RGB" and image.size == (64, 32)
    assert distance(image, halves()) < 8


def test_a_turned_photo_is_upright_once():
    turned = halves().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(heic(turned, exif=exif.tobytes()))
    assert image.size == (64, 32) and distance(image, halves()) < 8


def test_transparency_is_put_on_white():
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    assert min(decode_image(heic(image)).getpixel((16, 16))) > 250


def test_bounds_hold_before_a_pixel_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(halves()))
    monkeypatch.setattr(HeifImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    with pytest.raises(UnreadableImage, match=r"photo.heic: 64 x 32 pixels, more than"):
        decode_image(path)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(UnreadableImage, match=r"photo.heic: 0 MiB, at most 0"):
        decode_image(path)


@pytest.mark.parametrize("kept", [12, 200, -40])
def test_a_truncated_one_is_one_line(kept):
    with pytest.raises(UnreadableImage, match="broken or truncated image"):
        decode_image(heic(halves())[:kept])


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name, count in (("cat", 3), ("dog", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (9, 9 + number), name == "cat" and "red").save(
                tmp_path / name / f"{number}.png"
            )
    (tmp_path / "cat" / "phone.HEIC").write_bytes(heic_header())
    (skipped,) = load_data(tmp_path).skipped
    assert skipped.name == "cat/phone.HEIC"
    assert "pip install 'clip-randlora[heic]'" in skipped.reason
    assert "convert it to JPEG" in skipped.reason


def heic_header() -> bytes:
    return bytes(3) + b"\x18ftypheic" + bytes(4) + b"mif1heic"


def test_pil_of_others_is_left_as_it_was(tmp_path: Path):
    decode_image(heic(halves()))
    assert "HEIF" not in Image.OPEN
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(heic(halves())))
