"""Build ``lite0``, the small CLIP model that the package brings along.

    python scripts/build_lite0.py --photos FOLDER

The image tower is a published ImageNet classifier. The text tower is trained here, without images,
so that the text feature of a name points where the image features of that thing point. Its teacher
is a kernel regression from sentence embeddings to the classifier's directions; its names come from
WordNet. The inputs come from PyPI and Debian. With ``--photos`` (a folder of ``<synset>.jpg``, one
for each class) zero-shot accuracy is measured, also on classes that were kept out of the training.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from lite0 import bundle, evaluate
from lite0.course import CLASS_NAMES, Course, HeldOut, Material, Settings, teach, texts_to_embed
from lite0.image_tower import class_ids, load_classifier, logit_scale, mean_feature
from lite0.inputs import Inputs, fetch
from lite0.sentences import SentenceEncoder, token_texts
from lite0.student import Stage
from lite0.wordnet import WordNet
from torch.nn.functional import normalize

BUNDLED = Path(__file__).parent.parent / "clip_randlora" / "bundled" / "lite0"
REPORTED_SIZES = (160, 176, 192, 224)
HELD_OUT_CLASSES = 100

STEPS, HELD_OUT_STEPS = 1300, 650  # the three trainings with held-out classes take half the steps


def main(
    cache: Annotated[Path, typer.Option(help="Where downloads and embeddings are kept.")] = Path(
        "build/lite0"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the model's two files.")] = BUNDLED,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of <synset>.jpg to report on.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the input images, pixels.")] = 192,
    share_of_steps: Annotated[
        float, typer.Option(help="Train for this share of the steps, for a trial.")
    ] = 1.0,
    draws: Annotated[int, typer.Option(help="Held-out trainings, with --photos.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the final training.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Fetch the inputs, train the text tower, write the model, and measure it."""
    torch.set_num_threads(threads)
    cache = cache.resolve()
    with timed("fetch inputs"):
        inputs = fetch(cache)
    with timed("load the classifier"):
        classifier = load_classifier(inputs.classifier)
        mean = mean_feature(classifier)
    with timed("encode texts"):
        material = read_material(inputs, cache, classifier)

    with timed("train the text tower"):
        stage = Stage(steps=max(1, round(share_of_steps * STEPS)))
        course = teach(material, HeldOut([], []), Settings(), stage, seed)
    with timed("write the model"):
        scale = logit_scale(classifier, mean, course.projection)
        weights = bundle.state_dict(classifier, mean, course.projection, course.tower, scale)
        size = bundle.write(out, bundle.model_config(course.tower, image_size), weights)
        print(f"  {out}: {size:,} bytes, logit scale {scale:.1f}")

    if photos is not None:
        with timed("features of the photographs"):
            files = [photos / f"{class_id}.jpg" for class_id in material.class_ids]
            pooled = {
                s: evaluate.pooled_features(classifier, files, s) - mean for s in REPORTED_SIZES
            }
        report = {"final": report_course(material, course, HeldOut([], []), pooled, scale)}
        for draw in range(1, draws + 1):
            with timed(f"held-out training, draw {draw}"):
                held_out = draw_held_out(len(material.class_ids), draw)
                stage = Stage(steps=max(1, round(share_of_steps * HELD_OUT_STEPS)))
                trial = teach(material, held_out, Settings(), stage, draw)
            report[f"draw {draw}"] = report_course(material, trial, held_out, pooled, scale)
        print(json.dumps(report, indent=2))
        (cache / "report.json").write_text(json.dumps(report, indent=2) + "\n")


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long a stage of the build takes."""
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def read_material(inputs: Inputs, cache: Path, classifier: torch.nn.Module) -> Material:
    """Read the dictionary and encode the names, the definitions and the vocabulary."""
    wordnet = WordNet(inputs.wordnet)
    encoder = SentenceEncoder(inputs.sentence_encoder, cache)
    ids = class_ids()
    texts = texts_to_embed(wordnet, ids)
    return Material(
        wordnet=wordnet,
        class_ids=ids,
        class_weights=classifier.classifier.weight.detach(),
        embeddings=dict(zip(texts, encoder.encode(texts), strict=True)),
        token_embeddings=encoder.encode(token_texts()),
    )


def draw_held_out(classes: int, seed: int) -> HeldOut:
    """Two disjoint draws of classes: without directions; without directions and names."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    return HeldOut(order[:HELD_OUT_CLASSES], order[HELD_OUT_CLASSES : 2 * HELD_OUT_CLASSES])


def report_course(
    material: Material,
    course: Course,
    held_out: HeldOut,
    pooled: dict[int, torch.Tensor],
    scale: float,
) -> dict[str, dict[str, float]]:
    """Zero-shot top-1 by list of names and image size, in the terms of the model card."""
    every_class = list(range(len(material.class_ids)))
    figures: dict[str, dict[str, float]] = {}
    name_lists = {
        "CLIP's names": CLASS_NAMES,
        "WordNet's names": [material.wordnet.synsets[i].names[0] for i in material.class_ids],
    }
    for label, names in name_lists.items():
        texts = evaluate.prompt_features(course.tower, names)
        for size, features in pooled.items():
            images = normalize(features @ course.projection, dim=-1)
            row = {"of all": evaluate.top1(images, texts, every_class)}
            if held_out.directions:
                row["b"] = evaluate.top1(images, texts, held_out.directions)
                row["c"] = evaluate.top1(images, texts, held_out.names)
            else:
                logits, labels = scale * images @ texts.T, torch.tensor(every_class)
                row["ece"] = evaluate.expected_calibration_error(logits, labels)
                row["ceiling"] = evaluate.top1(images, course.directions, every_class)
            figures[f"{label}, {size} px"] = {k: round(v, 4) for k, v in row.items()}
    return figures


if __name__ == "__main__":
    typer.run(main)
