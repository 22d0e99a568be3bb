"""``ask``: how many images one classifier answers a second, asked by several threads at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import torch
import typer

import clip_randlora as cr
from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.images import CLIPART
from benchmarks.common.options import DeviceOption, OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row
from benchmarks.common.tuned import attach_random

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
    """One classifier asked by 1, 2, 4 and 8 threads: images a second, and changes of answers."""
    benchmark = Benchmark("ask", {"model": model, "images": images}, out, threads, resume)
    torch.set_num_threads(benchmark.threads)
    files = sorted((CLIPART / "test").rglob("*.*"))
    files = files[:: len(files) // 16]
    loaded = cr.load_model(model, "default" if model == "lite0" else "random:0", device)
    classes = sorted(folder.name for folder in (CLIPART / "test").iterdir())
    classifier = cr.Classifier(loaded, *attach_random(loaded, classes))
    alone = {path: classifier.predict(path)[0] for path in files}
    asked = list(islice(cycle(files), images))
    rows = [
        Row(f"{count} asking", {"threads": str(count)}, settings={"asking": count})
        for count in _ASKERS
    ]
    found = benchmark.measure(
        rows,
        repeats,
        lambda row, _: {"result": _ask(classifier, asked, alone, row.settings["asking"])},
        lambda result: f"{result['images_per_second']:.1f} images a second",
    )
    table = report.table(
        found,
        {
            "images a second: median (min - max)": lambda row: report.seconds(
                row.values["images_per_second"]
            ),
            "ratio": lambda row: report.ratio(row, "images_per_second"),
            "largest difference": lambda row: f"{row.values['largest_difference']['max']:.1e}",
        },
    )
    notes = [
        f"{model}, {images} images, one at a time, decoded from files, zero-shot and tuned. "
        f"Medians with smallest and largest; ratios are to one thread.",
        "The largest difference is between a probability and the one that a single thread got.",
    ]
    benchmark.publish(table, notes, report.figure(found, {"images_per_second": "images a second"}))


def _ask(
    classifier: cr.Classifier,
    paths: Sequence[Path],
    alone: Mapping[Path, Mapping[str, Mapping[str, float]]],
    asking: int,
) -> dict[str, float]:
    """Share the images out to threads; return their rate and the largest difference."""

    def answer(share: Sequence[Path]) -> float:
        return max(_difference(classifier.predict(path)[0], alone[path]) for path in share)

    began = time.perf_counter()
    with ThreadPoolExecutor(asking) as pool:
        differences = list(pool.map(answer, (paths[number::asking] for number in range(asking))))
    seconds = time.perf_counter() - began
    return {
        "images_per_second": len(paths) / seconds,
        "largest_difference": max(differences),
    }


def _difference(
    answer: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]
) -> float:
    return max(abs(p - other[which][name]) for which in other for name, p in answer[which].items())
