"""``embed``: the rate of writing the features of many images, and its memory at two sizes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.many_files import make_links
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row

_CLASSES = 10


def embed(
    images: Annotated[int, typer.Option(min=10, help="How many; also a tenth of it.")] = 5_000,
    model: Annotated[str, typer.Option(help="As for train; random weights do.")] = "lite0",
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Write features before and after of many images; images a second, and peak memory."""
    benchmark = Benchmark("embed", {"images": images, "model": model}, out, threads, resume)
    with tempfile.TemporaryDirectory() as root:
        for count in (images // 10, images):
            make_links(Path(root) / str(count), count, _CLASSES)
        rows = [
            Row(
                f"{kind} {count}",
                {"file": kind, "images": f"{count:,}"},
                "benchmarks.embed:run_job",
                {"folder": f"{root}/{count}/data", "kind": kind, "model": model},
                kind,
            )
            for kind in (".parquet", ".npy")
            for count in (images // 10, images)
        ]
        found = benchmark.measure(
            rows,
            1,
            lambda row, _: run_row(row, benchmark.threads),
            lambda result: f"{result['images_per_second']:.1f} images a second",
        )
    columns = {
        "images a second": lambda row: f"{row.values['images_per_second']['median']:.1f}",
        "peak GB": lambda row: report.gigabytes(row.values["memory"]),
        "memory ratio": lambda row: report.ratio(row, "memory"),
    }
    notes = [
        f"{model} with RandLoRA; hard links to small JPEGs. A .parquet has the features before "
        f"and after, a .npy those after alone. Loading the model is left out of the rate.",
    ]
    benchmark.publish(report.table(found, columns), notes)


def run_job(folder: str, kind: str, model: str) -> dict[str, float]:
    """Write the features of all images of a folder, in this process."""
    import clip_randlora as cr
    from benchmarks.common.tuned import attach_random

    loaded = cr.load_model(model)
    classifier = cr.Classifier(loaded, *attach_random(loaded, ("cat", "dog")))
    classifier.predict(
        next(path for path in Path(folder).rglob("*.*") if path.is_file())
    )  # forms the tuned weights
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        done = cr.embed_images(classifier, folder, Path(out) / f"index{kind}")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "images_per_second": done.rows / seconds, "rows": done.rows}
