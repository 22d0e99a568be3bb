"""Which images of a folder say how good a run is: never those that it was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from clip_randlora.data import Item, Skipped, Split, load_data
from clip_randlora.data.loading import load_labelled
from clip_randlora.errors import UserError
from clip_randlora.runs import run_folder
from clip_randlora.runs.image_record import FILE_NAME, RecordedImage, digest_items, read_images
from clip_randlora.runs.task import read_task
from clip_randlora.utils.progress import OnProgress

Count = Literal["held-out", "unseen", "all"]


@dataclass(frozen=True)
class CountedImages:
    """The images of a source that a run is tested on.

    Attributes:
        split: labelled by the run's classes.
        left_out: how many were left out because the run was trained on them; None if the run does
            not record its images.
        others_left_out: how many were left out because the run neither trained on them nor held
            them out.
        skipped: files that cannot be read.
        notes: one-line things that the user should know.
    """

    split: Split
    left_out: int | None
    others_left_out: int
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def find_test_images(
    run: str | Path,
    source: str | Path,
    count: Count = "held-out",
    class_folders: str | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> CountedImages:
    """Choose the images of a source that a run can be tested on, by their content.

    Neither the names of the files matter nor where they lie. A copy that was encoded anew has
    another content and is not recognised.

    Args:
        run: a run folder, or the adapter file in it.
        source: in the forms that `load_data` takes, or the folder of one class. Of a source with a
            test split, only that is looked at.
        count: "held-out" takes the images that the run held out, where the source has any of them
            and no test split, else as "unseen"; "unseen" takes all that the run was not trained
            on; "all" takes those that it was trained on too.
        class_folders: as for `load_data`; by default as in the run's training.
        on_progress: told how far the reading is, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the run or the source cannot be read, the source has a class that the run does
            not know, or no image is left to count.
    """
    if count not in get_args(Count):
        raise UserError(f"--count {count}: choose {', '.join(get_args(Count))}")
    run = Path(run)
    class_folders = class_folders or run_folder.class_folders_of(run)
    classes = read_task(run).classes
    record = read_images(run if run.is_dir() else run.parent)
    if record is None:
        return _without_record(run, source, classes, count, class_folders)
    labelled = load_labelled(source, classes, class_folders, on_progress=on_progress)
    items, notes = labelled.split.items, list(labelled.notes)
    digests = digest_items(items, on_progress=on_progress)
    trained_on = {image.digest for image in record.of("trained") if image.digest}
    trained = [item for item, d in zip(items, digests, strict=True) if d in trained_on]
    if count == "all":
        if trained:
            notes.append(
                f"The run was trained on {len(trained)} of these {_images(len(items))}: it answers "
                f"new ones less well than this says."
            )
        return CountedImages(labelled.split, 0, 0, labelled.skipped, tuple(notes))
    chosen = unseen = [item for item, d in zip(items, digests, strict=True) if d not in trained_on]
    held_out = [image for image in record.of("held out") if image.digest not in trained_on]
    if count == "held-out" and not labelled.is_test_split and held_out:
        mine = _held_out(items, digests, held_out, classes)
        if mine:
            notes.append(
                f"Counted {len(mine)} of the {_images(len(held_out))} that the run held out."
            )
            chosen = mine
    others = len(unseen) - len(chosen)
    if trained:
        notes.append(
            f"Left out {_images(len(trained))} that the run was trained on "
            f"(--count all counts them)."
        )
    if others:
        notes.append(
            f"Left out {_images(others)} that the run neither trained on nor held out "
            f"(--count unseen counts them)."
        )
    if not chosen:
        raise UserError(
            f"{source}: the run was trained on every image there ({len(trained)}); give others, or "
            f"count them with --count all"
        )
    return CountedImages(
        Split(tuple(chosen), classes), len(trained), others, labelled.skipped, tuple(notes)
    )


def _held_out(
    items: Sequence[Item],
    digests: Sequence[str],
    recorded: Sequence[RecordedImage],
    classes: Sequence[str],
) -> list[Item]:
    """Return the items that the run held out, each as often as it is recorded.

    Of more copies than that, those in the recorded class come first.
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
    source: str | Path,
    classes: tuple[str, ...],
    count: Count,
    class_folders: str | None,
) -> CountedImages:
    """Choose as earlier versions did, for their runs: by where the run's images came from."""
    labelled = load_labelled(source, classes, class_folders)
    split, notes = labelled.split, list(labelled.notes)
    notes.append(
        f"There is no {FILE_NAME} beside the run's adapter, which earlier versions did not write: "
        f"nobody can tell which images the run was trained on, and they may be counted."
    )
    config = run_folder.read_config(run) if run.is_dir() else {}
    same = str(_absolute(source)) == str(config.get("data", {}).get("data"))
    if count == "held-out" and same and not labelled.is_test_split:
        data = load_data(source, class_folders=class_folders)
        items = (replace(item, label=classes.index(data.classes[item.label])) for item in data.test)
        split, notes = Split(tuple(items), classes), [*notes, *data.notes]
    return CountedImages(split, None, 0, labelled.skipped, tuple(notes))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _absolute(source: str | Path) -> str | Path:
    return Path(source).resolve() if Path(source).exists() else source
