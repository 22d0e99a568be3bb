"""The format ``web``: a folder that is a web page, in which the browser classifies images."""

from __future__ import annotations

import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

from clip_randlora.clip.models import Model
from clip_randlora.clip.none_of_these import none_labels
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence.unknown import margins
from clip_randlora.data import load_data
from clip_randlora.errors import UserError
from clip_randlora.export.export_source import ExportSource, require_equal
from clip_randlora.export.onnx_graphs import share_weights, store_in, to_graph
from clip_randlora.export.web_runtime import CDN, copy_runtime
from clip_randlora.forward.inference import inference_model
from clip_randlora.utils.outputs import write_json

_PAGE = Path(__file__).with_name("web_page")
_MODEL, _FACTS, _RUNTIME = "classifier.onnx", "classifier.json", "runtime"
_GIVES = ("before", "after", "likeness")
_TOLERANCE = {"fp32": 1e-4, "fp16": 2.5e-2}  # see onnx_format
_DRAWINGS = 60  # on which int8 must not change an answer
_LONGEST_TITLE = 60


class _Answers(nn.Module):
    """Pixels (N, 3, S, S), normalised -> what the page shows: see `forward`."""

    classes_before: Tensor
    classes_after: Tensor
    known: Tensor

    def __init__(self, source: ExportSource):
        super().__init__()
        model, adapter = source.model, source.adapter
        vision = adapter.updated_weights(source.strength, "vision") if source.strength else {}
        self.before = inference_model(model).net
        self.after = inference_model(model, vision).net if vision else self.before
        self.head, self.strength = adapter.head, source.strength
        self.scale = float(model.logit_scale().detach())
        self.temperatures = source.confidence.temperature_at(0.0), source.temperature
        self.register_buffer("classes_before", _class_features(source, model, 0.0))
        self.register_buffer("classes_after", _class_features(source, model, source.strength))
        known = torch.zeros(1, self.classes_before.shape[1])
        self.register_buffer("known", known if source.known is None else source.known)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the probabilities before and after (N, C), and the score of each image (N,).

        The score says how much an image is of one of the classes, as
        `clip_randlora.confidence.unknown` does.
        """
        features: Tensor = self.before.encode_image(pixels, normalize=True)
        tuned = features
        if self.after is not self.before:
            tuned = self.after.encode_image(pixels, normalize=True)
        before = self.scale * features @ self.classes_before.T
        after = self.scale * tuned @ self.classes_after.T
        if self.head is not None:
            after = torch.lerp(after, self.head(tuned), self.strength)
        likeness = margins(after) / self.scale + (features @ self.known.T).max(dim=1).values
        before, after = before / self.temperatures[0], after / self.temperatures[1]
        return before.softmax(dim=-1), after.softmax(dim=-1), likeness


@torch.no_grad()
def _class_features(source: ExportSource, model: Model, strength: float) -> Tensor:
    """Return the class embeddings (C, E) at a strength."""
    prompts = [source.prompts[name] for name in source.classes]
    source.adapter.strength = strength
    with source.adapter.cached_weights():
        return TextClassifier(model, source.classes, prompts).features().clone()


def write(
    source: ExportSource,
    folder: Path,
    offline: bool = False,
    runtime: str | Path | None = None,
) -> None:
    """Write the page, its classifier, and with ``offline`` the runtime; see `export_run`."""
    if offline or runtime is not None:
        with source.step("copying onnxruntime-web"):
            copy_runtime(folder / _RUNTIME, None if runtime is None else Path(runtime))
    with source.step("converting the encoder"):
        graph = to_graph(_Answers(source), source.expected.pixels, "pixels", _GIVES)
        graph = store_in(source.precision, share_weights(graph))
    with source.step("writing the page"):
        onnx.save(graph, folder / _MODEL)
        facts = _facts(source)
        facts["bytes"] = (folder / _MODEL).stat().st_size
        facts["runtime"] = f"{_RUNTIME}/" if (folder / _RUNTIME).exists() else CDN
        write_json(folder / _FACTS, facts)
        for path in _PAGE.iterdir():
            shutil.copyfile(path, folder / path.name)
        page = folder / "index.html"
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("TITLE", html.escape(facts["title"])), encoding="utf-8")


def _facts(source: ExportSource) -> dict[str, Any]:
    """Return what the page has to know beside the classifier."""
    run, settings = source.runs[0], source.preprocess_cfg
    threshold = source.confidence.unknown if source.known is not None else None
    one_run = len(source.runs) == 1 and source.strength == 1
    return {
        "title": _title(source.classes),
        "classes": source.classes,
        "none": none_labels(source.classes),
        "image_size": source.model.image_size,
        "keeps_shape": settings.get("resize_mode", "shortest") == "shortest",
        "filter": source.resampling.name.lower(),
        "mean": settings["mean"],
        "std": settings["std"],
        "least_likeness": threshold and threshold.score_at(source.strength),
        "strength": source.strength,
        "precision": source.precision,
        "base_model": run.base_name,
        "images": run.metrics["images"],
        # measured at strength 1, and of one run
        "top1": [run.metrics[key]["top1"] for key in ("zero_shot", "tuned")] if one_run else None,
    }


def _title(classes: list[str]) -> str:
    """Return the question that the page answers."""
    *firsts, last = [name.replace("_", " ") for name in classes]
    title = f"{', '.join(firsts)} or {last}?"
    if len(title) <= _LONGEST_TITLE:
        return title[0].upper() + title[1:]
    return f"Which of {len(classes)} things is it?"


def verify(source: ExportSource, folder: Path) -> None:
    """Run the classifier in ONNX Runtime, and compare with this package's answers.

    int8 moves probabilities, so that it is asked for the first class of bundled drawings.
    """
    answers = _Answers(source).eval()
    with source.step(f"checking {_MODEL}"):
        onnx.checker.check_model(folder / _MODEL)
        session = onnxruntime.InferenceSession(folder / _MODEL, providers=["CPUExecutionProvider"])
        pixels = source.expected.pixels
        if source.precision == "int8":
            pixels = torch.stack([source.model.preprocess(image) for image in _drawings()])
        with torch.inference_mode():
            expected = answers(pixels)
        got = [torch.from_numpy(found) for found in session.run(_GIVES, {"pixels": pixels.numpy()})]
        if source.precision == "int8":
            _require_same_classes(got, expected)
            return
        for name, found, wanted in zip(_GIVES, got, expected, strict=True):
            require_equal(f"answers {name}", found, wanted, _TOLERANCE[source.precision])


def _drawings() -> list[Image.Image]:
    """Return some of the bundled test drawings, of all classes."""
    items = load_data("clipart").test.items
    return [item.open() for item in items[:: len(items) // _DRAWINGS][:_DRAWINGS]]


def _require_same_classes(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise a UserError if an image has another first class, before or after."""
    changed = [
        found.argmax(dim=1) != wanted.argmax(dim=1)
        for found, wanted in zip(got[:2], expected[:2], strict=True)
    ]
    if other := int((changed[0] | changed[1]).sum()):
        raise UserError(
            f"--precision int8: nothing written, it changes the answer for {other} of "
            f"{_DRAWINGS} drawings; use fp16"
        )
