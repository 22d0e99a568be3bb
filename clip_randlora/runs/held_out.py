"""Choose the images that a run may be tested on: never those that it was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from clip_randlora.data import Item, Skipped, Split, load_data
from clip_randlora.data.folders import ClassFolders
from clip_randlora.data.layouts import Source
from clip_randlora.data.loading import LabelledImages, load_labelled
from clip_randlora.errors import UserError
from clip_randlora.runs.image_record import FILE_NAME, RecordedImage, digest_items, read_images
from clip_randlora.runs.run_config import read_class_folders, read_columns, read_config
from clip_randlora.runs.run_source import local_run
from clip_randlora.runs.task import read_task
from clip_randlora.utils.progress import OnProgress

Count = Literal["held-out", "unseen", "all"]


@dataclass(frozen=True)
class CountedImages:
    """The images of a source that a run is tested on.

    Attributes:
        split: the images, labelled by the run's classes, or by their own if these were asked for.
        left_out: number of images left out because the run was trained on them; None if the run
            does not record its images.
        others_left_out: number of images left out because the run neither trained on them nor held
            them out.
        skipped: files that cannot be read.
        notes: what the user should know, a line each.
        templates, prompts: as in `Data`, of the source.
    """

    split: Split
    left_out: int | None
    others_left_out: int
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    templates: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_test_images(
    run: str | Path,
    source: Source,
    count: Count = "held-out",
    class_folders: str | None = None,
    *,
    own_classes: bool = False,
    columns: str | Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> CountedImages:
    """Choose the images of a source that a run can be tested on.

    Images are compared by their content; the names and places of their files do not matter. A copy
    that was encoded again has another content and is not recognised.

    Args:
        run: a run folder, the adapter file in it, or ``hf-hub:ORG/NAME[@REVISION]``.
        source: what `load_data` takes, or the folder of one class. If the source has a test split,
            only that is used.
        count: "held-out" takes the images that the run held out. If the source has none of them,
            or a test split, it means "unseen". "unseen" takes all images that the run was not
            trained on; "all" takes those as well.
        class_folders: as for `load_data`; by default as in the run's training.
        columns: as for `load_data`; by default, for the source that the run was trained on, those
            of its training.
        own_classes: label the images by the source's classes in place of the run's.
        on_progress: told how far the reading is, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the run or the source cannot be read, the source has a class that the run does
            not know, or no image is left.
    """
    if count not in get_args(Count):
        raise UserError(f"--count {count}: choose {', '.join(get_args(Count))}")
    run = local_run(run)
    folders = cast(ClassFolders | None, class_folders) or read_class_folders(run)  # checked later
    columns = columns or read_columns(run, _absolute(source))
    classes = None if own_classes else read_task(run).classes
    record = read_images(run if run.is_dir() else run.parent)
    if record is None:
        return _without_record(run, source, classes, count, folders, columns)
    labelled = load_labelled(source, classes, folders, columns=columns, on_progress=on_progress)
    items, notes = labelled.split.items, list(labelled.notes)
    digests = digest_items(items, on_progress=on_progress)
    trained_on = {image.digest for image in record.of("trained") if image.digest}
    unseen = [item for item, d in zip(items, digests, strict=True) if d not in trained_on]
    left_out = len(items) - len(unseen)
    if count == "all":
        if left_out:
            notes.append(
                f"The run was trained on {left_out} of these {_images(len(items))}: it answers "
                f"new ones less well than this says."
            )
        return _counted(labelled, labelled.split.items, 0, 0, notes)
    chosen = unseen
    held_out = [image for image in record.of("held out") if image.digest not in trained_on]
    if count == "held-out" and not labelled.is_test_split:
        found = _find_held_out(items, digests, held_out, labelled.split.classes)
        if found:
            notes.append(
                f"Counted {len(found)} of the {_images(len(held_out))} that the run held out."
            )
            chosen = found
    others = len(unseen) - len(chosen)
    if left_out:
        notes.append(
            f"Left out {_images(left_out)} that the run was trained on (--count all counts them)."
        )
    if others:
        notes.append(
            f"Left out {_images(others)} that the run neither trained on nor held out "
            f"(--count unseen counts them)."
        )
    if not chosen:
        where = source if isinstance(source, str | Path) else type(source).__name__
        raise UserError(
            f"{where}: the run was trained on every image there ({left_out}); give others, or "
            f"count them with --count all"
        )
    return _counted(labelled, chosen, left_out, others, notes)


def _counted(
    labelled: LabelledImages,
    chosen: Sequence[Item],
    left_out: int | None,
    others: int,
    notes: Sequence[str],
) -> CountedImages:
    return CountedImages(
        Split(tuple(chosen), labelled.split.classes),
        left_out,
        others,
        labelled.skipped,
        tuple(notes),
        labelled.templates,
        labelled.prompts,
    )


def _find_held_out(
    items: Sequence[Item],
    digests: Sequence[str],
    recorded: Sequence[RecordedImage],
    classes: Sequence[str],
) -> list[Item]:
    """Return the items that the run held out, each as often as it is recorded.

    If there are more copies than that, those in the recorded class come first.
    """
    left = Counter(image.digest for image in recorded if image.digest)
    home = {(image.class_name, image.digest) for image in recorded}
    candidates = [place for place, digest in enumerate(digests) if digest in left]
    candidates.sort(key=lambda place: (classes[items[place].label], digests[place]) not in home)
    chosen = []
    for place in candidates:
        if left[digests[place]]:
            left[digests[place]] -= 1
            chosen.append(place)
    return [items[place] for place in sorted(chosen)]


def _without_record(
    run: Path,
    source: Source,
    classes: tuple[str, ...] | None,
    count: Count,
    class_folders: ClassFolders | None,
    columns: str | Mapping[str, str] | None,
) -> CountedImages:
    """Choose the images for a run of an earlier version, which did not record them.

    If the source is the run's own, the same images are held out again.
    """
    labelled = load_labelled(source, classes, class_folders, columns=columns)
    items = list(labelled.split.items)
    notes = [
        *labelled.notes,
        f"There is no {FILE_NAME} beside the run's adapter, as earlier versions wrote none: images "
        f"that the run was trained on may be counted.",
    ]
    config = read_config(run) if run.is_dir() else {}
    is_same = str(_absolute(source)) == str(config.get("data", {}).get("data"))
    if count == "held-out" and is_same and not labelled.is_test_split:
        data = load_data(source, class_folders=class_folders, columns=columns)
        place = labelled.split.classes.index
        items = [replace(item, label=place(data.classes[item.label])) for item in data.test]
        notes += data.notes
    return _counted(labelled, items, None, 0, notes)


def _absolute(source: Source) -> object:
    """Return a source as a run's settings record it; an object is like none of them."""
    is_path = isinstance(source, str | Path)
    return Path(source).resolve() if is_path and Path(source).exists() else source


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
