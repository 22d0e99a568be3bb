"""``infer``: images a second of `eval` and `predict` against a bare open_clip loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from benchmarks.common.ratios import Ratio
from benchmarks.common.results import Results, spread

_TARGET = 0.9
_BATCH = 64  # of the bare loops


@dataclass(frozen=True)
class Loop:
    """A way to classify image files, ``batch`` at a time where that is said.

    ``models`` is how many answer: 1, or 2 for both.
    """

    label: str
    models: int
    owner: str
    workers: bool = False
    batch: int = _BATCH


LOOPS = {
    "eval": Loop("eval: zero-shot and tuned", 2, "ours"),
    "predict": Loop("predict: zero-shot and tuned", 2, "ours"),
    "tuned": Loop("tuned alone", 1, "ours"),
    "bare": Loop("open_clip, one model", 1, "peer"),
    "bare-workers": Loop("open_clip, one model, workers", 1, "peer", workers=True),
    "bare-both": Loop("open_clip, both models", 2, "peer"),
    "bare-both-workers": Loop("open_clip, both models, workers", 2, "peer", workers=True),
    "predict-one": Loop("predict, one image a call", 2, "ours", batch=1),
    "bare-both-one": Loop("open_clip, both models, one image a call", 2, "peer", batch=1),
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
    from clip_randlora.errors import UserError

    for name in loop or ():
        if name not in LOOPS:
            raise UserError(f"--loop {name}: one of {', '.join(LOOPS)}")
    threads = threads_of(threads)
    job = {
        "data": data,
        "images": images,
        "model": model,
        "pretrained": pretrained,
        "workers": threads,
        "device": device,
    }
    results = Results("infer", folder_of("infer", out), {**job, "threads": threads}, resume)
    rows = [
        Row(name, "benchmarks.infer:classify_files", {**job, "loop": name})
        for name in loop or LOOPS
    ]
    measure_rounds(rows, repeats, results, lambda row: run_row(row, threads), _progress)
    found = summarize(results)
    compared = compare(found)
    report.publish(
        results,
        threads,
        [
            _table(found),
            report.ratio_table(compared),
        ],
        [
            f"{model}, {images} images a round from the files of {data}, which are in the "
            f"system's cache; class features are ready, and {_BATCH} images are classified "
            f"before the clock starts.",
            "A bare loop is PIL, open_clip's preprocess and a torch DataLoader with batches of "
            f"{_BATCH}, or of one image where that is said: in the process itself, or with "
            f"{threads} worker processes, whose start counts. Ratios are to the faster of the two.",
            "eval answers zero-shot and tuned, which takes two passes through the image tower: "
            "the bare loop of both models does the same work; that of one model does half of it.",
        ],
        _figure(found),
        {
            "rows": found,
            "ratios": [{"line": line, **ratio.as_json()} for line, ratio in compared],
        },
    )


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
    classify = _make_loop(
        loop, lambda: cr.load_model(model, weights, device), test.classes, workers
    )
    classify(Split(items[:_BATCH], test.classes))
    start = time.perf_counter()
    answers = classify(Split(items, test.classes))
    seconds = time.perf_counter() - start
    if answers != images:
        raise RuntimeError(f"{answers} of {images} images were classified")
    return {"seconds": seconds, "images_per_second": images / seconds}


def _make_loop(
    loop: str, load: Callable[[], Any], classes: Sequence[str], workers: int
) -> Callable[[Any], int]:
    """Return what classifies a split and says how many images that were."""
    model = load()
    adapter, text = _tune(model, classes)
    if LOOPS[loop].owner == "ours":
        return _own_loop(loop, model, adapter, text)
    heads = []
    if LOOPS[loop].models == 2:
        zero_shot = load()
        heads.append((zero_shot, _class_features(zero_shot, text)))
    adapter.merge()
    heads.append((model, _class_features(model, text)))
    return _bare_loop(heads, LOOPS[loop].batch, workers if LOOPS[loop].workers else 0)


def _tune(model: Any, classes: Sequence[str]) -> tuple[Any, Any]:
    """Attach an adapter with numbers other than zero; return it and the class prompts."""
    import torch

    import clip_randlora as cr
    from clip_randlora.clip.text import TextClassifier, make_prompts

    adapter = cr.attach(model.net, cr.RandLoRA(rank=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.add_(drawn.to(parameter.device))
    return adapter, TextClassifier(model, classes, make_prompts(classes))


def _class_features(model: Any, text: Any) -> Any:
    import torch

    from clip_randlora.clip.text import encode_tokens

    with torch.inference_mode():
        return encode_tokens(model.net, text.tokens)


def _own_loop(loop: str, model: Any, adapter: Any, text: Any) -> Callable[[Any], int]:
    from clip_randlora.classifier import Classifier
    from clip_randlora.data import decode_batches
    from clip_randlora.evaluation import PairedPredictor, predict_split

    both = PairedPredictor(model, adapter, text)
    if loop == "eval":
        return lambda split: len(predict_split(both, split).tuned)
    classifier = Classifier(model, adapter, text)
    if loop == "predict":
        return lambda split: len(classifier.predict(_paths(split)))
    if loop == "predict-one":
        return lambda split: sum(len(classifier.predict([path])) for path in _paths(split))
    return lambda split: sum(
        len(both.tuned_probabilities(batch.images))
        for batch in decode_batches(split, model.square(), 256)
    )


def _bare_loop(heads: Sequence[tuple[Any, Any]], size: int, workers: int) -> Callable[[Any], int]:
    """Return the loop that open_clip's users write; ``heads`` are models and class features."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    model = heads[0][0]
    preprocess, device = model.preprocess, model.device

    class Files(Dataset):
        def __init__(self, paths: Sequence[Path]):
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return preprocess(Image.open(self.paths[index]).convert("RGB"))

    def classify(split: Any) -> int:
        done = 0
        for batch in DataLoader(Files(_paths(split)), batch_size=size, num_workers=workers):
            with torch.inference_mode():
                batch = batch.to(device)
                for head, classes in heads:
                    features = head.net.encode_image(batch, normalize=True)
                    answers = (head.net.logit_scale.exp() * features @ classes.T).softmax(dim=-1)
            done += len(answers.cpu())
        return done

    return classify


def _paths(split: Any) -> list[Path]:
    """Return the files of a split.

    Raises:
        UserError: its images are not files.
    """
    from clip_randlora.errors import UserError

    paths = [getattr(item.content, "path", None) for item in split]
    if None in paths:
        raise UserError("--data: the images must be files on disk, in class folders")
    return paths


def summarize(results: Results) -> dict[str, dict[str, Any]]:
    """Put the rounds of each loop together, by name, in the order of `LOOPS`."""
    found = {}
    measured = {sample["row"] for sample in results.samples}
    for name in LOOPS:
        rounds = results.of(name)
        if rounds:
            found[name] = {
                "speed": spread(one["images_per_second"] for one in rounds),
                "memory": spread(one["peak_memory_bytes"] for one in rounds),
            }
        elif name in measured:
            found[name] = {"failed": results.failure(name)}
    return found


def compare(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Ratio]]:
    """Return ``(line, ratio)`` of speeds against the faster bare loop of one and of both models."""
    speeds = {name: row["speed"]["median"] for name, row in found.items() if "speed" in row}
    compared = []
    for line, ours, bare, what, target in (
        ("8", "eval", "bare-both", "the same two passes", _TARGET),
        ("8", "eval", "bare", "one pass against eval's two", _TARGET),
        ("", "predict", "bare-both", "the same two passes", None),
        ("", "tuned", "bare", "the same one pass", None),
        ("", "predict-one", "bare-both-one", "one image a call", None),
    ):
        peers = [speeds[name] for name in (bare, f"{bare}-workers") if name in speeds]
        value = speeds[ours] / max(peers) if ours in speeds and peers else None
        name = f"images a second: {LOOPS[ours].label} / {LOOPS[bare].label} ({what})"
        compared.append((line, Ratio(name, value, target, at_least=True)))
    return compared


def _progress(result: Mapping[str, Any]) -> str:
    return f"{result['images_per_second']:.1f} images a second"


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, row in found.items():
        start = [LOOPS[name].label, str(LOOPS[name].models)]
        if "failed" in row:
            lines.append([*start, f"failed: {row['failed']}", ""])
            continue
        speed = row["speed"]
        shown = f"{speed['median']:.1f} ({speed['min']:.1f} - {speed['max']:.1f})"
        lines.append([*start, shown, report.gigabytes(row["memory"]["median"])])
    columns = ("loop", "answers", "images a second: median (min - max)", "peak GB")
    return report.markdown_table(columns, lines)


def _figure(found: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    measured = {name: row for name, row in found.items() if "speed" in row}
    if not measured:
        return None
    figure = Figure(figsize=(8, 0.9 + 0.38 * len(measured)), layout="constrained")
    colors = {"ours": report.OURS, "peer": report.PEER}
    report.bars(
        figure.subplots(),
        [LOOPS[name].label for name in measured],
        [row["speed"] for row in measured.values()],
        [colors[LOOPS[name].owner] for name in measured],
        "images a second",
    )
    return figure
