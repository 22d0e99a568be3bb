"""``listing``: reading a data set of a million files, without decoding one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.many_files import make_links, write_tables
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row


def listing(
    files: Annotated[
        int, typer.Option(min=100_001, help="Images in all; fewer would be compared, as copies.")
    ] = 1_000_000,
    classes: Annotated[int, typer.Option(min=2, help="Class folders.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 3,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """List many images, hard links to a few, and sort them by folders and by tables."""
    benchmark = Benchmark("listing", {"files": files, "classes": classes}, out, threads, resume)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with messages.status(f"making {files:,} hard links"):
            make_links(root, files, classes)
            write_tables(root, classes)
        sources = {
            "the imports alone": None,
            "train/ and test/": str(root / "data"),
            "train/ alone, 30 % held out": str(root / "data" / "train"),
            "paths.csv": str(root / "paths.csv"),
            "paths.jsonl": str(root / "paths.jsonl"),
            "ids.csv, the images below it": str(root / "ids.csv"),
        }
        function = "benchmarks.common.many_files:list_files"
        rows = [
            Row(name, {"load_data on": name}, function, {"source": source})
            for name, source in sources.items()
        ]
        found = benchmark.measure(rows, repeats)
    columns = {
        "images": lambda row: f"{row.values['images']:,}",
        "seconds: median (min - max)": lambda row: report.seconds(row.values["seconds"]),
        "peak GB": lambda row: report.gigabytes(row.values["memory"]),
    }
    notes = [
        f"{files:,} hard links to a few JPEGs in {classes} class folders. The folders were just "
        f"written, so the system has them in its cache.",
        "The tables have a row for each image, with five columns; ids.csv has paths without the "
        "extension, which start below data/.",
        "The memory is that of the whole process, with the libraries that it imports.",
    ]
    benchmark.publish(report.table(found, columns), notes)
