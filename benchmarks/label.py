"""``label``: which images to label first, against drawing them; and the rate of labelling many."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import clip_randlora as cr
from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.images import CLIPART
from benchmarks.common.many_files import make_links
from benchmarks.common.measured import Measured
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption, require_known
from benchmarks.common.processes import Row, run_row
from clip_randlora.adapters.heads.anchored_head import fit_class_vectors
from clip_randlora.data.inputs import each_input

_LABELS = (1, 2, 4, 8)  # of a class, on average
_POOL = 0.8  # share of the training images that a seed draws as the images without labels
_DRAWS = 10  # random choices that are averaged for a seed
_STRENGTH = 0.1  # of the anchored head's penalty: its default
_RATE_CLASSES = 10


@dataclass(frozen=True)
class Pool:
    """What a strategy knows: unit features (N, E), probabilities (N, C), and what has labels.

    Attributes:
        chosen: rows that have labels, in the order in which they were chosen.
        labels: their classes.
        seed: of draws.
    """

    features: Tensor
    probabilities: Tensor
    chosen: list[int]
    labels: Tensor
    seed: int

    def free(self) -> Tensor:
        """Return the rows without labels, in a random order."""
        order = torch.randperm(
            len(self.features), generator=torch.Generator().manual_seed(self.seed)
        )
        return order[~torch.isin(order, torch.tensor(self.chosen, dtype=torch.int64))]


def _random(pool: Pool, count: int) -> list[int]:
    return pool.free()[:count].tolist()


def _suggested(pool: Pool, count: int, is_weighted: bool = True) -> list[int]:
    free = pool.free().sort().values
    known = pool.features[pool.chosen]
    probabilities = pool.probabilities[free] if is_weighted else None
    rows = cr.suggest_next(pool.features[free], probabilities, count, known, pool.labels)
    return free[rows].tolist()


def _coverage_alone(pool: Pool, count: int) -> list[int]:
    return _suggested(pool, count, is_weighted=False)


def _margin(pool: Pool, count: int) -> list[int]:
    """Choose the smallest differences between the two largest probabilities."""
    free = pool.free()
    first, second = pool.probabilities[free].topk(2).values.T
    return free[(first - second).argsort()[:count]].tolist()


def _badge(pool: Pool, count: int) -> list[int]:
    """Draw as k-means++ does, by gradients (Ash et al., ICLR 2020, arXiv 1906.03671)."""
    free = pool.free()
    errors = pool.probabilities[free].clone()
    errors[torch.arange(len(free)), errors.argmax(dim=1)] -= 1
    features = pool.features[free]
    products = (errors @ errors.T) * (features @ features.T)
    squares = products.diagonal()
    generator = torch.Generator().manual_seed(pool.seed)
    rows = [int(squares.argmax())]
    while len(rows) < count:
        distances = squares[:, None] + squares[rows] - 2 * products[:, rows]
        weights = distances.amin(dim=1).clamp(min=1e-12)
        weights[rows] = 0
        rows.append(int(torch.multinomial(weights, 1, generator=generator)))
    return free[rows].tolist()


def _typiclust(pool: Pool, count: int) -> list[int]:
    """Choose the most typical image of each of the largest clusters (arXiv 2202.02794)."""
    from sklearn.cluster import KMeans

    clusters = len(pool.chosen) + count
    fitted = KMeans(clusters, n_init=3, random_state=pool.seed).fit(pool.features.numpy())
    cluster = torch.from_numpy(fitted.labels_).long()
    distances = torch.cdist(pool.features, pool.features)
    sizes = torch.bincount(cluster, minlength=clusters)
    sizes[cluster[pool.chosen]] = 0  # something there is labelled
    rows = []
    for number in sizes.argsort(descending=True)[:count].tolist():
        members = (cluster == number).nonzero().flatten()
        members = members[~torch.isin(members, torch.tensor(pool.chosen, dtype=torch.int64))]
        if len(members):
            near = distances[members][:, members].topk(min(21, len(members)), largest=False)
            rows.append(int(members[near.values.mean(dim=1).argmin()]))
    return list(dict.fromkeys([*rows, *pool.free().tolist()]))[:count]


STRATEGIES: dict[str, Callable[[Pool, int], list[int]]] = {
    "random": _random,
    "suggest_next": _suggested,
    "suggest_next without probabilities": _coverage_alone,
    "TypiClust": _typiclust,
    "BADGE": _badge,
    "smallest margin": _margin,
}


def label(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, zip or name; may be repeated. Default: clipart and digits."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated: {', '.join(STRATEGIES)}. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to this number.")] = 5,
    model: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "lite0",
    speed: Annotated[bool, typer.Option("--speed", help="Measure the rate instead.")] = False,
    images: Annotated[int, typer.Option(min=10, help="With --speed: how many.")] = 20_000,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Accuracy by which images are labelled first; with --speed, the rate of labelling many."""
    if speed:
        _measure_speed(Benchmark("label-speed", {"images": images}, out, threads, resume), images)
        return
    require_known("--strategy", strategy, STRATEGIES)
    benchmark = Benchmark("label", {"model": model}, out, threads, resume)
    torch.set_num_threads(benchmark.threads)
    rows = [
        Row(
            f"{name} on {source}",
            {"data": Path(source).name, "labelled first": name},
            settings={"data": source, "strategy": name},
            group=source,
        )
        for source in data or ("clipart", "digits")
        for name in dict.fromkeys(["random", *(strategy or STRATEGIES)])
    ]

    def run(row: Row, seed: int) -> dict[str, Any]:
        return {"result": measure(**row.settings, seed=seed, model=model)}

    found = benchmark.measure(rows, seeds, run, _progress)
    columns = {
        f"{count} a class": lambda row, count=count: _difference(row, f"labels_{count}")
        for count in _LABELS
    }
    notes = [
        f"{model}, seeds 1 to {seeds}: top-1 on the test images, and the difference from labels "
        f"given at random (mean of {_DRAWS} draws a seed) in percentage points. A seed draws "
        f"{_POOL:.0%} of the training images as those without labels; the next labels are chosen "
        f"when the ones before are known and trained on.",
        "Trained is the anchored head, on features that are encoded once.",
    ]
    benchmark.publish(report.table([*found, *_means(found)], columns), notes)


def _means(found: Sequence[Measured]) -> list[Measured]:
    """Return a row for the mean of each strategy over the data sets."""
    means = []
    for name in dict.fromkeys(row.label["labelled first"] for row in found):
        rows = [row for row in found if row.label["labelled first"] == name]
        values, first = (
            {
                quantity: {"mean": sum(of[quantity]["mean"] for of in each) / len(each)}
                for quantity in rows[0].values
            }
            for each in ([row.values for row in rows], [row.first for row in rows])
        )
        label = {"data": "mean", "labelled first": name}
        means.append(Measured(f"mean {name}", "mean", label, {}, values, None, first))
    return means


def _difference(row: Measured, quantity: str) -> str:
    mine, first = row.values[quantity]["mean"], row.first[quantity]["mean"]
    added = "" if row.label["labelled first"] == "random" else f" ({100 * (mine - first):+.1f})"
    return f"{mine:.1%}{added}"


def _progress(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{result[f'labels_{count}']:.1%}" for count in _LABELS)


# --- accuracy ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """A data set with the unit features of its images, and what turns features into answers."""

    data: cr.Data
    train: Tensor
    test: Tensor
    text: Tensor
    scale: float


@cache
def _encode(source: str, model: str) -> _Set:
    loaded, data = cr.load_model(model), cr.load_data(source)
    classifier = cr.Classifier.zero_shot(loaded, data.classes, data.templates or None, data.prompts)
    splits = []
    for split in (data.train, data.test):
        batches = classifier.encode_and_classify(each_input(split.items, lambda left_out: None))
        splits.append(torch.cat([b.rows[0].float().cpu() for b in batches if b.rows is not None]))
    with torch.inference_mode():
        text, scale = classifier.text.features().float().cpu(), float(loaded.logit_scale())
    return _Set(data, splits[0], splits[1], text, scale)


def measure(data: str, strategy: str, seed: int, model: str = "lite0") -> dict[str, float]:
    """Return the top-1 on the test images after each number of labels, chosen by a strategy."""
    of = _encode(data, model)
    draws = _DRAWS if strategy == "random" else 1
    runs = [_label_and_train(of, strategy, seed, draw) for draw in range(draws)]
    return {f"labels_{count}": sum(run[count] for run in runs) / draws for count in _LABELS}


def _label_and_train(of: _Set, strategy: str, seed: int, draw: int) -> dict[int, float]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(of.train), generator=generator)[: int(_POOL * len(of.train))]
    features, labels = of.train[rows], of.data.train.labels[rows]
    weight, found = of.text, {}
    chosen: list[int] = []
    for count in _LABELS:
        probabilities = (of.scale * features @ weight.T).softmax(dim=1)
        pool = Pool(features, probabilities, chosen, labels[chosen], 1000 * seed + draw)
        chosen = chosen + STRATEGIES[strategy](pool, count * len(of.text) - len(chosen))
        weight, _ = fit_class_vectors(
            features[chosen], labels[chosen], of.text, of.scale, _STRENGTH / count
        )
        answers = (of.test @ weight.T).argmax(dim=1)
        found[count] = float((answers == of.data.test.labels).double().mean())
    return found


# --- rate -------------------------------------------------------------------------------------


def _measure_speed(benchmark: Benchmark, images: int) -> None:
    """Compare the rate of label with that of predict, and its memory at two sizes."""
    with tempfile.TemporaryDirectory() as root:
        for count in (images // 10, images):
            make_links(Path(root) / str(count), count, _RATE_CLASSES)

        def row(way: str, count: int) -> Row:
            settings = {"way": way, "folder": str(Path(root) / str(count) / "data")}
            name = {"way": way, "images": f"{count:,}"}
            return Row(f"{way} {count}", name, "benchmarks.label:answer_all", settings, "all")

        rows = [row("predict", images), row("label", images), row("label", images // 10)]
        found = benchmark.measure(
            rows,
            1,
            lambda row, _: run_row(row, benchmark.threads),
            lambda result: f"{result['images_per_second']:.1f} images a second",
        )
    columns = {
        "images a second": lambda row: f"{row.values['images_per_second']['median']:.1f}",
        "ratio": lambda row: report.ratio(row, "images_per_second"),
        "peak GB": lambda row: report.gigabytes(row.values["memory"]),
    }
    notes = [
        "lite0 with RandLoRA, 10 classes; hard links to small JPEGs. predict answers zero-shot and "
        "tuned and writes every probability; label answers tuned, writes the CSV and chooses 100 "
        "images to label next. Loading the model is left out.",
    ]
    benchmark.publish(report.table(found, columns), notes)


def answer_all(way: str, folder: str) -> dict[str, float]:
    """Classify all images of a folder in this process, and write a CSV."""
    from benchmarks.common.tuned import attach_random
    from clip_randlora.utils.outputs import write_csv

    loaded = cr.load_model("lite0")
    classes = sorted(path.name for path in (CLIPART / "test").iterdir())[:_RATE_CLASSES]
    classifier = cr.Classifier(loaded, *attach_random(loaded, classes))
    classifier.predict(next((CLIPART / "test").rglob("*.*")))  # forms the tuned weights
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        if way == "predict":
            answers = classifier.predict_each(folder)
            rows = ([name, *answer["tuned"].values()] for name, answer in answers)
            write_csv(Path(out) / "answers.csv", ["image", *classes], rows)
        else:
            labelling = cr.label_images(classifier, folder, suggest=100)
            labelling.write_csv(Path(out) / "answers.csv")
        seconds = time.perf_counter() - start
        with open(Path(out) / "answers.csv", encoding="utf-8") as file:
            count = sum(1 for _ in file) - 1
    return {"seconds": seconds, "images_per_second": count / seconds}
