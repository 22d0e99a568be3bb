"""``infer``: images a second of `eval` and `predict` against a bare open_clip loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    require_known,
)
from benchmarks.common.processes import Row
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    import clip_randlora as cr
    from clip_randlora.data import Split

_BATCH = 64  # of the bare loops


@dataclass(frozen=True)
class Loop:
    """A way to classify image files: by one model, or by both; ``batch`` files at a time."""

    label: str
    models: int
    is_bare: bool = False
    workers: bool = False
    batch: int = _BATCH


LOOPS = {
    "bare-both": Loop("open_clip, both models", 2, is_bare=True),
    "bare-both-workers": Loop("open_clip, both models, workers", 2, is_bare=True, workers=True),
    "bare": Loop("open_clip, one model", 1, is_bare=True),
    "bare-workers": Loop("open_clip, one model, workers", 1, is_bare=True, workers=True),
    "eval": Loop("eval: zero-shot and tuned", 2),
    "predict": Loop("predict: zero-shot and tuned", 2),
    "tuned": Loop("tuned alone", 1),
    "bare-both-one": Loop("open_clip, both models", 2, is_bare=True, batch=1),
    "predict-one": Loop("predict", 2, batch=1),
}


def infer(
    data: Annotated[
        str, typer.Option(help="Folder of class folders, or a name, with files on disk.")
    ] = "clipart",
    images: Annotated[
        int, typer.Option(min=1, help="Classified in each round; files are repeated.")
    ] = 512,
    model: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "lite0",
    pretrained: Annotated[
        str | None, typer.Option(help="As for `clip-randlora train`; `none`: random weights.")
    ] = None,
    loop: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(LOOPS)}. Default: all.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all loops.")] = 3,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Images a second of `eval` and `predict` against a bare open_clip loop."""
    require_known("--loop", loop, LOOPS)
    job = {
        "data": data,
        "images": images,
        "model": model,
        "pretrained": pretrained,
        "device": device,
    }
    benchmark = Benchmark("infer", job, out, threads, resume)
    job["workers"] = benchmark.threads
    rows = [
        Row(
            name,
            {"loop": LOOPS[name].label, "answers": str(LOOPS[name].models)},
            "benchmarks.infer:classify_files",
            {**job, "loop": name},
            "one image a call" if LOOPS[name].batch == 1 else f"{_BATCH} images a batch",
        )
        for name in loop or LOOPS
    ]
    found = benchmark.measure(
        rows,
        repeats,
        progress=lambda result: f"{result['images_per_second']:.1f} images a second",
    )
    table = report.table(
        found,
        {
            "at once": lambda row: str(LOOPS[row.key].batch),
            "images a second: median (min - max)": lambda row: report.seconds(
                row.values["images_per_second"]
            ),
            "ratio": lambda row: report.ratio(row, "images_per_second"),
            "peak GB": lambda row: report.gigabytes(row.values["memory"]),
        },
    )
    notes = [
        f"{model}, {images} images a round from the files of {data}, in the system's cache. Class "
        f"features are computed, and {_BATCH} images are classified, before the clock starts. "
        f"Ratios are to the first row with the same number of images at once.",
        f"A bare loop is PIL, open_clip's preprocess and a torch DataLoader: in the process "
        f"itself, or with {benchmark.threads} worker processes, whose start counts.",
        "eval and predict answer zero-shot and tuned, with two passes through the image tower, as "
        "the bare loop of both models does.",
    ]
    figure = report.figure(
        found,
        {"images_per_second": "images a second"},
        lambda row: report.PEER if LOOPS[row.key].is_bare else report.OURS,
    )
    benchmark.publish(table, notes, figure)


def classify_files(
    loop: str,
    data: str,
    images: int,
    model: str,
    pretrained: str | None,
    workers: int,
    device: str | None = None,
) -> dict[str, Any]:
    """Classify image files one way, in this process; return images a second."""
    import clip_randlora as cr
    from clip_randlora.clip.models import DEFAULT_TAG
    from clip_randlora.data import Split

    weights = {None: DEFAULT_TAG, "none": None}.get(pretrained, pretrained)
    test = cr.load_data(data).test
    items = tuple(itertools.islice(itertools.cycle(test.items), images))

    def load() -> cr.Model:
        return cr.load_model(model, weights, device)

    make = _bare_loop if LOOPS[loop].is_bare else _own_loop
    classify = make(loop, load, test.classes, workers)
    classify(Split(items[:_BATCH], test.classes))
    start = time.perf_counter()
    answers = classify(Split(items, test.classes))
    seconds = time.perf_counter() - start
    if answers != images:
        raise RuntimeError(f"{answers} of {images} images were classified")
    return {"seconds": seconds, "images_per_second": images / seconds}


def _own_loop(
    loop: str, load: Callable[[], cr.Model], classes: Sequence[str], _: int
) -> Callable[[Split], int]:
    """Return what classifies a split by this project and counts the answers."""
    from benchmarks.common.tuned import attach_random
    from clip_randlora.classifier import Classifier
    from clip_randlora.data import decode_batches
    from clip_randlora.evaluation import PairedPredictor, predict_split

    model = load()
    adapter, text = attach_random(model, classes)
    pair = PairedPredictor(model, adapter, text)
    classifier = Classifier(model, adapter, text)
    return {
        "eval": lambda split: len(predict_split(pair, split).tuned),
        "predict": lambda split: len(classifier.predict(_paths(split))),
        "predict-one": lambda split: sum(len(classifier.predict([p])) for p in _paths(split)),
        "tuned": lambda split: sum(
            len(pair.tuned_probabilities(batch.images))
            for batch in decode_batches(split, model.square(), 256)
        ),
    }[loop]


def _bare_loop(
    loop: str, load: Callable[[], cr.Model], classes: Sequence[str], workers: int
) -> Callable[[Split], int]:
    """Return the loop that open_clip's users write, which classifies a split and counts it."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.common.tuned import attach_random
    from clip_randlora.clip.text import encode_tokens

    model = load()
    adapter, text = attach_random(model, classes)
    adapter.merge()
    models = [load(), model] if LOOPS[loop].models == 2 else [model]
    with torch.inference_mode():
        heads = [(one.net, encode_tokens(one.net, text.tokens)) for one in models]

    class Files(Dataset):
        def __init__(self, paths: Sequence[Path]):
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return model.preprocess(Image.open(self.paths[index]).convert("RGB"))

    def classify(split: Split) -> int:
        done, count = 0, workers if LOOPS[loop].workers else 0
        for batch in DataLoader(Files(_paths(split)), LOOPS[loop].batch, num_workers=count):
            with torch.inference_mode():
                batch = batch.to(model.device)
                for net, features in heads:
                    images = net.encode_image(batch, normalize=True)
                    answers = (net.logit_scale.exp() * images @ features.T).softmax(dim=-1)
            done += len(answers.cpu())
        return done

    return classify


def _paths(split: Split) -> list[Path]:
    """Return the files of a split.

    Raises:
        UserError: its images are not files.
    """
    paths = [getattr(item.content, "path", None) for item in split]
    if None in paths:
        raise UserError("--data: the images must be files on disk, in class folders")
    return paths
