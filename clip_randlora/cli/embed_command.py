"""The command embed: features of images or texts, for a search index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from clip_randlora.cli.console import loading, messages, print_notes, progress
from clip_randlora.cli.image_arguments import (
    IMAGES_HELP,
    name_unreadable,
    read_images,
    read_lines,
)
from clip_randlora.cli.options import DeviceOption, RunArgument
from clip_randlora.errors import UserError


def embed(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Option(
            help="A new file: .parquet (image or text, zero_shot, tuned), or .npy (the tuned "
            "features alone, and their images or texts in a .txt of the same name)."
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES|TEXTS",
            help=f"{IMAGES_HELP} Or a .txt file of one text a line.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to encode; may be repeated.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help='Put every text into this, such as "a photo of a {}."; the mean of several. '
            "Default: texts are encoded as they stand."
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Of the tuned features. 0: zero-shot, 1: tuned.")
    ] = 1.0,
    device: DeviceOption = None,
) -> None:
    """Encode images, or texts, before and after the training, for a search index.

    Features have length 1, so their products are cosines. Images that cannot be read are named on
    standard error and get no row; the exit status is 2 if none can be read.
    """
    texts, images = _sort(sources or [], text or [])
    if template and not texts:
        raise UserError("--template: only for texts; give --text or a .txt file")
    with loading():
        from clip_randlora.classifier import Classifier
        from clip_randlora.embedding import check_out, embed_images, embed_texts

        check_out(out)
        classifier = Classifier.load(run, strength=strength, device=device)
    with progress() as on_progress:
        if texts:
            done = embed_texts(classifier, texts, out, templates=template, on_progress=on_progress)
        else:
            entries = read_images(images, on_progress)
            done = embed_images(classifier, entries, out, on_progress=on_progress)
    name_unreadable(done.errors, done.rows)
    print_notes(done.notes)
    kind = "texts" if texts else "images"
    messages.print(f"{done.rows:,} {kind}, {done.width} numbers each: saved to {out}")


def _sort(sources: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts and the images of the arguments: one of both is empty."""
    files = [source for source in sources if Path(source).suffix.lower() == ".txt"]
    images = [source for source in sources if source not in files]
    found = [line for file in files for line in read_lines(Path(file), "TEXTS")]
    if images and (files or texts):
        raise UserError(f"{images[0]}: images and texts go into different files; give one of them")
    if files and not found:
        raise UserError(f"{files[0]}: has no text; give one a line")
    if not (images or files or texts):
        raise UserError("nothing to encode; give images, a .txt file of texts, or --text")
    return [*found, *texts], images
