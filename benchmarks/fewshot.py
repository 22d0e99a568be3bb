"""``fewshot``: the whole job, from the data to a saved run, against probe and full fine-tuning."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.measured import Measured
from benchmarks.common.options import DeviceOption, OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row

_METHODS = ("randlora", "linear_probe", "full")


def fewshot(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, zip or name; may be repeated. Default: clipart and digits."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated. Default: {', '.join(_METHODS)}."),
    ] = None,
    last_blocks: Annotated[
        int | None,
        typer.Option(min=1, help="Also RandLoRA in that many last blocks of each tower."),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training images per class.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to this number.")] = 3,
    model: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "lite0",
    pretrained: Annotated[
        str | None, typer.Option(help="As for `clip-randlora train`; `none`: random weights.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps. Default: by images.")
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Wall time and accuracy of the whole job, from the data to a saved run."""
    job = {
        "shots": shots,
        "model": model,
        "pretrained": pretrained,
        "steps": steps,
        "device": device,
    }
    benchmark = Benchmark("fewshot", job, out, threads, resume)
    methods: dict[str, dict[str, Any]] = {name: {"method": name} for name in method or _METHODS}
    if last_blocks:
        name = f"randlora, last {last_blocks} blocks"
        methods[name] = {"method": "randlora", "blocks": last_blocks}
    rows = [
        Row(
            f"{name} on {source}",
            {"data": source, "method": name},
            "benchmarks.fewshot:run_job",
            {**job, "data": source, "method": settings},
            source,
        )
        for source in data or ("clipart", "digits")
        for name, settings in methods.items()
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return run_row(replace(row, settings=row.settings | {"seed": seed}), benchmark.threads)

    found = benchmark.measure(rows, seeds, run, _progress)
    table = report.table(
        found,
        {
            "zero-shot": lambda row: f"{row.values['zero_shot']['mean']:.1%}",
            "tuned": lambda row: _mean(row.values["tuned"]),
            "whole job, s": lambda row: report.seconds(row.values["seconds"]),
            "time ratio": lambda row: report.ratio(row, "seconds"),
            "training, s": lambda row: report.seconds(row.values["train_seconds"]),
            "peak GB": lambda row: report.gigabytes(row.values["memory"]),
            "trainable parameters": lambda row: f"{row.values['trained']:,}",
            "seeds": lambda row: str(row.values["seconds"]["count"]),
        },
    )
    notes = [
        f"{model}, {shots} shots, seeds 1 to {seeds}. Accuracies are means with the standard "
        f"deviation over the seeds; seconds are medians with smallest and largest; ratios are to "
        f"the first row of the same data. Every seed of every row is a process of its own.",
        "The whole job: read the data, load the model, train, classify the test images zero-shot "
        "and tuned, write the run folder. Importing the libraries is left out.",
    ]
    benchmark.publish(table, notes, _figure(found))


def run_job(
    data: str,
    method: dict[str, Any],
    seed: int,
    shots: int,
    model: str,
    pretrained: str | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Do one whole job in this process; return its times and accuracies."""
    import clip_randlora as cr
    from clip_randlora.clip.models import DEFAULT_TAG

    weights = {None: DEFAULT_TAG, "none": None}.get(pretrained, pretrained)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        labelled = cr.load_data(data)
        loaded = cr.load_model(model, weights, device)
        config = {"method": method, "seed": seed, "shots": shots, "steps": steps}
        run = cr.fit(loaded, labelled, cr.TrainConfig.parse(config), Path(folder) / "run")
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "train_seconds": run.metrics["train_seconds"],
        "zero_shot": run.metrics["zero_shot"]["top1"],
        "tuned": run.metrics["tuned"]["top1"],
        "trained": run.metrics["trainable_parameters"],
    }


def _progress(result: Mapping[str, Any]) -> str:
    return (
        f"{result['seconds']:.1f} s, of it {result['train_seconds']:.1f} s training; zero-shot "
        f"{result['zero_shot']:.1%}, tuned {result['tuned']:.1%}"
    )


def _mean(values: Mapping[str, float]) -> str:
    return f"{values['mean']:.1%} ± {values['deviation']:.1%}"


def _figure(found: Sequence[Measured]) -> Figure | None:
    """Draw accuracy over time for each data set, a point with its range for each method."""
    measured = [row for row in found if row.values]
    sources = list(dict.fromkeys(row.group for row in measured))
    if not sources:
        return None
    names = list(dict.fromkeys(row.label["method"] for row in measured))
    palette = (report.OURS, report.PEER, report.BOUND, "#d97706", "#7c3aed", "#be185d")
    figure = Figure(figsize=(4.8 * len(sources), 4.1), layout="constrained")
    panels = figure.subplots(1, len(sources), squeeze=False)[0]
    for plot, source in zip(panels, sources, strict=True):
        rows = [row for row in measured if row.group == source]
        for row in rows:
            times, tuned = row.values["seconds"], row.values["tuned"]
            x, y, name = times["median"], tuned["mean"], row.label["method"]
            plot.errorbar(
                x,
                y,
                xerr=[[x - times["min"]], [times["max"] - x]],
                yerr=[[y - tuned["min"]], [tuned["max"] - y]],
                fmt="o",
                capsize=3,
                color=palette[names.index(name) % len(palette)],
                label=name,
            )
        zero_shot = rows[0].values["zero_shot"]["mean"]
        plot.axhline(zero_shot, color="black", linestyle=":", linewidth=1, label="zero-shot")
        plot.set(
            xlabel="whole job, seconds",
            ylabel="top-1 on the test images",
            xlim=(0, 1.1 * max(row.values["seconds"]["max"] for row in rows)),
            ylim=(0, 1),
            title=Path(source).name,
        )
        plot.spines[["top", "right"]].set_visible(False)
        plot.legend(loc="lower right", fontsize=8, frameon=False)
    return figure
