"""From a folder, an archive, a name or a description to a labelled image set with a test split."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_randlora.data.dataset import Data, Item, Skipped, Split
from clip_randlora.data.dataset_spec import SUFFIXES, read_dataset_spec
from clip_randlora.data.folders import EXPECTED, ClassFolders, list_some
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.layouts import list_source, read_layout
from clip_randlora.data.sampling import hold_out
from clip_randlora.data.sources import ClassFiles, Layout, natural_key
from clip_randlora.errors import UserError
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress

HELD_OUT_NOTE = "No test split: held out"  # how the note of a hold-out begins


def load_data(
    source: str | Path,
    test: str | Path | None = None,
    held_out: float = 0.3,
    *,
    class_folders: ClassFolders | None = None,
    on_progress: OnProgress | None = None,
) -> Data:
    """Read a labelled image set; headers are checked, pixels are not decoded yet.

    Args:
        source: a folder or ``.zip`` of class folders, or one with ``train/`` and ``test/`` (else
            ``val/``) folders of class folders, or a YAML file that describes the set (see
            ``DatasetSpec``), or the name of a set that comes with the package or is described in
            it (``clip-randlora datasets`` lists them). An existing path wins over a name.
        test: where the test images are, in the same forms; by default the source's own test
            split, else ``held_out`` of each class.
        held_out: share of each class held out for testing where there is no test split. Which
            images is fixed: it depends on the class's name and the order of its images' names.
        class_folders: ``leaves`` takes the folders that hold the images as the classes, which
            matters where they are nested (genus/species); ``top`` takes the topmost folders,
            whatever their names, even ``train`` and ``test``. By default the topmost ones below
            the splits.
        on_progress: told how far the reading is, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the source is missing, not downloaded or not in this form, has fewer than two
            classes, test classes that training has not, or a class with no readable training
            image.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out: {held_out} is not a share; give a number between 0 and 1")
    layout = read_layout(source, class_folders)
    notes, skipped = layout.notes, layout.skipped
    train_files, test_files = layout.train, layout.test
    other = read_layout(test, class_folders) if test is not None else None
    if other is not None:
        if test_files is not None:
            count = sum(map(len, test_files.values()))
            notes.append(f"The {count} test images of {source} are not used: {test} is given.")
        test_files = other.test if other.test is not None else other.train
        notes += other.notes
        skipped += other.skipped
    classes = tuple(train_files if layout.is_described else sorted(train_files, key=natural_key))
    _check_classes(source, test or source, classes, test_files)

    train, broken = _items(train_files, classes, layout, on_progress)
    skipped += broken
    _check_not_empty(classes, train, broken)
    if test_files is not None:
        tested, broken = _items(test_files, classes, other or layout, on_progress)
        skipped += broken
        digests = {} if layout.is_ready_made else _digests([*train, *tested], on_progress)
        share = None if other is not None else held_out
        train, tested, leaks = _apart(train, tested, digests, classes, share)
        notes += leaks
    else:
        digests = _digests(train, on_progress)
        train, tested, note = _hold_out(train, classes, digests, held_out)
        notes.append(note)
    if not tested:
        why = "can be read" if test_files is not None else "can be held out, there are too few"
        raise UserError(f"{test or source}: no test image {why}; give more images")
    notes += [*_alike(classes), *_notes(classes, train, tested, digests)]
    return Data(
        _name_of(source),
        classes,
        Split(tuple(train), classes),
        Split(tuple(tested), classes),
        tuple(skipped),
        tuple(notes),
        held_out=test_files is None,
        is_ready_made=layout.is_ready_made,
        class_folders=class_folders,
        templates=layout.templates,
        prompts=layout.prompts,
    )


def list_images(
    source: str | Path, *, on_progress: OnProgress | None = None
) -> tuple[list[Item], list[Skipped]]:
    """List every image of a folder or ``.zip``, whatever its folders; the labels mean nothing.

    Returns:
        The images whose headers are in order, naturally sorted, and what was left out.

    Raises:
        UserError: the source is missing, cannot be read, or holds no image.
    """
    listing, images = list_source(source)
    good, broken = _readable([Item(file.name, 0, file.content) for file in images], on_progress)
    if not good:
        raise UserError(f"{source}: no images that can be read")
    return good, [*listing.skipped, *broken]


@dataclass(frozen=True)
class LabelledImages:
    """Images to test a run on, labelled by the run's classes.

    ``is_test_split`` says that the source has a test split and these are its images alone.
    """

    split: Split
    is_test_split: bool
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def load_labelled(
    source: str | Path,
    classes: Sequence[str],
    class_folders: ClassFolders | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> LabelledImages:
    """Read the images of some or all of a run's classes: those of the test split if there is one.

    Args:
        source: in the forms that `load_data` takes, or the folder of a single class, or one with a
            single class folder.
        classes: the run's.
        class_folders: as for `load_data`.
        on_progress: told how far the reading is, see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the source is missing or in none of these forms, has a class that the run does
            not know, or no readable image.
    """
    layout = _single_class(source, classes) or read_layout(source, class_folders)
    files = layout.train if layout.test is None else layout.test
    unknown = sorted((name for name in files if name not in classes), key=natural_key)
    if unknown:
        raise UserError(
            f"{source}: the run does not know the class {unknown[0]!r}; it knows "
            f"{', '.join(classes)}"
        )
    items, broken = _items(files, classes, layout, on_progress)
    skipped = (*layout.skipped, *broken)
    if not items:
        first = f" (the first is {skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise UserError(f"{source}: no image to test on can be read{first}; give others")
    split = Split(tuple(items), tuple(classes))
    return LabelledImages(split, layout.test is not None, skipped, tuple(layout.notes))


def _single_class(source: str | Path, classes: Sequence[str]) -> Layout | None:
    """Read a folder or archive that is called like a class and has no folder of a class in it."""
    path = Path(source).expanduser()
    if not path.exists() or (path.is_file() and path.suffix in SUFFIXES):
        return None
    name = unicodedata.normalize("NFC", path.stem if path.is_file() else path.resolve().name)
    if name not in classes:
        return None
    listing, images = list_source(source)
    folders = {part for file in images for part in file.parts[:-1]}
    if not images or folders & set(classes):
        return None
    return Layout({name: images}, skipped=listing.skipped)


def _name_of(source: str | Path) -> str:
    path = Path(source).expanduser()
    if not path.exists():
        return str(source)
    if path.suffix in SUFFIXES and path.is_file():
        return read_dataset_spec(path).name
    return path.stem if path.is_file() else path.resolve().name


def _items(
    files: ClassFiles, classes: Sequence[str], layout: Layout, on_progress: OnProgress | None
) -> tuple[list[Item], list[Skipped]]:
    """The files as items, less those that are no images; ready-made sets are not looked through."""
    items = [
        Item(file.name, label, file.content)
        for label, name in enumerate(classes)
        for file in files.get(name, [])
    ]
    return (items, []) if layout.is_ready_made else _readable(items, on_progress)


def _check_classes(
    source: str | Path, test: str | Path, classes: Sequence[str], test_files: ClassFiles | None
) -> None:
    if len(classes) < 2:
        raise UserError(
            f'{source}: only one class ("{classes[0]}"), at least two are needed; {EXPECTED}'
        )
    unknown = sorted(set(test_files or ()) - set(classes), key=natural_key)
    if unknown:
        raise UserError(
            f"{test}: test classes that training has not: {', '.join(unknown[:10])}; rename or "
            f"remove them (training has {', '.join(classes[:10])}{', ...' * (len(classes) > 10)})"
        )


def _check_not_empty(classes: Sequence[str], train: list[Item], broken: list[Skipped]) -> None:
    present = {item.label for item in train}
    for label, name in enumerate(classes):
        if label not in present and not broken:
            raise UserError(f'class "{name}": there is no training image; add some')
        if label not in present:
            raise UserError(
                f'class "{name}": no training image can be read; replace or remove them '
                f"({len(broken)} unreadable in all, the first is {broken[0].name}: "
                f"{broken[0].reason})"
            )


def _readable(
    items: list[Item], on_progress: OnProgress | None
) -> tuple[list[Item], list[Skipped]]:
    good, broken = [], []
    checked = parallel_map(_header_problem, items)
    problems = report_progress(checked, "reading images", len(items), on_progress)
    for item, problem in zip(items, problems, strict=True):
        if problem is None:
            good.append(item)
        else:
            broken.append(problem)
    return good, broken


def _header_problem(item: Item) -> Skipped | None:
    try:
        item.check()
    except UnreadableImage as error:
        return Skipped(error.name, error.reason)
    return None


def _digests(items: Sequence[Item], on_progress: OnProgress | None) -> dict[int, str]:
    """``id(item)`` -> a content key; only files of equal size are read, others differ anyway."""
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_size[item.content.size].append(item)
    keys = {id(item): f"unique {number}" for number, item in enumerate(items)}
    shared = [item for group in by_size.values() if len(group) > 1 for item in group]
    digests = parallel_map(lambda item: item.content.digest(), shared)
    digests = report_progress(digests, "looking for copies", len(shared), on_progress)
    keys.update(zip(map(id, shared), digests, strict=True))
    return keys


def _hold_out(
    items: list[Item], classes: Sequence[str], digests: dict[int, str], share: float
) -> tuple[list[Item], list[Item], str]:
    groups = Split(tuple(items), tuple(classes)).by_class()
    held = hold_out(
        {classes[label]: [digests[id(i)] for i in group] for label, group in groups.items()}, share
    )
    train, test = [], []
    for label, group in groups.items():
        if all(held[classes[label]]):
            raise UserError(
                f'class "{classes[label]}": all its images are copies of test images of other '
                "classes; remove the copies"
            )
        for item, is_test in zip(group, held[classes[label]], strict=True):
            (test if is_test else train).append(item)
    note = f"{HELD_OUT_NOTE} {share * 100:g} % of each class"
    return train, test, f"{note} ({len(test)} of {len(items)} images)."


def _notes(
    classes: Sequence[str], train: list[Item], test: list[Item], digests: dict[int, str]
) -> list[str]:
    notes = []
    tested = {item.label for item in test}
    if untested := [name for label, name in enumerate(classes) if label not in tested]:
        named = ", ".join(untested[:10]) + ", ..." * (len(untested) > 10)
        notes.append(f"No test images for {named}.")
    if not digests:
        return notes
    first: dict[str, Item] = {}
    contradictions = []
    for item in [*train, *test]:
        same = first.setdefault(digests[id(item)], item)
        if same.label != item.label:
            contradictions.append(f"{same.name} = {item.name}")
    if contradictions:
        notes.append(
            f"The same image under two classes, {len(contradictions)} times: "
            f"{list_some(contradictions)}; remove one of each."
        )
    return notes


def _apart(
    train: list[Item],
    test: list[Item],
    digests: dict[int, str],
    classes: Sequence[str],
    share: float | None,
) -> tuple[list[Item], list[Item], list[str]]:
    """Keep images out of training that are in the test split too: figures would be too good.

    Of a class that has no others, ``share`` of them stay in the test split and the rest in
    training; None makes that an error.
    """
    in_test = {digests[id(item)]: item for item in reversed(test)} if digests else {}
    leaks = [item for item in train if digests and digests[id(item)] in in_test]
    if not leaks:
        return train, test, []
    named = list_some([f"{item.name} = {in_test[digests[id(item)]].name}" for item in leaks])
    kept = [item for item in train if digests[id(item)] not in in_test]
    left = {item.label for item in kept}
    groups = Split(tuple(leaks), tuple(classes)).by_class()
    copied = {classes[label]: group for label, group in groups.items() if label not in left}
    keys = {name: [digests[id(item)] for item in group] for name, group in copied.items()}
    held = hold_out(keys, share) if share else {}
    trained = set()
    for name, group in copied.items():
        if not share or all(held[name]):
            raise UserError(
                f'class "{name}": all its training images are test images too ({named}); give '
                f"others to train on, or to test on"
            )
        for item, is_test in zip(group, held[name], strict=True):
            if not is_test:
                trained.add(digests[id(item)])
    kept = [i for i in train if digests[id(i)] not in in_test or digests[id(i)] in trained]
    note = f"{len(leaks)} of {len(train)} training images are test images too ({named}): "
    if not copied:
        return kept, test, [f"{note}they are kept out of training."]
    note += f"{share * 100:g} % of them stay for testing alone, the rest for training, in "
    note += f"{list_some(list(copied))}, where there are no others"
    if len(copied) < len(groups):
        note += "; elsewhere they are kept out of training"
    return kept, [i for i in test if digests[id(i)] not in trained], [f"{note}."]


def _alike(classes: Sequence[str]) -> list[str]:
    """A note on the classes whose names differ in capitals only."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[name.casefold()].append(name)
    alike = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    return [f"Classes that differ in capitals only: {list_some(alike)}; merge them if alike."]
