"""Streamed training images: the same numbers as from memory, whatever happens on the way."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.data import DiskCache, Item, Split, StreamedImages
from clip_randlora.data.streaming import reason_to_stream
from clip_randlora.training.image_inputs import ImageInputs, draw_batch

FAST = {
    "method": {"method": "randlora", "rank": 4},
    "shots": None,
    "steps": 5,
    "batch_size": 7,
    "precision": "fp32",
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 1})


def trained(run: cr.Run) -> dict[str, torch.Tensor]:
    weights = {name: value.detach().clone() for name, value in run.adapter.named_parameters()}
    if run.adapter.head is not None:
        weights |= run.adapter.head.state_dict()
    run.adapter.detach()
    return weights


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": None, "views": 2},
        {"method": {"method": "lora", "blocks": 1}, "shots": 4},
        {"method": {"method": "anchored_head"}},
    ],
    ids=["new crops", "views", "frozen blocks", "a head"],
)
def test_the_weights_are_those_from_memory_to_the_bit(tiny, colors, settings):
    data = cr.load_data(colors)
    runs = {}
    for stream in (False, True):
        config = cr.TrainConfig(**FAST | settings, stream=stream)
        runs[stream] = trained(cr.fit(tiny, data, config))
    assert_same(runs[True], runs[False])


def test_it_goes_on_in_the_middle_of_an_epoch(tiny, colors, tmp_path):
    data, config = cr.load_data(colors), cr.TrainConfig(**FAST | {"steps": 3}, stream=True)
    straight = trained(cr.fit(tiny, data, config))

    def stop(step) -> None:
        if step.step == 2:  # 14 of 18 images
            raise KeyboardInterrupt

    with pytest.raises(cr.Interrupted):
        cr.fit(tiny, data, config, tmp_path / "run", on_step=stop)
    assert_same(trained(cr.fit(tiny, data, config, tmp_path / "run", resume=True)), straight)


def spoil(path: Path) -> None:
    """Cut an image in half: its header can still be read."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_broken_image_is_named_and_another_takes_its_place(tiny, tmp_path):
    folder = write_colors(tmp_path / "colors", {"train": 3, "test": 1})
    spoil(folder / "train" / "red" / "1.png")
    data = cr.load_data(folder)
    run = cr.fit(tiny, data, cr.TrainConfig(**FAST, stream=True), tmp_path / "run")
    run.adapter.detach()
    assert [entry.name for entry in run.skipped] == ["train/red/1.png"]
    assert run.metrics["images"]["train"] == 9

    images = StreamedImages(data.train, None, 1, tiny.square(32), 32)
    row = images.names.index("train/red/1.png")
    reds = [n for n in range(9) if images.labels[n] == images.labels[row]]
    after = reds[(reds.index(row) + 1) % 3]
    assert torch.equal(*images.select(torch.tensor([row, after])))


def test_a_class_without_a_readable_image_ends_the_training(tiny, tmp_path):
    folder = write_colors(tmp_path / "colors", {"train": 2, "test": 1})
    for number in (0, 1):
        spoil(folder / "train" / "red" / f"{number}.png")
    with pytest.raises(cr.UserError, match=r'class "red": none of its images can be decoded'):
        cr.fit(tiny, cr.load_data(folder), cr.TrainConfig(**FAST, stream=True))
    for weight in tiny.net.modules():
        assert "parametrizations" not in dict(weight.named_children())


@dataclass(frozen=True)
class Counted:
    """An image's content that counts how often it is read."""

    path: Path
    reads: Counter

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self) -> Path:
        self.reads[self.path] += 1
        return self.path


def count_reads(split: Split) -> tuple[Split, Counter]:
    reads: Counter = Counter()
    items = tuple(Item(i.name, i.label, Counted(i.content.read(), reads)) for i in split.items)
    return replace(split, items=items), reads


def test_two_processes_read_every_image_once_an_epoch(tiny, colors):
    split, reads = count_reads(cr.load_data(colors).train)
    batch, config = 6, cr.TrainConfig(stream=True)
    for part in (slice(0, 3), slice(3, 6)):
        images = StreamedImages(split, None, 1, tiny.square(40), 40)
        inputs = ImageInputs(images, 32, config, tiny.encode_checked, part)
        with inputs.reading(0, 3, batch):
            for step in range(3):
                rows, epochs = draw_batch(step, batch, 18, config.seed)
                (crops,) = inputs.draw(rows, epochs, torch.Generator().manual_seed(step))
                assert crops.shape == (3, 3, 32, 32)
    assert len(reads) == 18
    assert set(reads.values()) == {1}


def test_a_cache_on_the_disk_saves_the_decoding(tiny, tmp_path):
    folder = write_colors(tmp_path / "colors", {"train": 3, "test": 1})
    cache = tmp_path / "cache"
    config = cr.TrainConfig(**FAST, stream=True)
    first = trained(cr.fit(tiny, cr.load_data(folder), config, image_cache=cache))
    for path in (folder / "train").rglob("*.png"):  # the pixels are gone, the header is not
        status = path.stat()
        content = path.read_bytes()
        path.write_bytes(content[:60].ljust(len(content), b"-"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    run = cr.fit(tiny, cr.load_data(folder), config, image_cache=cache)
    assert run.skipped == []
    assert_same(trained(run), first)
    os.utime(folder / "train" / "red" / "0.png")  # changed since: not the image in the cache
    split = Split((cr.load_data(folder).train.items[-3],), ("red",))
    assert DiskCache(cache, repr(tiny.net.visual.preprocess_cfg), 37).get(split.items[0]) is None


@pytest.mark.parametrize(
    ("images", "uses", "free", "reason"),
    [
        (1_000, 10**9, 10**9, None),  # 200 MB, which is small
        (10_000, 10**9, 10**11, None),
        (10_000, 10**9, 10**10, "10,000 of them would take 2.0 GB, and 12.5% of the free memory"),
        (10_000, 19_999, 10**11, "10,000 of them are used less than twice"),
    ],
)
def test_it_is_chosen_by_the_free_memory(images, uses, free, reason):
    said = reason_to_stream(images, 258, uses, free)
    assert said is None if reason is None else said.startswith(reason)
