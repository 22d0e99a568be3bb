"""``retrieval``: how well a text finds its images, before and after a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption
from benchmarks.common.processes import Row, run_row

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATES = ("{}", "a photo of a {}.", "a picture of a {}.", "this is a {}.")
"""Each class name in each of these is a query. The runs are trained with the second alone."""

STRENGTHS = {"before": 0.0, "half of the update": 0.5, "after": 1.0}
SCORES = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "P@10": "P@10", "map": "average precision"}
_ASKED = {"all": "trained", "novel": "not trained"}


def retrieval(
    data: Annotated[
        list[str] | None,
        typer.Option(help="As for train; may be repeated. Default: clipart and digits."),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training images of a class.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds from 1 to this number.")] = 3,
    method: Annotated[
        str, typer.Option(help="As for train; one that tunes encoders.")
    ] = "randlora",
    model: Annotated[str, typer.Option(help="As for train.")] = "lite0",
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Search the test images by class names, of classes that were trained and of others."""
    settings = {"shots": shots, "method": method, "model": model}
    benchmark = Benchmark("retrieval", settings, out, threads, resume)
    rows = [
        Row(
            f"{source}, {asked}",
            {"data": Path(source).name, "classes": _ASKED[asked]},
            "benchmarks.retrieval:run_job",
            {"data": source, "asked": asked, **settings},
        )
        for asked in _ASKED
        for source in data or ("clipart", "digits")
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return run_row(replace(row, settings=row.settings | {"seed": seed}), benchmark.threads)

    found = benchmark.measure(rows, seeds, run, _progress)
    lines = []
    for row in found:
        if row.failed:
            lines.append([*row.label.values(), f"failed: {row.failed}", *[""] * len(SCORES)])
            continue
        for title in STRENGTHS:
            cells = [_percent(row.values[f"{title} {name}"]) for name in SCORES]
            lines.append([*row.label.values(), title, *cells])
    columns = ["data", "classes", "features", *SCORES.values()]
    notes = [
        f"{model} with {method}, {shots} images of a class, seeds 1 to {seeds}: mean and standard "
        f"deviation in percent. A query is a class name in one of {len(TEMPLATES)} templates: "
        f"{', '.join(map(repr, TEMPLATES))}. The training had {TEMPLATES[1]!r} alone.",
        "R@k: the share of the queries with an image of their class among the first k. P@10: of "
        "the first ten images, those of the class. Mean average precision counts all images of "
        "the class, each by the share of right ones up to it.",
        "Not trained: the run is trained on the first half of the classes, and the others are "
        "searched for, among the test images of all classes.",
    ]
    benchmark.publish(report.markdown_table(columns, lines), notes)


def _percent(values: Mapping[str, float]) -> str:
    return f"{100 * values['mean']:.1f} ± {100 * values['deviation']:.1f}"


def _progress(result: Mapping[str, Any]) -> str:
    before, after = (result[f"{which} map"] for which in ("before", "after"))
    return f"mean average precision {before:.3f} before, {after:.3f} after"


def run_job(
    data: str, asked: str, shots: int, method: str, model: str, seed: int
) -> dict[str, Any]:
    """Train once, and search the test images before and after."""
    import torch

    import clip_randlora as cr
    from clip_randlora.clip.prompts import class_words
    from clip_randlora.data.class_halves import select_classes

    whole = cr.load_data(data)
    trained = whole if asked == "all" else select_classes(whole, "base")
    settings = {"method": method, "shots": shots, "seed": seed, "calibrate": False}
    config = cr.TrainConfig.parse(settings)  # the temperature changes no feature
    run = cr.fit(cr.load_model(model), trained, config)
    classifier = cr.Classifier(run.model, run.adapter, run.text)
    classes = whole.classes if asked == "all" else select_classes(whole, "novel").classes
    words = class_words(whole.classes, whole.prompts)
    queries = [
        (whole.classes.index(name), template.format(words[name][0]))
        for name in classes
        for template in TEMPLATES
    ]
    of_query = torch.tensor([label for label, _ in queries])
    relevant = of_query[:, None] == whole.test.labels
    result: dict[str, Any] = {"queries": len(queries), "images": len(whole.test)}
    for title, strength in STRENGTHS.items():
        images = classifier.encode_images(list(whole.test), strength)
        texts = classifier.encode_texts([text for _, text in queries], strength)
        scores = search_scores(texts @ images.T, relevant)
        result |= {f"{title} {name}": value for name, value in scores.items()}
    return result


def search_scores(similarity: Tensor, relevant: Tensor) -> dict[str, float]:
    """Return the `SCORES` of queries.

    Args:
        similarity: of Q queries and N images, float (Q, N).
        relevant: which images each query is to find, bool (Q, N); at least one each.
    """
    import torch

    hits = relevant.gather(1, similarity.argsort(dim=1, descending=True)).double()
    precision = hits.cumsum(dim=1) / torch.arange(1, hits.shape[1] + 1)
    scores = {f"R@{k}": float(hits[:, :k].amax(dim=1).mean()) for k in (1, 5, 10)}
    scores["P@10"] = float(hits[:, :10].mean())
    return {**scores, "map": float(((precision * hits).sum(dim=1) / hits.sum(dim=1)).mean())}
