"""The command label: classes for images that have none yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from clip_randlora.cli.console import (
    loading,
    messages,
    print_json,
    print_notes,
    progress,
    results,
)
from clip_randlora.cli.image_arguments import name_unreadable, read_images, read_lines
from clip_randlora.cli.options import (
    MODEL,
    RESULTS,
    DeviceOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
)
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

if TYPE_CHECKING:
    from clip_randlora.classifier import Classifier
    from clip_randlora.data.inputs import Input
    from clip_randlora.labelling import Labelling
    from clip_randlora.labelling.sorting import How

_ALL_CLASSES = 50  # of more, only those with images are listed


def label(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] IMAGE...",
            help="Folder of a finished run or hf-hub:ORG/NAME, unless --classes is given; then "
            "files, folders, .zip and .tar files or globs; - reads one path a line from standard "
            "input.",
        ),
    ],
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Write the answers to this file, surest first.", rich_help_panel=RESULTS
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Copy each image into the folder of its class, in here.",
            rich_help_panel="Sort into folders",
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="With --into: make hard links.", rich_help_panel="Sort into folders"
        ),
    ] = False,
    move: Annotated[
        bool,
        typer.Option(
            "--move", help="With --into: move the images.", rich_help_panel="Sort into folders"
        ),
    ] = False,
    above: Annotated[
        float, typer.Option(min=0, max=1, help="No label below this probability.")
    ] = 0.0,
    reject: Annotated[
        bool,
        typer.Option("--reject", help="No label for images that are of none of the classes."),
    ] = False,
    suggest: Annotated[
        int,
        typer.Option(
            "--next",
            min=0,
            help="Say which images to label first: this many.",
            rich_help_panel="Label next",
        ),
    ] = 0,
    labelled: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="With --next: images that have labels already. Default: those that the run was "
            "trained on.",
            rich_help_panel="Label next",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Without a run: class names with commas, or a file of one a line.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    model: ModelOption = "lite0",
    pretrained: PretrainedOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give images without labels a class each, surest first.

    No training is needed: --classes asks the model zero-shot. Files are neither changed nor, but
    for --move, moved, and no file is overwritten. Images that cannot be read are named on standard
    error.
    """
    if not (csv_file or into or suggest or as_json):
        raise UserError("nothing to do; give --csv FILE, --into FOLDER, --next N or --json")
    if csv_file and csv_file.exists():
        raise UserError(f"--csv {csv_file}: exists; choose another file")
    if (link or move) and (into is None or link == move):
        raise UserError("--link, --move: give one of them, with --into FOLDER")
    given, images = _split(sources, classes)
    run = None
    with loading():
        from clip_randlora.labelling import label_images

        if given is not None:
            from clip_randlora.classifier import Classifier
            from clip_randlora.runs.run_source import local_run

            run = local_run(given)
            classifier = Classifier.load(run, device=device)
        else:
            classifier = _zero_shot(classes or "", model, pretrained, device)
    entries = _entries(images, into)
    with progress() as on_progress:
        labelling = label_images(
            classifier,
            entries,
            above=above,
            suggest=suggest,
            reject=reject,
            labelled=_labelled(labelled, run) if suggest else None,
            on_progress=on_progress,
        )
    name_unreadable(labelling.errors, len(labelling))
    if as_json:
        print_json(
            {
                "classes": labelling.classes,
                "above": labelling.above,
                "counts": labelling.counts(),
                "images": [asdict(image) for image in labelling],
                "errors": labelling.errors,
            }
        )
    else:
        _print(labelling)
    if csv_file:
        labelling.write_csv(csv_file)
        messages.print(f"{len(labelling)} answers: saved to {csv_file}")
    if into is not None:
        _sort(labelling, entries, into, "move" if move else "link" if link else "copy")


def _split(sources: Sequence[str], classes: str | None) -> tuple[str | None, Sequence[str]]:
    """Return the run, if there is to be one, and the images."""
    from clip_randlora.runs.run_config import has_config
    from clip_randlora.utils.hub import is_hub_name

    first, *rest = sources
    if classes is not None:
        if has_config(first):
            raise UserError(f"{first}: a run has its own classes; leave out the run or --classes")
        return None, sources
    if not (has_config(first) or is_hub_name(first) or Path(first).suffix == ".safetensors"):
        raise UserError(
            f"{first}: not a run folder; give the folder of a run first, or hf-hub:ORG/NAME, or "
            f"--classes for answers without training"
        )
    if not rest:
        raise UserError("IMAGE: no images given; give files or folders after the run")
    return first, rest


def _zero_shot(classes: str, model: str, pretrained: str | None, device: str | None) -> Classifier:
    from clip_randlora.classifier import Classifier
    from clip_randlora.clip.models import DEFAULT_TAG, load_model

    path = Path(classes)
    if path.is_file():
        names = read_lines(path, "--classes")
    else:
        names = [name.strip() for name in classes.split(",") if name.strip()]
    weights = {None: DEFAULT_TAG, "none": None}.get(pretrained, pretrained)
    loaded = load_model(model, weights, device)
    try:
        return Classifier.zero_shot(loaded, names)
    except UserError as error:
        raise UserError(f"--classes {classes}: {error}") from error


def _entries(images: Sequence[str], into: Path | None) -> list[Input]:
    """List the images, without those that are in the folder into which they are sorted."""
    entries = list(read_images(images))
    if into is None:
        return entries
    inside = os.path.join(os.path.realpath(into), "")
    kept = [
        entry
        for entry in entries
        if not isinstance(entry.content, Path)
        or not os.path.realpath(entry.content).startswith(inside)
    ]
    if len(kept) < len(entries):
        print_notes([f"Left out {len(entries) - len(kept)} images that are in {into}."])
    return kept


def _labelled(data: str | None, run: Path | None) -> list[Input] | list[Path] | None:
    """Return the images that have labels: those given, or those that the run was trained on."""
    from clip_randlora.runs.image_record import training_files

    if data is not None:
        return _entries([data], None)
    if run is None or not run.is_dir():
        return None
    files = training_files(run)
    if not files:
        print_notes(["The run's training images are not found, so --next does without them."])
    return files or None


def _print(labelling: Labelling) -> None:
    """Print how many images got each label, and which to label first."""
    table = Table("class", "images")
    for name, count in labelling.counts().items():
        if count or len(labelling.classes) <= _ALL_CLASSES:
            table.add_row(name, str(count))
    unknown = 0 if labelling.unknown is None else int(labelling.unknown.sum())
    below = len(labelling) - sum(labelling.counts().values()) - unknown
    if below or unknown:
        table.add_section()
    if below:
        table.add_row(f"below {labelling.above:g}", str(below))
    if unknown:
        table.add_row("none of these", str(unknown))
    results.print(table)
    if labelling.suggested:
        from clip_randlora.labelling.label_each import UNKNOWN

        table = Table("label next", "image", "answer", "probability")
        for image in labelling.next_images():
            answer = UNKNOWN if image.is_unknown else image.answer
            row = str(image.label_next), image.name, answer, f"{image.probability:.1%}"
            table.add_row(*row)
        results.print(table)


def _sort(labelling: Labelling, entries: Sequence[Input], folder: Path, how: How) -> None:
    """Sort the images into class folders, and say what was done."""
    from clip_randlora.labelling import sort_into_folders

    with progress() as on_progress:
        done = sort_into_folders(labelling, entries, folder, how, on_progress)
    print_notes(done.errors)
    verb = {"copy": "copied", "link": "linked", "move": "moved"}[how]
    facts = [f"{sum(done.counts.values())} images {verb} into {folder}"]
    if done.copied:
        facts.append(f"{done.copied} of them copied, as the file system has no such links")
    if done.before:
        facts.append(f"{done.before} were there before")
    messages.print(join_names(facts, len(facts)))
