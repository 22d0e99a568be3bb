"""Load a folder, an archive or a data set as labelled images with a training and a test split."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_randlora.clip.none_of_these import is_none_of_these
from clip_randlora.data.dataset import Data, Item, Skipped, Split
from clip_randlora.data.dataset_spec import SPEC_SUFFIXES, read_dataset_spec
from clip_randlora.data.folders import EXPECTED_LAYOUT, ClassFiles, ClassFolders, Layout
from clip_randlora.data.images import UnreadableImage
from clip_randlora.data.label_files import SUFFIXES as TABLE_SUFFIXES
from clip_randlora.data.label_files import ColumnNames
from clip_randlora.data.layouts import Source, list_files, list_source, read_layout
from clip_randlora.data.parts import find_parts, is_pattern
from clip_randlora.data.sampling import hold_back, hold_out
from clip_randlora.data.sources import natural_key
from clip_randlora.errors import UserError
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress
from clip_randlora.utils.wording import join_names

MOST_CHECKED = 100_000  # images of a set whose headers are read and whose contents are compared
HELD_OUT_NOTE = "No test split: held out"  # the beginning of the note on held-out images


def load_data(
    source: Source,
    test: Source | None = None,
    held_out: float = 0.3,
    *,
    class_folders: ClassFolders | None = None,
    validation: int | None = None,
    check: bool | None = None,
    columns: str | Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Data:
    """Read a labelled image set. The images' headers are checked, pixels are not decoded yet.

    Args:
        source: a folder or ``.zip`` of class folders, or of ``train/`` and ``test/`` (else
            ``val/``) folders of class folders; WebDataset shards, or parquet or Arrow files, as a
            folder, one file or a pattern such as ``shards/train-{000..009}.tar``; a project that
            the app saved; a YAML file that describes a data set (see ``DatasetSpec``); or the name
            of a data set (``clip-randlora datasets`` lists them). If a path of that name exists, it
            is used. A table of labels (CSV, JSON, JSON lines, or an export of Label Studio, CVAT or
            Roboflow) may lie in the folder of the images, or be given itself: its paths start from
            its folder. ``hub:ORG/NAME`` or ``hub:ORG/NAME@SPLIT`` is a data set of the Hugging
            Face hub. In Python, also a data frame of pandas or polars, whose paths start from the
            current folder, and a ``datasets.Dataset`` or ``DatasetDict``.
        test: where the test images are, in the same forms; by default the source's own test
            split, else ``held_out`` of each class.
        held_out: share of each class that is held out for testing if there is no test split.
            Which images that are only depends on the name of the class and the order of the
            images' names.
        class_folders: ``leaves`` takes the folders that hold the images as the classes, which
            matters if they are nested (genus/species); ``top`` takes the topmost folders, even
            ``train`` and ``test``. By default the classes are the topmost folders below the
            splits.
        validation: number of training images to hold back for validation, the same ones each time;
            by default the source's own validation images, or what the data set's spec says.
        check: whether the headers of all images are read, and contents compared, so that no copy
            of a test image is trained on. By default up to ``MOST_CHECKED`` images are. A broken
            image that was not found in this way is left out and named when it is decoded.
        columns: which columns of a table to use, such as ``{"path": "file", "label": "species",
            "split": "fold"}`` or ``"label=species"``; a note says which were found.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the source is missing, not downloaded or not in these forms; it has fewer than
            two classes, test classes that training does not have, or a class without a readable
            training image.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out: {held_out} is not a share; give a number between 0 and 1")
    chosen = ColumnNames.parse(columns)
    layout = test_layout = read_layout(source, class_folders, on_progress, chosen)
    notes, skipped = layout.notes, layout.skipped
    source = _called(source)
    if test is not None:
        test_layout = read_layout(test, class_folders, on_progress, chosen)
        test = _called(test)
        if layout.test is not None:
            count = sum(map(len, layout.test.values()))
            notes.append(f"The {count} test images of {source} are not used: {test} is given.")
        layout.add_test(test_layout)
    classes = _classes_of(layout)
    _check_classes(source, test or source, classes, layout.test)
    if check is None:
        check, remarks = _choose_check(layout)
        notes += remarks
    is_checked = check and not layout.is_ready_made

    train, broken = _read_items(layout.train, classes, is_checked, on_progress)
    skipped += broken
    if not layout.is_test_only:
        _check_not_empty(classes, train, broken)
    digests: dict[int, str] = {}
    if layout.test is None:
        digests = _digests(train, on_progress) if check else {}
        train, tested, note = _hold_out(train, classes, digests, held_out)
        notes.append(note)
    else:
        is_test_checked = check and not test_layout.is_ready_made
        tested, broken = _read_items(layout.test, classes, is_test_checked, on_progress)
        skipped += broken
        if is_checked:
            digests = _digests([*train, *tested], on_progress)
        share = held_out if test is None else 0.0
        train, tested, leaks = _remove_leaks(train, tested, digests, classes, share)
        notes += leaks
    if not tested:
        why = "can be read" if layout.test is not None else "can be held out, there are too few"
        raise UserError(f"{test or source}: no test image {why}; give more images")
    held_back = layout.held_back if validation is None else validation
    validated: list[Item] = []
    validation_draw = None
    if layout.validation is not None and validation is None:
        validated, broken = _read_items(layout.validation, classes, is_checked, on_progress)
        skipped += broken
        validation_draw = layout.validation_draw
    elif held_back:
        train, validated, note = _hold_back(source, train, digests, held_back)
        notes.append(note)
    notes += [*_note_similar_names(classes), *_note_untested(classes, tested)]
    notes += _note_contradictions([*train, *tested], digests)
    return Data(
        _name_of(source),
        classes,
        Split(tuple(train), classes, layout.draw),
        Split(tuple(tested), classes),
        tuple(skipped),
        tuple(notes),
        held_out=layout.test is None,
        is_ready_made=layout.is_ready_made,
        class_folders=class_folders,
        templates=layout.templates,
        prompts=layout.prompts,
        validation=Split(tuple(validated), classes, validation_draw) if validated else None,
    )


def list_images(
    source: str | Path, *, on_progress: OnProgress | None = None
) -> tuple[list[Item], list[Skipped]]:
    """List every image of a folder or ``.zip``, also in nested folders; the labels mean nothing.

    Returns:
        The images, naturally sorted by name, and the files left out. Up to ``MOST_CHECKED``
        images, those without a readable header are left out too.

    Raises:
        UserError: the source is missing, cannot be read, or holds no image.
    """
    listing, images = list_source(source, on_progress)
    good = [Item(file.name, 0, file.content) for file in images]
    broken: list[Skipped] = []
    if len(good) <= MOST_CHECKED:
        good, broken = _check_headers(good, on_progress)
    if not good:
        raise UserError(f"{source}: no images that can be read")
    return good, [*listing.skipped, *broken]


@dataclass(frozen=True)
class LabelledImages:
    """Images to test a run on, labelled by the run's classes or by their own.

    Attributes:
        split: the images.
        templates, prompts: as in `Data`, of the source.
        is_test_split: whether the source has a test split, whose images alone these are.
        skipped: files that were left out.
        notes: sentences for the user.
    """

    split: Split
    is_test_split: bool
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    templates: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def load_labelled(
    source: Source,
    classes: Sequence[str] | None,
    class_folders: ClassFolders | None = None,
    *,
    columns: str | Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> LabelledImages:
    """Read images of some or all of a run's classes: of the test split, if there is one.

    Args:
        source: in the forms that `load_data` takes, or the folder of a single class, or one with a
            single class folder.
        classes: the run's; None takes the source's own, at least two. A folder ``none of these``
            that the run does not know is a further class after these.
        class_folders, columns: as for `load_data`.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: the source is missing or in none of these forms, has a class that the run does
            not know, or no readable image.
    """
    single = None if classes is None else _read_single_class(source, classes, on_progress)
    layout = single or read_layout(source, class_folders, on_progress, ColumnNames.parse(columns))
    source = _called(source)
    files = layout.train if layout.test is None else layout.test
    if classes is None:
        classes = _classes_of(layout)
        _check_classes(source, source, classes, layout.test)
    unknown = sorted(files.keys() - set(classes), key=natural_key)
    none = [name for name in unknown if is_none_of_these(name)]
    if len(unknown) > len(none):
        unknown = [name for name in unknown if name not in none]
        raise UserError(
            f"{source}: the run does not know the class {unknown[0]!r}; it knows "
            f"{', '.join(classes)} (--own-classes answers among the classes of {source})"
        )
    classes = [*classes, *none]
    is_checked = not layout.is_ready_made and _count(files) <= MOST_CHECKED
    items, broken = _read_items(files, classes, is_checked, on_progress)
    skipped = (*layout.skipped, *broken)
    if not items:
        first = f" (the first is {skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise UserError(f"{source}: no image to test on can be read{first}; give others")
    split = Split(tuple(items), tuple(classes))
    return LabelledImages(
        split,
        layout.test is not None,
        skipped,
        tuple(layout.notes),
        layout.templates,
        layout.prompts,
    )


def _read_single_class(
    source: Source, classes: Sequence[str], on_progress: OnProgress | None
) -> Layout | None:
    """Read a folder or archive that is called like a class and has no class folder in it."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    if not path.exists() or (path.is_file() and path.suffix in (*SPEC_SUFFIXES, *TABLE_SUFFIXES)):
        return None
    name = unicodedata.normalize("NFC", path.stem if path.is_file() else path.resolve().name)
    if name not in classes:
        return None
    listing, images, _ = list_files(source, on_progress)
    folders = {part for folder in {file.folder for file in images} for part in folder.split("/")}
    if not images or folders & set(classes):
        return None
    return Layout({name: images}, skipped=listing.skipped)


def _called(source: Source) -> str | Path:
    """Return what messages call a source."""
    return source if isinstance(source, str | Path) else type(source).__name__


def _name_of(source: str | Path) -> str:
    path = Path(source).expanduser()
    if is_pattern(source) and (parts := find_parts(source)) is not None:
        return Path(parts.base).resolve().name
    if not path.exists():
        return str(source)
    if path.suffix in SPEC_SUFFIXES and path.is_file():
        return read_dataset_spec(path).name
    return path.stem if path.is_file() else path.resolve().name


def _classes_of(layout: Layout) -> tuple[str, ...]:
    files = (layout.test or {}) if layout.is_test_only else layout.train
    return tuple(files if layout.is_described else sorted(files, key=natural_key))


def _check_classes(
    source: str | Path, test: str | Path, classes: Sequence[str], test_files: ClassFiles | None
) -> None:
    if not classes:
        raise UserError(f"{source}: no image is for training; {EXPECTED_LAYOUT}")
    if len(classes) < 2:
        raise UserError(
            f'{source}: only one class ("{classes[0]}"), at least two are needed; {EXPECTED_LAYOUT}'
        )
    unknown = sorted(set(test_files or ()) - set(classes), key=natural_key)
    if unknown:
        raise UserError(
            f"{test}: test classes that training has not: {join_names(unknown, 10)}; rename or "
            f"remove them (training has {join_names(classes, 10)})"
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


def _choose_check(layout: Layout) -> tuple[bool, list[str]]:
    """Return whether a set is small enough to read every file's header, and a note if it is not."""
    count = sum(map(_count, (layout.train, layout.test or {}, layout.validation or {})))
    if count <= MOST_CHECKED:
        return True, []
    if layout.is_ready_made and layout.test is not None:  # not checked in any case
        return False, []
    note = (
        f"There are more than {MOST_CHECKED:,} images ({count:,}): their headers were not read, "
        f"and copies of test images were not looked for (--check, or check=True in Python, does "
        f"both)."
    )
    return False, [note]


def _count(files: ClassFiles) -> int:
    return sum(map(len, files.values()))


def _read_items(
    files: ClassFiles, classes: Sequence[str], is_checked: bool, on_progress: OnProgress | None
) -> tuple[list[Item], list[Skipped]]:
    """Return files as items, and if they are checked, without those that are no images."""
    items = [
        Item(file.name, label, file.content)
        for label, name in enumerate(classes)
        for file in files.get(name, [])
    ]
    return _check_headers(items, on_progress) if is_checked else (items, [])


def _check_headers(
    items: list[Item], on_progress: OnProgress | None
) -> tuple[list[Item], list[Skipped]]:
    def find_problem(item: Item) -> Skipped | None:
        try:
            item.check()
        except UnreadableImage as error:
            return Skipped(error.name, error.reason)
        return None

    problems = parallel_map(find_problem, items)
    problems = report_progress(problems, "reading images", len(items), on_progress)
    checked = list(zip(items, problems, strict=True))
    good = [item for item, problem in checked if problem is None]
    return good, [problem for _, problem in checked if problem is not None]


def _digests(items: Sequence[Item], on_progress: OnProgress | None) -> dict[int, str]:
    """Return a key of each image's content by ``id(item)``.

    Only files of equal size are read: others differ anyway.
    """
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_size[item.content.size].append(item)
    keys = {id(item): f"unique {number}" for number, item in enumerate(items)}
    shared = [item for group in by_size.values() if len(group) > 1 for item in group]
    digests = parallel_map(Item.digest, shared)
    digests = report_progress(digests, "looking for copies", len(shared), on_progress)
    keys.update(zip(map(id, shared), digests, strict=True))
    return keys


def _hold_out(
    items: list[Item], classes: Sequence[str], digests: dict[int, str], share: float
) -> tuple[list[Item], list[Item], str]:
    """Split images into those for training and those for testing; the third result is a note.

    Without digests no image is a copy of another, and a class's split depends on no other class.
    """
    groups = Split(tuple(items), tuple(classes)).by_class()
    if digests:
        held = hold_out(
            {classes[label]: [digests[id(i)] for i in group] for label, group in groups.items()},
            share,
        )
    else:
        held = {}
        for label, group in groups.items():
            held |= hold_out({classes[label]: range(len(group))}, share)
    train: list[Item] = []
    test: list[Item] = []
    for label, group in groups.items():
        name = classes[label]
        if all(held[name]):
            raise UserError(
                f'class "{name}": all its images are copies of test images of other classes; '
                f"remove the copies"
            )
        for item, is_test in zip(group, held[name], strict=True):
            (test if is_test else train).append(item)
    note = f"{HELD_OUT_NOTE} {share * 100:g} % of each class"
    return train, test, f"{note} ({len(test)} of {len(items)} images)."


def _hold_back(
    source: str | Path, items: list[Item], digests: dict[int, str], count: int
) -> tuple[list[Item], list[Item], str]:
    """Split images into those for training and those for validation; the third is a note."""
    keys = [(item.label, digests.get(id(item), id(item))) for item in items]
    held = hold_back(keys, count)
    if sum(held) != count:
        raise UserError(
            f"validation: {count}, but {source} has {len(items)} training images, of which every "
            f"class keeps one and copies stay; give 0 to {sum(hold_back(keys, len(keys)))}"
        )
    train, validated = (
        [item for item, is_held in zip(items, held, strict=True) if is_held == which]
        for which in (False, True)
    )
    return train, validated, f"Held back for validation: {count} of {len(items)} training images."


def _remove_leaks(
    train: list[Item],
    test: list[Item],
    digests: dict[int, str],
    classes: Sequence[str],
    share: float,
) -> tuple[list[Item], list[Item], list[str]]:
    """Keep training images out that are test images too: they would make the accuracy too good.

    If a class has no other training images, ``share`` of them stay in the test split, and the rest
    in training. A share of 0 makes that an error.
    """
    in_test = {digests[id(item)]: item for item in reversed(test) if digests}
    leaks = [item for item in train if digests.get(id(item)) in in_test]
    if not leaks:
        return train, test, []
    named = join_names(f"{item.name} = {in_test[digests[id(item)]].name}" for item in leaks)
    trained_classes = {item.label for item in train if digests[id(item)] not in in_test}
    groups = Split(tuple(leaks), tuple(classes)).by_class()
    shared = {
        classes[label]: [digests[id(item)] for item in group]
        for label, group in groups.items()
        if label not in trained_classes
    }
    held = hold_out(shared, share)
    for_training = set()
    for name, keys in shared.items():
        if not share or all(held[name]):
            raise UserError(
                f'class "{name}": all its training images are test images too ({named}); give '
                f"others to train on, or to test on"
            )
        for_training |= {key for key, is_test in zip(keys, held[name], strict=True) if not is_test}
    kept = [i for i in train if (k := digests[id(i)]) not in in_test or k in for_training]
    note = f"{len(leaks)} of {len(train)} training images are test images too ({named}): "
    if not shared:
        return kept, test, [f"{note}they are kept out of training."]
    note += f"{share * 100:g} % of them stay for testing alone, the rest for training, in "
    note += f"{join_names(shared)}, where there are no others"
    if len(shared) < len(groups):
        note += "; elsewhere they are kept out of training"
    return kept, [i for i in test if digests[id(i)] not in for_training], [f"{note}."]


def _note_untested(classes: Sequence[str], tested: list[Item]) -> list[str]:
    labels = {item.label for item in tested}
    untested = [name for label, name in enumerate(classes) if label not in labels]
    return [f"No test images for {join_names(untested, 10)}."] if untested else []


def _note_contradictions(items: list[Item], digests: dict[int, str]) -> list[str]:
    first: dict[str, Item] = {}
    pairs = []
    for item in items if digests else []:
        same = first.setdefault(digests[id(item)], item)
        if same.label != item.label:
            pairs.append(f"{same.name} = {item.name}")
    if not pairs:
        return []
    return [
        f"The same image under two classes, {len(pairs)} times: {join_names(pairs)}; remove one of "
        f"each."
    ]


def _note_similar_names(classes: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[name.casefold()].append(name)
    similar = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if not similar:
        return []
    named = "; ".join(similar[:10])
    return [f"Classes that differ in capitals only: {named}; merge them if alike."]
