"""``check``: how many exchanged labels are found, and how many of those listed were exchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import DeviceOption, OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row

_SURE = 0.5
_LIST = 1.5  # times as many as were exchanged are looked at


def check(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, zip or name; may be repeated. Default: clipart."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of the labels that is exchanged.")
    ] = 0.05,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to this number.")] = 5,
    model: Annotated[str, typer.Option(help="As for `clip-randlora check`.")] = "lite0",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Exchange some labels by chance, and look for them by `check_images`."""
    job = {"share": share, "model": model, "device": device}
    benchmark = Benchmark("check", job, out, threads, resume)
    rows = [
        Row(source, {"data": source}, "benchmarks.check:find_exchanged", {**job, "data": source})
        for source in data or ["clipart"]
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return run_row(replace(row, settings=row.settings | {"seed": seed}), benchmark.threads)

    found = benchmark.measure(rows, seeds, run, _progress)
    table = report.table(
        found,
        {
            "images": lambda row: f"{row.values['images']}",
            "exchanged": lambda row: f"{row.values['exchanged']}",
            "listed": lambda row: f"{row.values['listed']['mean']:.0f}",
            "of the exchanged, among the first 1.5 x": lambda row: _mean(row, "recall"),
            "of the first 1.5 x, exchanged (at most 67 %)": lambda row: _mean(row, "precision"),
            "at least 50 % sure": lambda row: f"{row.values['sure']['mean']:.0f}",
            "of those 50 % sure, exchanged": lambda row: _mean(row, "precision_of_sure"),
            "of all listed, exchanged": lambda row: _mean(row, "precision_of_all"),
            "of the exchanged, listed": lambda row: _mean(row, "recall_of_all"),
            "right suggestion": lambda row: _mean(row, "right"),
        },
    )
    notes = [
        f"{model}; {share:.0%} of the labels, of training and test images alike, are exchanged for "
        f"another class by chance; seeds 1 to {seeds}. Means with the standard deviation.",
        "The first 1.5 x: of the list of likely wrong labels, one and a half times as many as were "
        "exchanged, so that at most two thirds of them can be exchanged ones.",
        "Labels that were wrong before count as false alarms.",
    ]
    benchmark.publish(table, notes)


def find_exchanged(
    data: str, seed: int, share: float, model: str, device: str | None = None
) -> dict[str, Any]:
    """Exchange labels of a set, check it, and count."""
    import clip_randlora as cr

    labelled = cr.load_data(data, check=False)
    wrong = exchange_labels(labelled, share, seed)
    findings = cr.check_images(wrong, cr.load_model(model, device=device))
    true_labels = {
        id(given): original.label
        for before, after in ((labelled.train, wrong.train), (labelled.test, wrong.test))
        for original, given in zip(before, after, strict=True)
    }
    true = [true_labels[id(item)] for item in findings.items]
    exchanged = {i for i, item in enumerate(findings.items) if item.label != true[i]}
    listed = findings.wrong_labels
    first = listed[: round(_LIST * len(exchanged))]
    hits = [found for found in first if found.index in exchanged]
    all_hits = [found for found in listed if found.index in exchanged]
    sure = [found.index in exchanged for found in listed if found.certainty >= _SURE]
    return {
        "images": len(true),
        "exchanged": len(exchanged),
        "listed": float(len(listed)),
        "recall": len(hits) / len(exchanged),
        "precision": len(hits) / max(len(first), 1),
        "recall_of_all": len(all_hits) / len(exchanged),
        "precision_of_all": len(all_hits) / max(len(listed), 1),
        "sure": float(len(sure)),
        "precision_of_sure": sum(sure) / max(len(sure), 1),
        "right": sum(f.suggested == true[f.index] for f in all_hits) / max(len(all_hits), 1),
    }


def exchange_labels(data: Any, share: float, seed: int) -> Any:
    """Return the data with a share of its labels, of both splits, exchanged for other classes."""
    items = [*data.train, *data.test]
    random = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(items), generator=random)[: round(share * len(items))]
    steps = torch.randint(1, len(data.classes), (len(rows),), generator=random)
    for row, step in zip(rows.tolist(), steps.tolist(), strict=True):
        label = (items[row].label + step) % len(data.classes)
        items[row] = replace(items[row], label=label)
    count = len(data.train)
    return replace(
        data,
        train=replace(data.train, items=tuple(items[:count])),
        test=replace(data.test, items=tuple(items[count:])),
    )


def _progress(result: dict[str, Any]) -> str:
    return f"{result['recall']:.1%} of {result['exchanged']} found, {result['listed']:.0f} listed"


def _mean(row: Any, name: str) -> str:
    values = row.values[name]
    return f"{values['mean']:.1%} ± {values['deviation']:.1%}"
