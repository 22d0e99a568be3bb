"""Made-up files for everything that reads from outside: success or a UserError, nothing else.

``CLIP_RANDLORA_EXAMPLES=10000`` runs that many over the four tests; by default a few.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from helpers.images import encoded, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import clip_randlora as cr
from clip_randlora.adapters.io import adapter_files
from clip_randlora.data import decode_image
from clip_randlora.data.dataset_spec import DatasetSpec, read_dataset_spec
from clip_randlora.errors import UserError
from clip_randlora.utils.yaml_files import read_mapping

EXAMPLES = max(1, int(os.environ.get("CLIP_RANDLORA_EXAMPLES", "80")) // 4)
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SMALL = [
    encoded(picture(n, 8), form)
    for n, form in enumerate(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))
]


def one_line(read, *arguments) -> None:
    """Call a function, which may only raise a UserError of one line."""
    try:
        read(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and str(error)


@st.composite
def damaged(draw, wholes) -> bytes:
    """A whole file with some bytes changed, cut out or put in."""
    content = bytearray(draw(wholes))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
images = st.one_of(damaged(st.sampled_from(SMALL)), st.binary(max_size=60))


@few
@given(images, st.lists(st.tuples(names, images), max_size=6))
def test_images_and_folders(image, members):
    one_line(decode_image, image, "some image")
    with TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        for number, (name, content) in enumerate(members):
            try:
                (root / name).mkdir(parents=True, exist_ok=True)
                (root / name / f"{number}.png").write_bytes(content)
            except (OSError, ValueError):  # no name for a file
                continue
        one_line(cr.load_data, root)


@st.composite
def archives(draw) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([0, 8, 12, 14]))) as zipped:
        for name, content in draw(st.lists(st.tuples(names, images), max_size=6)):
            folder = draw(st.sampled_from(["a/", "b/", "../", "/", "", "a/../", "\\"]))
            zipped.writestr(folder + name + ".png", content)
    return buffer.getvalue()


@few
@given(damaged(archives()))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(content):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        path.write_bytes(content)
        one_line(cr.load_data, path)
        assert [file.name for file in Path(folder).iterdir()] == ["a.zip"]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from(["randlora", "lora", "{}", "a photo of a {}.", "train", "vision"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
fields = st.sampled_from(
    [*cr.TrainConfig.model_fields, *DatasetSpec.model_fields, *cr.RandLoRA.model_fields, "x"]
)
mappings = st.dictionaries(fields, values | st.dictionaries(fields, values, max_size=3), max_size=5)


@few
@given(mappings | values, st.one_of(st.none(), st.binary(max_size=80)))
def test_settings_and_descriptions(content, raw):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(raw if raw is not None else yaml.safe_dump(content).encode())
        one_line(lambda: cr.TrainConfig.parse(read_mapping(path, "settings")))
        one_line(read_dataset_spec, path)


def adapter_file(tmp: Path) -> bytes:
    path = tmp / "whole.safetensors"
    config = cr.LoRA(rank=1)
    adapter_files.write(
        path, config, adapter_files.BaseModel("x", "0" * 64), {"a": torch.ones(2, 2)}, {"model": 1}
    )
    return path.read_bytes()


with TemporaryDirectory() as somewhere:
    WHOLE = adapter_file(Path(somewhere))

json_texts = st.sampled_from(["{}", "[]", "null", "1", '{"method": "lora"}', '"x"', "[[", "NaN"])


@few
@given(
    damaged(st.just(WHOLE)),
    st.dictionaries(st.sampled_from(["format", "version", "config", "base", "task"]), json_texts),
    st.dictionaries(st.sampled_from(["a", "bases.b", "bases.a"]), st.lists(st.integers(0, 3))),
)
def test_adapter_files(content, metadata, shapes):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(content)
        one_line(adapter_files.read, path)
        one_line(cr.read_task, path)
        made = {key: torch.zeros(shape) for key, shape in shapes.items()}
        save_file(
            made, path, metadata={"format": "clip-randlora-adapter", "version": "2"} | metadata
        )
        one_line(adapter_files.read, path)
        one_line(cr.read_task, path)


def test_the_strategies_reach_what_is_good():
    assert decode_image(SMALL[0]).size == Image.open(io.BytesIO(SMALL[0])).size
