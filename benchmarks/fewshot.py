"""``fewshot``: the whole job, from the data to a saved run, against probe and full fine-tuning."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    folder_of,
    threads_of,
)
from benchmarks.common.processes import Row, measure_rounds, run_row
from benchmarks.common.results import Results, spread

_METHODS = ("randlora", "linear_probe", "full")
_LAST_HALF = "randlora, last half of the blocks"


def fewshot(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, zip or name; may be repeated. Default: clipart and digits."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated. Default: {', '.join(_METHODS)}."),
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
    blocks_compare: Annotated[
        bool,
        typer.Option(
            "--blocks-compare", help="Also RandLoRA in the last half of each tower's blocks."
        ),
    ] = False,
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
    threads = threads_of(threads)
    results = Results("fewshot", folder_of("fewshot", out), {**job, "threads": threads}, resume)
    methods = {name: {"method": name} for name in method or _METHODS}
    if blocks_compare:
        methods[_LAST_HALF] = {"method": "randlora", "last_half": True}
    # a seed is a round: the first of every method, then the second of every method
    for seed in range(1, seeds + 1):
        rows = [
            Row(f"{name} on {source}, seed {seed}", "benchmarks.fewshot:run_job", settings)
            for source in data or ("clipart", "digits")
            for name, chosen in methods.items()
            for settings in [{**job, **chosen, "data": source, "seed": seed}]
        ]
        measure_rounds(rows, 1, results, lambda row: run_row(row, threads), _progress)
    found = summarize(results)
    report.publish(
        results,
        threads,
        [_table(found)],
        [
            f"{model}, {shots} shots, seeds 1 to {seeds}: means, with the standard deviation over "
            f"the seeds for accuracies, and medians with smallest and largest for seconds. Every "
            f"seed of every row is a process of its own.",
            "The whole job: read the data, load the model, train, classify the test images zero-"
            "shot and tuned, write the run folder. Importing the libraries is left out.",
        ],
        _figure(found),
        {"rows": found},
    )


def run_job(
    data: str,
    method: str,
    seed: int,
    shots: int,
    model: str,
    pretrained: str | None = None,
    steps: int | None = None,
    last_half: bool = False,
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
        settings: dict[str, Any] = {"method": method}
        if last_half:
            settings["blocks"] = math.ceil(deepest_tower(loaded) / 2)
        config = {"method": settings, "seed": seed, "shots": shots, "steps": steps}
        run = cr.fit(loaded, labelled, cr.TrainConfig.parse(config), Path(folder) / "run")
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "train_seconds": run.metrics["train_seconds"],
        "zero_shot": run.metrics["zero_shot"]["top1"],
        "tuned": run.metrics["tuned"]["top1"],
        "steps": run.metrics.get("steps"),
        "trained": run.metrics["trainable_parameters"],
        "images": run.metrics["images"],
        "blocks": settings.get("blocks"),
    }


def deepest_tower(model: Any) -> int:
    """Return the number of blocks in the deeper of the two towers."""
    import clip_randlora as cr

    return 1 + max(weight.block for weight in cr.find_weights(model.net))


def summarize(results: Results) -> list[dict[str, Any]]:
    """Put the seeds of each row together."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sample in results.samples:
        settings = sample["settings"]
        name = _LAST_HALF if settings.get("last_half") else settings["method"]
        groups.setdefault((settings["data"], name), []).append(sample)
    found = []
    for (source, name), samples in groups.items():
        row: dict[str, Any] = {"data": source, "method": name}
        done = [sample["result"] for sample in samples if "result" in sample]
        if not done:
            found.append(row | {"failed": samples[0]["failed"]})
            continue
        row |= {key: spread(one[key] for one in done) for key in ("seconds", "train_seconds")}
        row["memory"] = spread(one["peak_memory_bytes"] for one in done)
        for which in ("zero_shot", "tuned"):
            tops = [one[which] for one in done]
            row[which] = {
                "mean": mean(tops),
                "deviation": stdev(tops) if len(tops) > 1 else 0.0,
                "values": tops,
            }
        row |= {"trained": done[0]["trained"], "blocks": done[0]["blocks"], "seeds": len(done)}
        found.append(row)
    return found


def _progress(result: Mapping[str, Any]) -> str:
    return (
        f"{result['seconds']:.1f} s, of it {result['train_seconds']:.1f} s training; zero-shot "
        f"{result['zero_shot']:.1%}, tuned {result['tuned']:.1%}"
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['method']} ({row['blocks']})" if row.get("blocks") else row["method"]


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    columns = ("data", "method", "zero-shot", "tuned", "whole job, s", "training, s")
    columns += ("peak GB", "trained numbers", "seeds")
    lines = []
    for row in sorted(found, key=lambda row: row["data"]):
        start = [row["data"], _name(row)]
        if "failed" in row:
            lines.append([*start, f"failed: {row['failed']}", *[""] * (len(columns) - 3)])
            continue
        tuned = row["tuned"]
        lines.append(
            [
                *start,
                f"{row['zero_shot']['mean']:.1%}",
                f"{tuned['mean']:.1%} ± {tuned['deviation']:.1%}",
                report.seconds(row["seconds"]),
                report.seconds(row["train_seconds"]),
                report.gigabytes(row["memory"]["median"]),
                f"{row['trained']:,}",
                str(row["seeds"]),
            ]
        )
    return report.markdown_table(columns, lines)


def _figure(found: Sequence[Mapping[str, Any]]) -> Figure | None:
    measured = [row for row in found if "seconds" in row]
    sources = list(dict.fromkeys(row["data"] for row in measured))
    if not sources:
        return None
    names = list(dict.fromkeys(row["method"] for row in measured))
    palette = (report.OURS, report.PEER, report.BOUND, "#d97706", "#7c3aed", "#be185d")
    figure = Figure(figsize=(4.8 * len(sources), 4.1), layout="constrained")
    for plot, source in zip(
        figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True
    ):
        rows = [row for row in measured if row["data"] == source]
        for row in rows:
            values, times = row["tuned"]["values"], row["seconds"]
            middle = row["tuned"]["mean"]
            plot.errorbar(
                times["median"],
                middle,
                xerr=[[times["median"] - times["min"]], [times["max"] - times["median"]]],
                yerr=[[middle - min(values)], [max(values) - middle]],
                fmt="o",
                capsize=3,
                color=palette[names.index(row["method"]) % len(palette)],
                label=_name(row),
            )
        zero_shot = rows[0]["zero_shot"]["mean"]
        plot.axhline(zero_shot, color="black", linestyle=":", linewidth=1, label="zero-shot")
        plot.set(
            xlabel="whole job, seconds",
            ylabel="top-1 on the test images",
            xlim=(0, 1.1 * max(row["seconds"]["max"] for row in rows)),
            ylim=(0, 1),
            title=Path(source).name,
        )
        plot.spines[["top", "right"]].set_visible(False)
    named: dict[str, Any] = {}
    for plot in figure.axes:
        named |= dict(zip(*reversed(plot.get_legend_handles_labels()), strict=True))
    place = {"loc": "outside lower center", "ncols": 4, "fontsize": 8, "frameon": False}
    figure.legend(named.values(), named, **place)
    return figure
