"""``read``: how fast images are listed, read and decoded from folders, a zip, shards and tables."""

from __future__ import annotations

import gc
import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.images import class_names, write_images
from benchmarks.common.measured import Measured
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row

_FORMS = {"folders": "folders", "zip": "zip", "shards": "shards (.tar)", "tables": "parquet"}
_CLASSES = 10
_IN_SHARD = 10_000  # samples that are only listed
_TINY = b"\0" * 256


def read(
    images: Annotated[int, typer.Option(min=_CLASSES, help="JPEGs of 500 x 500 pixels.")] = 2000,
    listed: Annotated[
        int, typer.Option(min=0, help="Samples of shards that are listed.")
    ] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 3,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """The same images in folders, a zip, shards and parquet: listed, read, decoded."""
    benchmark = Benchmark("read", {"images": images, "listed": listed}, out, threads, resume)
    rows = [
        Row(form, {"images in": name}, "benchmarks.read:measure_reading", {"form": form})
        for form, name in _FORMS.items()
    ]
    rows.append(
        Row(
            "photographs",
            {"images in": "12-megapixel JPEGs"},
            "benchmarks.read:measure_photographs",
            group="photographs",
        )
    )
    if listed:
        label = {"images in": f"shards, {listed:,} samples"}
        rows.append(Row("listed", label, "benchmarks.read:measure_listing", group="listed"))
    with tempfile.TemporaryDirectory() as folder:
        with messages.status("writing images"):
            _write(Path(folder), images, listed)
        for row in rows:
            if row.key == "photographs":
                continue
            name = f"listed-{listed}" if row.key == "listed" else row.key
            row.settings["source"] = str(Path(folder) / name)
        found = benchmark.measure(rows, repeats, progress=_show)
    columns: dict[str, Callable[[Measured], str]] = {
        "listed a second": lambda row: _rate(row, "listed"),
        "bytes of memory an image": lambda row: (
            "mapped" if row.key == "tables" else _rate(row, "bytes_each")
        ),
        "read a second": lambda row: _rate(row, "read"),
        "read and decoded a second": lambda row: _rate(row, "decoded"),
        "for training": lambda row: _rate(row, "reduced"),
    }
    notes = [
        f"{images} JPEGs of 500 x 500 pixels, read in a random order from the page cache, by as "
        f"many threads as there are cores. Medians of {repeats} rounds.",
        "Listing checks no image. Decoding includes resizing to 224 pixels. The 12-megapixel JPEGs "
        "are decoded by one thread, with every pixel and as for a training with crops of 224.",
        "The shards that are only listed have a .jpg of 256 bytes and a .cls for each sample.",
    ]
    benchmark.publish(report.table(found, columns), notes)


def measure_reading(form: str, source: str) -> dict[str, Any]:
    """List, read and decode the images of a form, in a random order."""
    from clip_randlora.data.dataset import Item
    from clip_randlora.data.sampling import permutation
    from clip_randlora.utils.parallel import parallel_map

    result, files = _list(source)
    order = permutation(len(files), "benchmark", 1, form)
    items = [Item(files[place].name, 0, files[place].content) for place in order]

    def read_bytes(item: Item) -> int:
        content = item.content.read()
        return len(content.read_bytes() if isinstance(content, Path) else content)

    def decode(item: Item) -> int:
        return item.open().resize((224, 224)).width

    for name, function in (("read", read_bytes), ("decoded", decode)):
        began = time.perf_counter()
        assert all(parallel_map(function, items))
        result[name] = len(items) / (time.perf_counter() - began)
    return result


def measure_photographs(count: int = 6, side: int = 258) -> dict[str, Any]:
    """Decode 12-megapixel JPEGs with every pixel, and for a training's squares of a side."""
    import numpy as np
    from PIL import Image

    from clip_randlora.data import decode_image

    coarse = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC).save(
        content, "JPEG", quality=90
    )
    result = {}
    for name, reduced in (("decoded", None), ("reduced", side)):
        began = time.perf_counter()
        for _ in range(count):
            decode_image(content.getvalue(), side=reduced).resize((side * 4 // 3, side))
        result[name] = count / (time.perf_counter() - began)
    return result


def measure_listing(source: str) -> dict[str, Any]:
    """List shards."""
    return _list(source)[0]


def _list(source: str) -> tuple[dict[str, Any], list[Any]]:
    from clip_randlora.data import hub_datasets  # noqa: F401  # imported before memory is measured
    from clip_randlora.data.layouts import read_layout

    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    layout = read_layout(source)
    seconds = time.perf_counter() - began
    files = [file for group in layout.train.values() for file in group]
    each = (psutil.Process().memory_info().rss - before) / len(files)
    return {"listed": len(files) / seconds, "bytes_each": each}, files


def _write(root: Path, images: int, listed: int) -> None:
    """Write the same images in every form, and the shards that are only listed."""
    import datasets

    names = class_names(_CLASSES)
    write_images(root / "made", names, images // _CLASSES, 0, 500)
    folders = (root / "made" / "train").rename(root / "folders")
    shutil.make_archive(str(root / "zip"), "zip", folders)
    (root / "zip.zip").rename(root / "zip")
    files = sorted(folders.rglob("*.jpg"))
    samples = [
        (f"{place:06d}", path.read_bytes(), path.parent.name) for place, path in enumerate(files)
    ]
    (root / "shards").mkdir()
    for number in range(_CLASSES):
        _write_shard(root / "shards" / f"{number:06d}.tar", samples[number::_CLASSES])
    kind = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    rows = {
        "image": [{"bytes": content, "path": None} for _, content, _ in samples],
        "label": [label for *_, label in samples],
    }
    (root / "tables").mkdir()
    datasets.Dataset.from_dict(rows, features=kind).to_parquet(root / "tables" / "train.parquet")
    (root / f"listed-{listed}").mkdir()
    for start in range(0, listed, _IN_SHARD):
        numbers = range(start, min(start + _IN_SHARD, listed))
        tiny = ((f"{n:09d}", _TINY, names[n % _CLASSES]) for n in numbers)
        _write_shard(root / f"listed-{listed}" / f"{start:09d}.tar", tiny)


def _write_shard(path: Path, samples: Iterable[tuple[str, bytes, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, content, label in samples:
            for ending, data in (("jpg", content), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _rate(row: Measured, quantity: str) -> str:
    return f"{row.values[quantity]['median']:,.0f}" if quantity in row.values else ""


def _show(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{result[name]:,.0f} {name}"
        for name in ("listed", "read", "decoded", "reduced")
        if name in result
    )
