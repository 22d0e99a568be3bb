"""Sort the images of a folder into classes and splits, by the ways in which people lay out folders.

The rules, in the order in which they are tried:

1. A folder that holds nothing but one folder is passed through: ``archive/data/...``.
2. Masks, labels and annotations beside folders of images are left out.
3. Images without class folders get their classes from a table beside them (`tables`).
4. ``train`` and ``test`` (else ``eval``, else ``val``) are splits, which hold the class folders.
5. One folder with such splits is the data set, if the folders beside it are extras by their names.
6. Folders that do not look like classes are an error that asks which ones are meant.
7. The splits may also lie below the classes: ``cat/train`` and ``cat/test``.
8. All other folders are classes: the topmost, or the lowest with ``leaves``.

Afterwards, lists such as ``train.txt`` make the split if there is none yet (`lists`), and masks
beside their images (``1_mask.png``) are left out. ``top`` uses rules 1 and 8 alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple, get_args

from clip_randlora.data.coop_draws import CoopDraw
from clip_randlora.data.dataset import Skipped
from clip_randlora.data.folder_names import (
    EVALUATION,
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    are_parts,
    bare_splits,
    find_masks,
    find_splits,
    is_container,
    is_extra,
    is_stray,
    pick_test_split,
    split_name,
)
from clip_randlora.data.lists import read_lists
from clip_randlora.data.sources import File, Listing, natural_key
from clip_randlora.data.tables import Labels, Tables, place_labels
from clip_randlora.errors import UserError
from clip_randlora.utils.wording import join_names

EXPECTED_LAYOUT = "put the images into one folder per class, like cat/1.jpg and dog/1.jpg"
NO_CLASS_FOLDER = "not in a class folder"
"""Why an image beside class folders is left out."""

_TESTS = (TEST, EVALUATION, VALIDATION)  # the first one that exists is the test split
_ASK = "if these are the classes, say so with --class-folders top"
_MAX_TABLES = 50
_MASK_FILE = re.compile(
    r"(.+)[ _.-](?:masks?|gt|ground_?truth|seg|segmentation|trimap|matte)(?:[ _.-]?\d+)?", re.I
)

ClassFolders = Literal["top", "leaves"]
ClassFiles = dict[str, list[File]]
Parts = tuple[str, ...]


@dataclass
class Layout:
    """The files of a source by split and class.

    Attributes:
        train: files by class.
        test: files by class; None if the source has no test split.
        notes: sentences for the user.
        skipped: files that were left out.
        is_described: whether the classes are in the order of a data set's spec.
        is_ready_made: whether this is a published data set, whose split is used as it is: its
            images are not searched for broken ones and copies.
        is_test_only: whether there are no training images, and need not be.
        templates: prompt templates of the data set's spec.
        prompts: ``{class: names in its prompts}`` of the data set's spec.
        held_back: number of training images that the data set's spec holds back for validation.
        validation: files by class; None if the source has no validation split of its own.
        draw, validation_draw: how few-shot images are drawn, if a file of CoOp's says so.
    """

    train: ClassFiles
    test: ClassFiles | None = None
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    is_described: bool = False
    is_ready_made: bool = False
    is_test_only: bool = False
    templates: tuple[str, ...] = ()
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_back: int | None = None
    validation: ClassFiles | None = None
    draw: CoopDraw | None = None
    validation_draw: CoopDraw | None = None

    def add_test(self, other: Layout) -> None:
        """Take the test split of another source, or all its images if it has no split."""
        self.test = other.train if other.test is None else other.test
        self.notes += other.notes
        self.skipped += other.skipped

    def leave_out_empty(self) -> None:
        """Leave out the classes without any image, and note which they are."""
        test = self.test or {}
        empty = [name for name in self.train if not self.train[name] and not test.get(name)]
        for name in empty:
            del self.train[name]
            test.pop(name, None)
        if empty:
            self.notes.append(f"No images of {join_names(empty)}: left out.")


def check_class_folders(value: str | None) -> None:
    """Check a value of ``--class-folders``.

    Raises:
        UserError: it is neither None, ``top`` nor ``leaves``.
    """
    if value is not None and value not in get_args(ClassFolders):
        raise UserError(f"--class-folders {value}: give top or leaves")


def read_folders(
    source: str, listing: Listing, images: Sequence[File], class_folders: str | None = None
) -> Layout:
    """Sort images into splits and classes by the folders that they lie in.

    Args:
        source: the source's name in errors.
        listing: of the source; its other files may be label tables or lists of a split.
        images: of the listing, at least one.
        class_folders: ``top`` takes the topmost folders as the classes, whatever their names;
            ``leaves`` the folders that hold the images, below the splits. By default the classes
            are the topmost folders below the splits.

    Raises:
        UserError: there are no class folders, or it is not clear which folders they are.
    """
    return _FolderReader(source, listing, images, class_folders).read()


@dataclass
class _Folder:
    """A folder with images in it or below it."""

    parts: Parts
    files: list[File] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path below the source, with a ``/`` at its end."""
        return "/".join((*self.parts, ""))

    def all_files(self) -> Iterator[File]:
        """The images in it and below it."""
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()

    def all_folders(self) -> Iterator[_Folder]:
        """The folder, and those in it, in the order of `all_files`."""
        yield self
        for folder in self.folders.values():
            yield from folder.all_folders()

    def without(self, names: Iterable[str]) -> _Folder:
        """The same folder without some of the folders in it."""
        dropped = set(names)
        kept = {name: sub for name, sub in self.folders.items() if name not in dropped}
        return _Folder(self.parts, self.files, kept)

    def lone_folder(self) -> _Folder | None:
        """The folder in it, if it holds one folder and nothing else."""
        is_wrapper = len(self.folders) == 1 and not self.files
        return next(iter(self.folders.values())) if is_wrapper else None

    def class_names(self) -> set[str]:
        """The names of the folders in it, or in the ``images/`` that is all it has but masks."""
        folder, names = self, set(self.folders) - set(find_masks(self.folders)[1])
        while len(names) == 1 and is_container(*names):
            folder = folder.folders[names.pop()]
            names = set(folder.folders)
        return names

    def groups(self) -> dict[str, set[str]]:
        """The class names of each folder in it."""
        return {name: sub.class_names() for name, sub in self.folders.items()}

    def splits(self) -> dict[str, str]:
        """Which of the folders in it are splits, see `find_splits`."""
        return find_splits(self.groups())

    def unwrap(self) -> _Folder:
        """The folder of all class folders or splits: rule 1."""
        folder = self
        while len(folder.folders) == 1:
            (only,) = folder.folders.values()
            if not only.folders or (only.files and not only.splits()):
                break
            folder = only
        return folder


class _Place(NamedTuple):
    """An image's split, and its class folder with the folders below it."""

    split: str
    path: Parts


class _FolderReader:
    """Reads one source, and collects what is left out and the notes on the way.

    Files are known by their ``id``. An image is in ``placed``, in ``left_out`` (a note names it or
    its folder), or in neither, and then in no class folder.
    """

    def __init__(
        self, source: str, listing: Listing, images: Sequence[File], class_folders: str | None
    ):
        self.source, self.listing, self.images = source, listing, images
        self.class_folders = class_folders
        keys = set(map(id, images))
        self.others = [file for file in listing.files if id(file) not in keys]
        self.tables = Tables(source, self.others, images)
        self.placed: dict[int, _Place] = {}
        self.left_out: set[int] = set()
        self.left_out_folders: list[_Folder] = []
        self.notes: list[str] = []
        self.class_parents: list[Parts] = []
        self.used: set[str] = set()  # names of tables and lists
        self.has_test = False

    def read(self) -> Layout:
        top = _tree(self.images).unwrap()
        if self.class_folders == "top":
            self._take_classes(top)
        else:
            self._apply_rules(top)
        if not self.placed:
            raise UserError(
                f"{self.source}: {len(self.images)} images but no class folders; {EXPECTED_LAYOUT}"
            )
        if self.class_folders != "top":
            self._note_levels()
            if not self.has_test:
                self._apply_lists()
            self._leave_out_mask_files(top)
        train, test = self._by_class()
        loose = [
            Skipped(file.name, NO_CLASS_FOLDER)
            for file in self.images
            if id(file) not in self.placed and id(file) not in self.left_out
        ]
        skipped = [entry for entry in self.listing.skipped if entry.name not in self.used]
        notes = [*self.notes, *self._note_left_out(), *self._note_empty()]
        return Layout(train, test, notes, skipped + loose)

    def _apply_rules(self, top: _Folder) -> None:
        with_masks, top = top, self._without_masks(top).unwrap()
        if not top.folders or _is_one_folder_of_images(top):
            self._take_flat(top, with_masks)
        elif splits := top.splits():
            self._take_splits(top, splits)
        elif dataset := self._find_dataset(top):
            self._leave_out(folder for folder in top.folders.values() if folder is not dataset)
            self._apply_rules(dataset.unwrap())
        else:
            self._check_classes(top)
            if not self._take_splits_below(top):
                self._check_same_folders(top, top.groups())
                self._take_classes(top)

    # --- rule 2: masks beside images

    def _without_masks(self, folder: _Folder) -> _Folder:
        """Leave out folders of masks, and extras beside one folder of images."""
        images, masks = find_masks(folder.folders)
        if not masks:
            images = [name for name in folder.folders if not is_extra(name)]
            masks = [name for name in folder.folders if name not in images]
            if len(images) != 1 or not masks:
                return folder
            are_unlabelled = all(is_extra(name, UNLABELLED) for name in masks)
            if not is_container(images[0]) and not (
                folder.folders[images[0]].folders and are_unlabelled
            ):
                return folder
        kept = folder.without(masks)
        if len(kept.folders) > 1 and not any(sub.folders for sub in kept.folders.values()):
            raise self._only_images_and_masks(folder)
        self._leave_out(folder.folders[name] for name in masks)
        return kept

    def _only_images_and_masks(self, folder: _Folder) -> UserError:
        return self._unclear(
            f"{_join_folders(folder.folders)} look like images and their masks or labels, not like "
            f"classes; {EXPECTED_LAYOUT}"
        )

    # --- rule 3: labels from a table

    def _take_flat(self, folder: _Folder, with_masks: _Folder) -> None:
        """Take the labels of images without class folders from a table."""
        inner = folder
        while only := inner.lone_folder():
            inner = only
        labels = self._find_labels(inner, (), (), TRAIN)
        if labels is not None:
            tables = [(TRAIN, labels)]
            if not labels.split_of:
                tables += self._test_tables(inner)
            self._place_labelled(inner, tables)
        elif len(with_masks.folders) > 1:
            raise self._only_images_and_masks(with_masks)
        elif folder.folders:
            raise UserError(
                f"{self.source}: {inner.path} holds {len(inner.files)} images and no class "
                f"folders, and no table has their labels; {EXPECTED_LAYOUT}, or a labels.csv with "
                f"the columns file and label beside {inner.path}{self._unreadable()}"
            )

    def _test_tables(self, folder: _Folder) -> list[tuple[str, Labels]]:
        """Return the labels of ``test.csv``, which may lie beside ``train.csv`` of one folder."""
        for split in _TESTS:
            if labels := self._find_labels(folder, (), (), split, only_named=True):
                return [(split, labels)]
        return []

    def _unreadable(self) -> str:
        """Return which of the files with labels could not be read, for the end of an error."""
        return "".join(f" ({error})" for error in self.tables.unreadable[:1])

    def _find_labels(
        self,
        folder: _Folder,
        root: Parts,
        others: Sequence[File],
        split: str,
        only_named: bool = False,
    ) -> Labels | None:
        """Find a table with the labels of a folder's images.

        Args:
            folder: the folder that the images lie in.
            root: the folder of the split; a table in it is for these images alone.
            others: images of the other splits.
            split: the split of the images.
            only_named: whether the table must be named after the split.
        """
        elsewhere = {file.parts[: len(root)] for file in others}
        inside: list[File] = []  # in the split
        above: list[File] = []  # in one of the folders around it
        beside: list[File] = []
        for file in self.tables.files:
            if root and file.parts[: len(root)] == root:
                inside.append(file)
            elif file.parts[:-1] == folder.parts[: len(file.parts) - 1]:
                above.append(file)
            elif file.parts[: len(root)] not in elsewhere:
                beside.append(file)
        if len(beside) > _MAX_TABLES:
            beside = []
        for tables, rivals in ((inside, ()), (above, others), (beside, others)):
            if found := self.tables.find_labels(tables, folder.files, rivals, split, only_named):
                return found
        return None

    def _place_labelled(self, folder: _Folder, tables: Sequence[tuple[str, Labels]]) -> None:
        """Place the images of a folder by tables, each with its split."""
        labelled = place_labels(folder.path or self.source, tables)
        for key, (split, label) in labelled.places.items():
            self.placed[key] = _Place(split, (label,))
        self.left_out |= labelled.left_out
        self.has_test = self.has_test or labelled.has_test
        self.used.update(labels.table for _, labels in tables)
        self.notes += labelled.notes

    # --- rule 4: splits

    def _take_splits(self, top: _Folder, splits: dict[str, str]) -> None:
        """Take the classes below the training folder and the test folder."""
        inside = {name: self._inside_split(top.folders[name], splits[name]) for name in splits}
        labels: dict[str, Labels] = {}

        def choose(split: str) -> str | None:
            names = [name for name in splits if splits[name] == split]
            chosen = [name for name in names if inside[name].folders]
            for name in () if chosen else names:
                others = [f for n in splits if n != name for f in top.folders[n].all_files()]
                if found := self._find_labels(inside[name], (*top.parts, name), others, split):
                    labels[name] = found
                    chosen.append(name)
            if len(chosen) > 1:
                advice = self._say_which(top, {chosen[0]: split} | splits)
                raise UserError(
                    f"{self.source}: {_join_folders(chosen)} both look like the {split} split; "
                    f"{advice}"
                )
            return chosen[0] if chosen else None

        train = choose(TRAIN)
        if train is None:
            raise self._splits_without_classes(top, splits)
        classes = set(labels[train].by_file.values() if train in labels else inside[train].folders)
        test = next((name for split in _TESTS if (name := choose(split))), None)
        if test in labels and not set(labels[test].by_file.values()) <= classes:
            test = None  # labels of another kind
        if test and splits[test] == VALIDATION:
            self.notes.append(f"No test/ with class folders: {test}/ is the test split.")
        if not {train, test} & labels.keys():
            self._unwrap_both(inside, train, test)
        self.has_test = test is not None
        for name, split in ((train, TRAIN), (test, TEST)):
            if name is None:
                continue
            if name in labels:
                if test is not None:  # the folders tell the split
                    labels[name].split_of = {}
                self._place_labelled(inside[name], [(split, labels[name])])
            else:
                self._check_classes(inside[name])
                self._check_same_folders(inside[name], inside[name].groups())
                self._take_classes(inside[name], split)
        self._leave_out(sub for name, sub in top.folders.items() if name not in (train, test))

    def _inside_split(self, folder: _Folder, split: str) -> _Folder:
        """Go through folders that only repeat the split (``train/train``) or say ``images``."""
        own = folder.parts[-1]
        while True:
            folder = self._without_masks(folder)
            only = folder.lone_folder()
            if only is None:
                return folder
            name = split_name(only.parts[-1])
            repeats = only.parts[-1] == own or (name is not None and name.split == split)
            if not repeats and not is_container(only.parts[-1]):
                return folder
            folder = only

    def _unwrap_both(self, inside: dict[str, _Folder], train: str, test: str | None) -> None:
        """Go through the one folder that all classes of both splits lie in: rule 1."""
        first = inside[train].lone_folder()
        if first is None or not first.folders or first.files:
            return
        if test is not None:
            second = inside[test].lone_folder()
            if second is None or not set(second.folders) & set(first.folders):
                return
            inside[test] = second
        inside[train] = first

    def _splits_without_classes(self, top: _Folder, splits: dict[str, str]) -> UserError:
        train = [name for name in splits if splits[name] == TRAIN]
        count = sum(1 for name in train for _ in top.folders[name].all_files())
        return self._unclear(
            f"{_join_folders(splits)} look like splits, but there are no class folders in "
            f"{_join_folders(train)} ({count} images) and no table has their labels; put one "
            f"folder per class into each, or {train[0]}.csv with the columns file and label "
            f"beside it{self._unreadable()}"
        )

    # --- rule 5: one data set among extras

    def _find_dataset(self, top: _Folder) -> _Folder | None:
        """Find the one folder with splits that hold class folders."""
        found: dict[str, _Folder] = {}
        for name, folder in top.folders.items():
            inner = folder.unwrap()
            if any(inner.folders[split].folders for split in inner.splits()):
                found[name] = inner
        if not found:
            return None
        first = top.folders[next(iter(found))]
        classes = [set().union(*inner.groups().values()) for inner in found.values()]
        if any(one & other for one, other in combinations(classes, 2)):
            raise UserError(
                f"{self.source}: {_join_folders(found)} each have splits with the same class "
                f"folders; {self._give_one(first)}"
            )
        if len(found) > 1:
            return None
        rest = [name for name in top.folders if name not in found]
        if all(map(is_extra, rest)):
            return first
        raise UserError(
            f"{self.source}: {first.path} has splits of its own and {_join_folders(rest)} "
            f"{'have' if len(rest) > 1 else 'has'} none; {self._give_one(first)}"
        )

    # --- rule 6: what does not look like classes

    def _check_classes(self, top: _Folder) -> None:
        """Refuse folders that look like splits, parts, a set, or what only sorts others."""
        names = list(top.folders)
        if len(names) > 1 and (splits := bare_splits(names)):
            raise self._unclear(
                f"{_join_folders(names)} look like splits, and none or more than one is for "
                f"training; {self._say_which(top, splits)}"
            )
        if are_parts(names):
            raise self._unclear(
                f"{_join_folders(names)} look like parts, folds or sizes of one set, not like "
                f"classes; {EXPECTED_LAYOUT}, or {self._give_one(top.folders[names[0]])}"
            )
        if stray := [name for name in names if is_stray(name, names)]:
            beside = _join_folders(name for name in names if name not in stray)
            looks = "does not look like a class" if len(stray) == 1 else "do not look like classes"
            raise self._unclear(
                f"{_join_folders(stray)} beside {beside} {looks}; put the classes into train/ and "
                f"test/, or {stray[0]}/ elsewhere"
            )
        for name, folder in top.folders.items():  # data/ or train/ with classes, beside others
            others, inner = top.without([name]).folders, folder.class_names()
            are_flat = not any(sub.folders for sub in others.values())
            is_split = are_flat and len(others) == 1 and bool(bare_splits([name]))
            if others and len(inner) > 1 and (is_container(name) or is_split):
                raise self._unclear(
                    f"{name}/ holds {len(inner)} folders and is beside {_join_folders(others)}; "
                    f"{self._give_one(folder)}"
                )
        if self.class_folders is None and all(
            len(name) == 1
            and not name.isdigit()
            and sub.folders
            and all(below.casefold().startswith(name.casefold()) for below in sub.folders)
            for name, sub in top.folders.items()
        ):
            raise UserError(
                f"{self.source}: {_join_folders(names)} only sort the folders in them by their "
                f"first letter; take those as classes with --class-folders leaves"
            )

    def _check_same_folders(self, top: _Folder, groups: dict[str, set[str]]) -> None:
        """Refuse folders that hold the same folders: either level may be the classes."""
        for name, group in groups.items():
            if len(doubles := group & groups.keys()) > 1:
                named = _join_folders(sorted(doubles, key=natural_key))
                raise self._unclear(
                    f"{name}/ holds folders that are beside it too ({named}); put {name}/ "
                    f"elsewhere, and give it with --test if it is for testing"
                )
        alike, common = _find_alike(groups)
        if not alike or (self.class_folders == "leaves" and not are_parts(common)):
            return
        where, below = self._path(top.parts), sorted(common, key=natural_key)
        raise UserError(
            f"{self.source}: {_join_folders(alike)} hold the same folders "
            f"({_join_folders(below)}); if those are the classes, give one of the upper, as "
            f"{where}/{alike[0]}, with --test {where}/{alike[1]}; if the upper are the classes, "
            f"say --class-folders top"
        )

    def _path(self, parts: Parts) -> str:
        return "/".join((self.source, *parts))

    def _unclear(self, text: str) -> UserError:
        return UserError(f"{self.source}: {text}; {_ASK}")

    def _say_which(self, top: _Folder, splits: dict[str, str]) -> str:
        """Return how to give a training and a test folder, of those whose splits are given."""
        first = {split: name for name, split in reversed(splits.items())}
        train = self._path((*top.parts, first.get(TRAIN, "TRAIN")))
        test = self._path((*top.parts, first.get(pick_test_split(first) or "", "TEST")))
        return f"say which is meant, as {train} --test {test}"

    def _give_one(self, folder: _Folder) -> str:
        return f"give the one that is meant, as {self._path(folder.parts)}"

    # --- rules 7 and 8: classes, with or without splits below them

    def _walk(
        self, folder: _Folder, path: Parts, split: str | None
    ) -> Iterator[tuple[list[File], _Place | None]]:
        """Yield the images of each folder in and below a folder, and their place; None if no split.

        Args:
            folder: the folder of the classes, or one below it.
            path: the class folder and those below it, on the way to ``folder``.
            split: the split of all images; None looks for splits among the folders.
        """
        if path and self.class_folders != "top":
            folder = self._without_masks(folder)
        splits: dict[str, str] = {}
        if split is None:
            splits = folder.splits() or (bare_splits(folder.folders) if path else {})
        if not splits and folder.files:
            yield folder.files, (_Place(split, path) if split is not None else None)
        only = folder.lone_folder()
        is_skipped = path and only is not None and is_container(only.parts[-1])
        for name, sub in folder.folders.items():
            own = splits.get(name)
            if splits and own is None:
                self._leave_out([sub])
            else:
                yield from self._walk(
                    sub, path if own or is_skipped else (*path, name), own or split
                )

    def _take_splits_below(self, top: _Folder) -> bool:
        """Take ``cat/train`` and ``cat/test``, at any depth. Return False if there are none."""
        found = list(self._walk(top, (), None))
        placed = [(files, place) for files, place in found if place is not None]
        bare = [files[0] for files, place in found if place is None]  # one of each folder
        kinds = {place.split for _, place in placed}
        if TRAIN not in kinds or (bare and kinds == {TRAIN}):
            return False
        if any(file.name.count("/") > len(top.parts) for file in bare):
            folders = {f"{file.folder}/" for file in bare}
            raise UserError(
                f"{self.source}: some folders have a split below them and others, like "
                f"{min(folders, key=natural_key)}, have none; put all classes into train/ and test/"
            )
        groups: dict[str, set[str]] = defaultdict(set)
        for _, place in placed:
            groups[place.path[0]].update(place.path[1:2])
        self._check_same_folders(top, groups)
        test = pick_test_split(kinds)
        if test == VALIDATION:
            self.notes.append("No test folders below the classes: val is the test split.")
        unused = [(files, place) for files, place in placed if place.split not in (TRAIN, test)]
        if unused:
            kind = " and ".join(sorted({place.split for _, place in unused}))
            count = sum(len(files) for files, _ in unused)
            self.notes.append(f"The {kind} folders are left out ({count} images).")
            self.left_out.update(id(file) for files, _ in unused for file in files)
        for files, place in placed:
            if place.split in (TRAIN, test):
                kept = _Place(TRAIN if place.split == TRAIN else TEST, place.path)
                self.placed.update(dict.fromkeys(map(id, files), kept))
        self.class_parents.append(top.parts)
        self.has_test = test is not None
        return True

    def _take_classes(self, folder: _Folder, split: str = TRAIN) -> None:
        """Take the folders in a folder as classes."""
        for files, place in self._walk(folder, (), split):
            if place is not None and place.path:
                self.placed.update(dict.fromkeys(map(id, files), place))
        self.class_parents.append(folder.parts)

    # --- afterwards

    def _apply_lists(self) -> None:
        """Take the split that lists beside the images give, if there are any."""
        images = [file for file in self.images if id(file) in self.placed]
        lists, notes = read_lists(self.source, self.others, images)
        self.notes += notes
        if lists is None:
            return
        self.used.update(lists.files)
        test = pick_test_split(lists.split_of.values())
        left: Counter[str] = Counter()
        for file in images:
            split = lists.split_of.get(id(file))
            if split is not None and split in (TRAIN, test):
                name = lists.class_of.get(id(file))
                path = (name,) if name else self.placed[id(file)].path
                self.placed[id(file)] = _Place(TRAIN if split == TRAIN else TEST, path)
            else:
                del self.placed[id(file)]
                self.left_out.add(id(file))
                left["in none of the lists" if split is None else split] += 1
        self.has_test = test is not None
        note = f"The split is that of {' and '.join(sorted(lists.files))}"
        note += "".join(f"; {count} images are left out ({why})" for why, count in left.items())
        if lists.missing:
            named = join_names(lists.missing)
            note += f"; {len(lists.missing)} listed images are not there ({named})"
        self.notes.append(note + ".")

    def _leave_out_mask_files(self, top: _Folder) -> None:
        """Leave out files like ``1_mask.png`` beside ``1.png``."""
        masks = [
            file
            for folder in top.all_folders()
            for file in _masks_among(folder.files)
            if id(file) in self.placed
        ]
        if masks:
            named = join_names(file.name for file in masks)
            self.notes.append(f"{len(masks)} masks beside their images are left out ({named}).")
        for file in masks:
            del self.placed[id(file)]
            self.left_out.add(id(file))

    def _by_class(self) -> tuple[ClassFiles, ClassFiles | None]:
        """Group the placed files by split and class: the topmost folders or the lowest."""
        names = self._leaf_names() if self.class_folders == "leaves" else None
        groups: dict[str, ClassFiles] = {TRAIN: defaultdict(list), TEST: defaultdict(list)}
        for file in self.images:
            place = self.placed.get(id(file))
            if place is None:
                continue
            name = place.path[0] if names is None else names.get(place.path)
            if name is None:  # beside the lowest folders
                del self.placed[id(file)]
            else:
                groups[place.split][name].append(file)
        return dict(groups[TRAIN]), dict(groups[TEST]) if self.has_test else None

    def _leaf_names(self) -> dict[Parts, str]:
        """Name the lowest folders, with their parents' names where two are called the same."""
        paths = {place.path for place in self.placed.values()}
        leaves = paths - {path[:depth] for path in paths for depth in range(1, len(path))}
        names: dict[Parts, str] = {}
        for depth in range(1, 1 + max(map(len, leaves))):
            unnamed = {path: " ".join(path[-depth:]) for path in leaves if path not in names}
            counts = Counter(unnamed.values())
            names.update({path: name for path, name in unnamed.items() if counts[name] == 1})
        return names

    def _leave_out(self, folders: Iterable[_Folder]) -> None:
        for folder in folders:
            files = list(map(id, folder.all_files()))
            if not self.left_out.issuperset(files):
                self.left_out.update(files)
                self.left_out_folders.append(folder)

    # --- notes

    def _note_levels(self) -> None:
        """Note which level of nested class folders is taken."""
        below: dict[str, set[str]] = defaultdict(set)
        for place in self.placed.values():
            if len(place.path) > 1:
                below[place.path[0]].add(place.path[1])
        if not below:
            return
        name = min(below, key=natural_key)
        inner = _join_folders(sorted(below[name], key=natural_key))
        more = f" and {len(below) - 1} more" if len(below) > 1 else ""
        taken = "the classes are the upper ones; --class-folders leaves takes the lowest."
        if self.class_folders == "leaves":
            taken = "the classes are the lowest ones."
        self.notes.append(f"Class folders have folders in them ({name}/: {inner}{more}): {taken}")

    def _note_left_out(self) -> Iterator[str]:
        """Note the folders that are left out, those of one name together."""
        by_name: dict[str, list[_Folder]] = defaultdict(list)
        for folder in self.left_out_folders:
            by_name[folder.parts[-1]].append(folder)
        for group in by_name.values():
            count = sum(1 for folder in group for _ in folder.all_files())
            flat = "" if any(folder.class_names() for folder in group) else ", no class folders"
            verb = "is" if len(group) == 1 else "are"
            names = join_names(folder.path for folder in group)
            yield f"{names} {verb} left out ({count} images{flat})."

    def _note_empty(self) -> Iterator[str]:
        """Note the class folders without images."""
        lowest = [tuple(folder.split("/")) for folder in {file.folder for file in self.images}]
        filled = {parts[:depth] for parts in lowest for depth in range(1, len(parts) + 1)}
        empty = [
            "/".join((*folder, ""))
            for folder in self.listing.folders - filled
            if folder[:-1] in self.class_parents
        ]
        if empty:
            yield f"No images in {join_names(sorted(empty))}: left out."


def _tree(images: Iterable[File]) -> _Folder:
    root = _Folder(())
    known = {"": root}
    for file in images:
        folder = known.get(file.folder)
        if folder is None:
            folder = root
            for depth, name in enumerate(parts := file.parts[:-1], 1):
                folder = folder.folders.setdefault(name, _Folder(parts[:depth]))
            known[file.folder] = folder
        folder.files.append(file)
    return root


def _is_one_folder_of_images(top: _Folder) -> bool:
    """Whether there is only one folder, of images, whose name is not a class name."""
    if len(top.folders) != 1:
        return False
    ((name, only),) = top.folders.items()
    return not only.folders and (is_container(name) or split_name(name) is not None)


def _find_alike(groups: dict[str, set[str]]) -> tuple[list[str], set[str]]:
    """Find folders that share at least two, and half, of the folders in them.

    Returns:
        Names of the folders, and what they share; both empty if there are none.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    for name, group in groups.items():
        for below in group:
            holders[below].append(name)
    for names in holders.values():
        for first, second in combinations(names[:50], 2):
            common = groups[first] & groups[second]
            if len(common) > 1 and 2 * len(common) >= max(len(groups[first]), len(groups[second])):
                return [name for name in groups if len(groups[name] & common) > 1], common
    return [], set()


def _masks_among(files: Sequence[File]) -> list[File]:
    """Return the files of a folder that are masks of others in it, by their names."""
    found = [(file, match[1]) for file in files if (match := _MASK_FILE.fullmatch(_stem(file)))]
    stems = set(map(_stem, files)) if found else set()
    return [file for file, image in found if image in stems]


def _stem(file: File) -> str:
    return file.own_name.rpartition(".")[0]


def _join_folders(names: Iterable[str]) -> str:
    return join_names(f"{name}/" for name in names)
