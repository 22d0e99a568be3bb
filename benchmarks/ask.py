"""``ask``: how many images one classifier answers a second, asked by several threads at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

import clip_randlora as cr
from benchmarks.common import report
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    folder_of,
    threads_of,
)
from benchmarks.common.processes import ROOT, Row, measure_rounds
from benchmarks.common.results import Results, spread
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier

_IMAGES = ROOT / "clip_randlora" / "bundled" / "clipart" / "test"
_ASKERS = (1, 2, 4, 8)


def ask(
    model: Annotated[
        str, typer.Option(help="lite0, or an open_clip name, taken with random weights.")
    ] = "lite0",
    images: Annotated[int, typer.Option(min=8, help="Asked for in all, one at a time.")] = 96,
    repeats: Annotated[
        int, typer.Option(min=1, help="Rounds, in each of which all are tried.")
    ] = 3,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """One classifier asked by 1, 2, 4 and 8 threads: images a second, and if answers differ."""
    threads = threads_of(threads)
    torch.set_num_threads(threads)
    settings = {"model": model, "images": images, "threads": threads, "repeats": repeats}
    results = Results("ask", folder_of("ask", out), settings, resume)
    paths = sorted(_IMAGES.rglob("*.*"))[:: len(list(_IMAGES.rglob("*.*"))) // 16]
    classifier = _classifier(model, device)
    alone = {path: classifier.predict(path)[0] for path in paths}
    asked = list(islice(cycle(paths), images))
    rows = [Row(f"{count} asking", "", {"asking": count}) for count in _ASKERS]
    measure_rounds(
        rows,
        repeats,
        results,
        lambda row: {"result": _ask(classifier, asked, alone, row.settings["asking"])},
        lambda result: f"{result['images_per_second']:.1f} images a second",
    )
    found = {row.key: _summary(results, row.key) for row in rows}
    report.publish(
        results,
        threads,
        [_table(found)],
        [
            f"{model}, {images} images one at a time, decoded from files, zero-shot and tuned; "
            "medians, with smallest and largest.",
            "The largest difference is that of a probability from what one thread got before.",
        ],
        _figure(found),
        {"rows": found},
    )


def _classifier(name: str, device: str | None) -> cr.Classifier:
    """Return a classifier of the bundled drawings whose two answers differ."""
    model = cr.load_model(name, "default" if name == "lite0" else "random:0", device)
    adapter = cr.attach(model.net, cr.RandLoRA(rank=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device), alpha=0.02)
    classes = sorted(folder.name for folder in _IMAGES.iterdir())
    return cr.Classifier(model, adapter, TextClassifier(model, classes, make_prompts(classes)))


def _ask(
    classifier: cr.Classifier,
    paths: Sequence[Path],
    alone: Mapping[Path, Mapping[str, Mapping[str, float]]],
    asking: int,
) -> dict[str, float]:
    """Share the images out to threads; return their rate and the largest difference."""

    def some(share: Sequence[Path]) -> float:
        return max(_difference(classifier.predict(path)[0], alone[path]) for path in share)

    began = time.perf_counter()
    with ThreadPoolExecutor(asking) as pool:
        differences = list(pool.map(some, (paths[number::asking] for number in range(asking))))
    seconds = time.perf_counter() - began
    return {
        "images_per_second": len(paths) / seconds,
        "largest_difference": max(differences),
    }


def _difference(
    answer: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]
) -> float:
    return max(abs(p - other[which][name]) for which in other for name, p in answer[which].items())


def _summary(results: Results, key: str) -> dict[str, Any]:
    rounds = results.of(key)
    return {
        "images_per_second": spread(one["images_per_second"] for one in rounds),
        "largest_difference": max(one["largest_difference"] for one in rounds),
    }


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    one = next(iter(found.values()))["images_per_second"]["median"]
    lines = [
        [
            name,
            report.seconds(row["images_per_second"]),
            f"{row['images_per_second']['median'] / one:.2f}",
            f"{row['largest_difference']:.1e}",
        ]
        for name, row in found.items()
    ]
    columns = ("threads", "images a second: median (min - max)", "of one", "largest difference")
    return report.markdown_table(columns, lines)


def _figure(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 0.9 + 0.38 * len(found)), layout="constrained")
    rates = [row["images_per_second"] for row in found.values()]
    report.bars(
        figure.subplots(), list(found), rates, [report.OURS] * len(found), "images a second"
    )
    return figure
