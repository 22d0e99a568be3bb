"""``stream``: what training takes when its images are read from the disk at every step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.images import class_names
from benchmarks.common.options import DeviceOption, OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row

_CLASSES = 20
_SETS = ("2000x64", "20000x64", "200000x64", "10000x500")
_MODELS = ("ViT-B-32", "lite0")
_DISTINCT = 100  # images that are made; the others are these with another comment in the file


def stream(
    images: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Training images x side in pixels; may be repeated. Default: {', '.join(_SETS)}."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Whose speed is compared; may be repeated. Default: {', '.join(_MODELS)}."
        ),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure the memory of each set.")] = True,
    speed: Annotated[bool, typer.Option(help="Compare with training from memory.")] = True,
    steps: Annotated[int, typer.Option(min=2, help="Of each training.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of the comparison.")] = 3,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Peak memory of training on large folders, and its speed and evaluation's beside memory's."""
    job = {"steps": steps, "batch_size": batch_size, "device": device}
    benchmark = Benchmark("stream", job, out, threads, resume)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in (images or _SETS) if memory else ():
            count, side = map(int, name.split("x"))
            data = Path(folder) / name
            with messages.status(f"writing {count:,} images"):
                write_photographs(data, count, side)
            label = {"model": "ViT-B-32", "images": f"{count:,} of {side} px", "kept": "streamed"}
            settings = {"data": str(data), "model": "ViT-B-32", "is_streamed": None, **job}
            rows.append(Row(f"memory {name}", label, "benchmarks.stream:train", settings, "sets"))
        benchmark.measure(rows, 1)
        faster = []
        if speed:
            data = Path(folder) / "speed"
            write_photographs(data, 1000, 500)
            for name in model or _MODELS:
                for is_streamed, kept in ((False, "in memory"), (True, "streamed")):
                    label = {"model": name, "images": "1,000 of 500 px", "kept": kept}
                    settings = {
                        "data": str(data),
                        "model": name,
                        "is_streamed": is_streamed,
                        **job,
                    }
                    function = "benchmarks.stream:train"
                    faster.append(Row(f"{name} {kept}", label, function, settings, name))
                for is_decoded, kept in ((True, "in memory"), (False, "streamed")):
                    label = {"model": f"{name}, eval", "images": "1,000 of 500 px", "kept": kept}
                    settings = {"data": str(data), "model": name, "is_decoded": is_decoded}
                    settings |= {"images": 1000, "device": device}
                    key, function = f"{name} eval {kept}", "benchmarks.stream:evaluate"
                    faster.append(Row(key, label, function, settings, f"{name} eval"))
            benchmark.measure(faster, repeats)
        benchmark.rows = [*rows, *faster]
        found = benchmark.measured()
    columns = {
        "s a step, or to evaluate: median (min - max)": lambda row: report.seconds(
            row.values["seconds"]
        ),
        "ratio": lambda row: report.ratio(row, "seconds"),
        "GB": lambda row: report.gigabytes(row.values["memory"]),
        "ratio ": lambda row: report.ratio(row, "memory"),
        "s to list": lambda row: (
            report.seconds(row.values["listing_seconds"]) if "listing_seconds" in row.values else ""
        ),
    }
    notes = [
        f"{steps} steps of {batch_size} images, RandLoRA, random weights but for lite0, "
        f"`--shots all`, {_CLASSES} classes.",
        "GB is the most that the process held, the libraries and the listing included.",
    ]
    benchmark.publish(report.table(found, columns), notes)


def write_photographs(folder: Path, count: int, side: int) -> None:
    """Write ``count`` JPEGs of 4:3 in ``train/`` and three of each class in ``test/``.

    No two files are equal.
    """
    drawn, names = np.random.default_rng(0), class_names(_CLASSES)
    made = []
    for _ in range(_DISTINCT):
        coarse = drawn.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        path = folder.with_suffix(".jpg")
        image.save(path, quality=90)
        made.append(path.read_bytes())
        path.unlink()
    number = 0
    for split, per_class in (("test", 3), ("train", count // _CLASSES)):
        for name in names:
            inside = folder / split / name
            inside.mkdir(parents=True)
            for place in range(per_class):
                number += 1
                # a JPEG comment after the two bytes that begin the file
                note = b"\xff\xfe" + (10).to_bytes(2, "big") + number.to_bytes(8, "big")
                content = made[number % _DISTINCT]
                (inside / f"{place}.jpg").write_bytes(content[:2] + note + content[2:])


def train(
    data: str,
    model: str,
    is_streamed: bool | None,
    steps: int,
    batch_size: int,
    device: str | None,
) -> dict[str, Any]:
    """Train once; return the seconds of a step and of the listing."""
    import clip_randlora as cr

    start = time.perf_counter()
    loaded = cr.load_data(data)
    listing = time.perf_counter() - start
    weights = "default" if model == "lite0" else "random:0"
    net = cr.load_model(model, weights, device=device)
    config = cr.TrainConfig(
        shots=None, steps=steps, batch_size=batch_size, learning_rate=1e-4, stream=is_streamed
    )
    with tempfile.TemporaryDirectory() as out:
        run = cr.fit(net, loaded, config, Path(out) / "run")
    took = run.metrics["train_seconds"] / steps
    return {"seconds": [took], "listing_seconds": [listing]}


def evaluate(
    data: str, model: str, is_decoded: bool, images: int, device: str | None
) -> dict[str, Any]:
    """Classify images zero-shot and tuned, as `clip_randlora.evaluation.predict_split` does.

    Args:
        data: a folder, whose training images are classified.
        model: ``lite0``, or an architecture for random weights.
        is_decoded: decode them before the time begins.
        images: how many.
        device: as for `load_model`.
    """
    import clip_randlora as cr
    from clip_randlora.clip.text import TextClassifier
    from clip_randlora.data import ImageCache, Split, decode_batches, load_data
    from clip_randlora.evaluation import BATCH

    loaded = load_data(data)
    split = Split(loaded.train.items[:images], loaded.classes)
    net = cr.load_model(model, "default" if model == "lite0" else "random:0", device=device)
    adapter = cr.attach(net.net, cr.RandLoRA(rank=6))
    for parameter in adapter.parameters():  # so that both networks differ
        parameter.data.add_(0.01)
    text = TextClassifier(net, split.classes, [[f"a photo of a {n}."] for n in split.classes])
    both = cr.PairedPredictor(net, adapter, text)
    cache = ImageCache(2**40) if is_decoded else None
    if is_decoded:
        for _ in decode_batches(split, net.square(), BATCH, cache):
            pass
    start = time.perf_counter()
    for batch in decode_batches(split, net.square(), BATCH, cache):
        both.probabilities(batch.images)
    return {"seconds": [time.perf_counter() - start]}
