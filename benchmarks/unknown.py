"""``unknown``: how well a run tells images of its classes from images of none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row

SCORES = {
    "softmax": "maximum softmax at the run's temperature",
    "logit": "largest logit",
    "energy": "energy",
    "concept": "maximum concept match (softmax of the cosines)",
    "neighbour": "nearest training image, zero-shot features",
    "score": "margin and nearest training image: the default",
}


def unknown(
    data: Annotated[list[str] | None, typer.Option(help="As for train. Default: two sets.")] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training images of a class.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds from 1 to this number.")] = 3,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train on a random half of the classes; the test images of the others are of none of them."""
    benchmark = Benchmark("unknown", {"shots": shots}, out, threads, resume)
    rows = [
        Row(
            source, {"data": source}, "benchmarks.unknown:run_job", {"data": source, "shots": shots}
        )
        for source in data or ("clipart", "digits")
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return run_row(replace(row, settings=row.settings | {"seed": seed}), benchmark.threads)

    found = [row for row in benchmark.measure(rows, seeds, run, _progress) if row.values]
    lines = ["| answers | score | " + " | ".join(row.label["data"] for row in found) + " | mean |"]
    lines.append("|" + "---|" * (len(found) + 3))
    for which in ("zero_shot", "tuned"):
        for name, title in SCORES.items():
            if which == "zero_shot" and name == "neighbour":
                continue  # it asks no answer
            pairs = [
                [row.values[f"{which} {name} {figure}"]["mean"] for figure in ("auroc", "fpr95")]
                for row in found
            ]
            pairs.append([sum(column) / len(pairs) for column in zip(*pairs, strict=True)])
            cells = " | ".join(f"{auroc:.3f} / {fpr:.0%}" for auroc, fpr in pairs)
            lines.append(f"| {which.replace('_', '-')} | {title} | {cells} |")
    kept = ", ".join(f"{row.label['data']} {row.values['kept']['mean']:.0%}" for row in found)
    notes = [
        f"AUROC, and the share of images of no class that pass where 95 % of the others do. "
        f"{shots} images of a class, seeds 1 to {seeds}; half of the classes, drawn by the seed.",
        f"The run's own threshold is to keep 95 % of the right answers. It kept: {kept}.",
    ]
    benchmark.publish("\n".join(lines), notes)


def run_job(data: str, shots: int, seed: int) -> dict[str, Any]:
    """Train on half of the classes; return AUROC and false positives for every score."""
    import tempfile
    from pathlib import Path

    import torch
    from torch import Tensor

    import clip_randlora as cr
    from clip_randlora.confidence.unknown import detection, margins, nearest
    from clip_randlora.data import Split, decode_batches
    from clip_randlora.evaluation import BATCH

    whole, model = cr.load_data(data), cr.load_model("lite0")
    count = len(whole.classes)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    known = sorted(order[: count // 2])
    new, names = (
        {label: place for place, label in enumerate(known)},
        [whole.classes[i] for i in known],
    )

    def select(split: Split) -> Split:
        items = (replace(item, label=new[item.label]) for item in split if item.label in new)
        return Split(tuple(items), tuple(names))

    half = replace(
        whole,
        classes=tuple(names),
        train=select(whole.train),
        test=select(whole.test),
        prompts={name: own for name, own in whole.prompts.items() if name in names},
    )
    with tempfile.TemporaryDirectory() as folder:
        run = cr.fit(model, half, cr.TrainConfig(shots=shots, seed=seed), Path(folder) / "run")
        run.adapter.detach()
        classifier = cr.Classifier.load(Path(folder) / "run", model=model)
    both, neighbours_of = classifier.side_by_side(), classifier.known
    assert neighbours_of is not None
    scale = float(model.logit_scale())

    def score(split: Split) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for batch in decode_batches(split, model.square(), BATCH):
            before, after = both.features(batch.images)
            near = nearest(before.float().cpu(), neighbours_of)
            for which, features in (("zero_shot", before), ("tuned", after)):
                logits = both.logits(features, tuned=which == "tuned").cpu()
                temperature = getattr(run.confidence, which)
                for name, values in {
                    "softmax": (logits / temperature).softmax(dim=1).max(dim=1).values,
                    "logit": logits.max(dim=1).values,
                    "energy": logits.logsumexp(dim=1),
                    "concept": (logits / scale).softmax(dim=1).max(dim=1).values,
                    "neighbour": near,
                    "score": margins(logits) / scale + near,
                }.items():
                    parts.setdefault(f"{which} {name}", []).append(values)
        return {name: torch.cat(values) for name, values in parts.items()}

    others = Split(tuple(item for item in whole.test if item.label not in new), whole.classes)
    inside, outside = score(half.test), score(others)
    result = {
        f"{name} {figure}": value
        for name in inside
        for figure, value in detection(inside[name], outside[name]).items()
    }
    kept = inside["tuned score"] >= classifier.unknown_threshold
    return {**result, "kept": float(kept.double().mean())}


def _progress(result: Mapping[str, Any]) -> str:
    ours, softmax = (result[f"tuned {name} auroc"] for name in ("score", "softmax"))
    return f"AUROC {ours:.3f}, of maximum softmax {softmax:.3f}"
