"""``calibration``: how far the probabilities are from right, with the temperature and without."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row


def calibration(
    data: Annotated[list[str] | None, typer.Option(help="As for train. Default: two sets.")] = None,
    shots: Annotated[list[int] | None, typer.Option(help="Default: 1, 4 and 16.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds from 1 to this number.")] = 3,
    method: Annotated[str, typer.Option(help="As for train.")] = "randlora",
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Expected calibration error on the test images, zero-shot and tuned, and the time it takes."""
    benchmark = Benchmark("calibration", {"method": method}, out, threads, resume)
    rows = [
        Row(
            f"{source}, {count} images",
            {"data": source, "images of a class": str(count)},
            "benchmarks.calibration:run_job",
            {"data": source, "shots": count, "method": method},
            source,
        )
        for source in data or ("clipart", "digits")
        for count in shots or (1, 4, 16)
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return run_row(replace(row, settings=row.settings | {"seed": seed}), benchmark.threads)

    found = benchmark.measure(rows, seeds, run, _progress)
    names = {
        "zero_shot_before": "zero-shot before",
        "zero_shot": "zero-shot",
        "before": "tuned before",
        "tuned": "tuned",
        "temperature": "temperature",
    }
    columns = {
        title: lambda row, name=name: f"{row.values[name]['mean']:.3f}"
        for name, title in names.items()
    }
    columns["training, s"] = lambda row: report.seconds(row.values["train_seconds"])
    columns["temperature, s"] = lambda row: report.seconds(row.values["calibrate_seconds"])
    notes = [
        f"Expected calibration error over 15 bins, mean of seeds 1 to {seeds}, {method} on lite0. "
        f"Before: at temperature 1."
    ]
    benchmark.publish(report.table(found, columns), notes)


def run_job(data: str, shots: int, method: str, seed: int) -> dict[str, Any]:
    """Train once; return both errors and the times."""
    import clip_randlora as cr
    from clip_randlora import few_shot

    seconds = 0.0
    usual = few_shot.calibrate

    def timed(*arguments: Any) -> Any:
        nonlocal seconds
        start = time.perf_counter()
        found = usual(*arguments)
        seconds = time.perf_counter() - start
        return found

    few_shot.calibrate = timed
    try:
        config = cr.TrainConfig.parse({"method": method, "shots": shots, "seed": seed})
        metrics = cr.fit(cr.load_model("lite0"), cr.load_data(data), config).metrics
    finally:
        few_shot.calibrate = usual
    before, after = metrics["zero_shot"], metrics["tuned"]
    return {
        "zero_shot": before["ece"],
        "zero_shot_before": before.get("ece_uncalibrated", before["ece"]),
        "tuned": after["ece"],
        "before": after.get("ece_uncalibrated", after["ece"]),
        "temperature": metrics["temperature"]["tuned"],
        "train_seconds": metrics["train_seconds"],
        "calibrate_seconds": seconds,
    }


def _progress(result: Mapping[str, Any]) -> str:
    return f"calibration error {result['before']:.3f}, with the temperature {result['tuned']:.3f}"
