"""Which folders are splits and which are classes, or one line that says why that is not clear."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, get_args

from clip_randlora.data.dataset import Skipped
from clip_randlora.data.lists import read_lists
from clip_randlora.data.sources import ClassFiles, File, Layout, Listing, natural_key
from clip_randlora.data.splits import (
    EVALUATION,
    TEST,
    TRAIN,
    VALIDATION,
    WITHOUT_LABELS,
    are_all_splits,
    are_parts,
    find_masks,
    find_splits,
    is_container,
    is_left_out,
    is_no_class,
    split_name,
)
from clip_randlora.data.tables import Labels, find_labels, is_table
from clip_randlora.errors import UserError

EXPECTED = "put the images into one folder per class, like cat/1.jpg and dog/1.jpg"
_MAX_TABLES = 50
_MASK_FILE = re.compile(
    r"(.+)[ _.-](?:masks?|gt|ground_?truth|seg|segmentation|trimap|matte)(?:[ _.-]?\d+)?", re.I
)
_TESTS = (TEST, EVALUATION, VALIDATION)  # the first that is there is the test split
_ASK = "if these are the classes, say so with --class-folders top"

ClassFolders = Literal["top", "leaves"]
Parts = tuple[str, ...]


@dataclass
class Folder:
    """A folder with images in it or below it."""

    parts: Parts
    files: list[File] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path below the source, with a ``/`` at its end."""
        return "/".join((*self.parts, ""))

    def all_files(self) -> Iterator[File]:
        """The images in it and below it."""
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()

    def without(self, names: Iterable[str]) -> Folder:
        """The same folder less some of those in it."""
        dropped = set(names)
        kept = {name: sub for name, sub in self.folders.items() if name not in dropped}
        return Folder(self.parts, self.files, kept)


@dataclass
class _Placed:
    """An image's split, and its class folder with those below it."""

    split: str
    path: Parts


def check_class_folders(value: str | None) -> None:
    """Refuse what is neither None nor one of the two values.

    Raises:
        UserError: it is something else.
    """
    if value is not None and value not in get_args(ClassFolders):
        raise UserError(f"--class-folders {value}: give top or leaves")


def read_folders(
    source: str, listing: Listing, images: Sequence[File], class_folders: str | None = None
) -> Layout:
    """Sort images into splits and classes by the folders that they lie in.

    Args:
        source: what errors name.
        listing: of the source; its other files may be label tables or lists of a split.
        images: of the listing, at least one.
        class_folders: ``top`` takes the topmost folders as the classes, whatever their names;
            ``leaves`` those that hold the images, below the splits. By default the topmost ones
            below the splits.

    Raises:
        UserError: there are no class folders, or it is not clear which folders they are.
    """
    return _Reading(source, listing, images, class_folders).read()


class _Reading:
    """Reads one source; gathers on the way what is left out and what is to be said."""

    def __init__(
        self, source: str, listing: Listing, images: Sequence[File], class_folders: str | None
    ):
        self.source, self.listing, self.images = source, listing, images
        self.class_folders = class_folders
        names = {id(file) for file in images}
        self.others = [file for file in listing.files if id(file) not in names]
        self.placed: dict[int, _Placed] = {}
        self.left_out: set[int] = set()  # already named in a note
        self.dropped: list[Folder] = []
        self.notes: list[str] = []
        self.roots: list[Parts] = []  # what class folders lie in
        self.used: set[str] = set()  # tables and lists
        self.has_test = False

    def read(self) -> Layout:
        top = _unwrap(_tree(self.images))
        if self.class_folders == "top":
            self._take_classes(top)
        else:
            self._resolve(top)
        if not self.placed:
            raise UserError(
                f"{self.source}: {len(self.images)} images but no class folders; {EXPECTED}"
            )
        if not self.has_test and self.class_folders != "top":
            self._apply_lists()
        if self.class_folders != "top":
            self._leave_out_mask_files(top)
        layout = Layout(*self._by_class(), roots=self.roots)
        layout.notes = [*self.notes, *self._dropped_folders(), *self._empty_folders()]
        layout.skipped = [
            *(entry for entry in self.listing.skipped if entry.name not in self.used),
            *self._loose(),
        ]
        return layout

    # --- which folders mean what

    def _resolve(self, top: Folder) -> None:
        around = top
        top = _unwrap(self._without_masks(top))
        if not top.folders or _is_lone_flat(top):
            self._take_flat(top, around)
            return
        splits = find_splits(_folders_of(top))
        if splits:
            self._take_splits(top, splits)
            return
        inner = self._only_set(top)
        if inner:
            self._leave_out([f for f in top.folders.values() if f is not inner])
            self._resolve(_unwrap(inner))
            return
        self._check_level(top)
        if not self._take_splits_below(top):
            self._check_same_folders(top, _folders_of(top))
            self._take_classes(top)

    def _without_masks(self, folder: Folder) -> Folder:
        """Leave out masks and labels beside images, and what holds no class by its name."""
        images, masks = find_masks(folder.folders)
        if not masks:
            images = [name for name in folder.folders if not is_left_out(name)]
            masks = [name for name in folder.folders if name not in images]
            if len(images) != 1 or not masks:
                return folder
            if not is_container(images[0]) and not (
                folder.folders[images[0]].folders
                and all(is_left_out(name, WITHOUT_LABELS) for name in masks)
            ):
                return folder
        kept = folder.without(masks)
        if len(kept.folders) > 1 and not any(sub.folders for sub in kept.folders.values()):
            raise UserError(self._only_images_and_masks(folder.folders))
        self._leave_out([folder.folders[name] for name in masks])
        return kept

    def _only_images_and_masks(self, names: Iterable[str]) -> str:
        return (
            f"{self.source}: {_some(names)} look like images and their masks or labels, not like "
            f"classes; {EXPECTED}; {_ASK}"
        )

    def _take_splits(self, top: Folder, splits: dict[str, str]) -> None:
        """Take the classes below the training and the test folder."""
        inside = {name: self._inside(top.folders[name], splits[name]) for name in splits}
        labels: dict[str, Labels] = {}

        def choose(split: str) -> str | None:
            names = [name for name in splits if splits[name] == split]
            chosen = [name for name in names if inside[name].folders]
            for name in () if chosen else names:
                others = [f for n in splits if n != name for f in top.folders[n].all_files()]
                root = (*top.parts, name)
                if found := self._labels_of(inside[name], root, others, split):
                    labels[name] = found
                    chosen.append(name)
            if len(chosen) > 1:
                raise UserError(
                    f"{self.source}: {_some(chosen)} both look like the {split} split; "
                    + self._say_which(top, splits, **{split: chosen[0]})
                )
            return chosen[0] if chosen else None

        train = choose(TRAIN)
        if train is None:
            raise UserError(self._no_classes(top, splits))
        classes = set(labels[train].by_file.values() if train in labels else inside[train].folders)
        test = next((name for split in _TESTS if (name := choose(split))), None)
        if test in labels and not set(labels[test].by_file.values()) <= classes:
            test = None  # other labels, of another kind
        if test and splits[test] == VALIDATION:
            self.notes.append(f"No test/ with class folders: {test}/ is the test split.")
        if train not in labels and (not test or test not in labels):
            self._unwrap_both(inside, train, test)
        for name, split in ((train, TRAIN), (test, TEST)):
            if name is None:
                continue
            if name in labels:
                self._place_labelled(inside[name], labels[name], split)
            else:
                self._check_class_level(inside[name])
                self._take_classes(inside[name], split)
        self.has_test = test is not None
        self._leave_out([sub for name, sub in top.folders.items() if name not in (train, test)])
        self._remark_on_levels()

    def _inside(self, folder: Folder, split: str) -> Folder:
        """Go through folders that only repeat the split (``train/train``) or say ``images``."""
        own = folder.parts[-1]
        while True:
            folder = self._without_masks(folder)
            if folder.files or len(folder.folders) != 1:
                return folder
            (only,) = folder.folders.values()
            name = split_name(only.parts[-1])
            repeats = only.parts[-1] == own or (name is not None and name.split == split)
            if not repeats and not is_container(only.parts[-1]):
                return folder
            folder = only

    def _unwrap_both(self, inside: dict[str, Folder], train: str, test: str | None) -> None:
        """Go through the one folder that all classes of both splits lie in."""

        def lone(folder: Folder) -> Folder | None:
            subs = list(folder.folders.values())
            return subs[0] if len(subs) == 1 and not folder.files and subs[0].folders else None

        first = lone(inside[train])
        if first is None or first.files:
            return
        if test is not None:
            second = lone(inside[test])
            if second is None or not set(second.folders) & set(first.folders):
                return
            inside[test] = second
        inside[train] = first

    def _only_set(self, top: Folder) -> Folder | None:
        """The one folder with splits of class folders, the others being no classes."""
        sets = [
            folder
            for folder in top.folders.values()
            if (splits := find_splits(_folders_of(_unwrap(folder))))
            and any(
                sub.folders for name, sub in _unwrap(folder).folders.items() if splits.get(name)
            )
        ]
        rest = [name for name, folder in top.folders.items() if folder not in sets]
        below = [
            {name for sub in _unwrap(folder).folders.values() for name in _class_names(sub)}
            for folder in sets
        ]
        alike = any(a & b for a, b in combinations(below, 2))
        if len(sets) > 1 and alike:
            raise UserError(
                f"{self.source}: {_some([f.parts[-1] for f in sets])} each have splits with the "
                f"same class folders; {self._give_one(sets[0])}"
            )
        if len(sets) != 1:
            return None
        if all(is_left_out(name) for name in rest):
            return sets[0]
        raise UserError(
            f"{self.source}: {sets[0].name} has splits of its own and {_some(rest)} "
            f"{'have' if len(rest) > 1 else 'has'} none; {self._give_one(sets[0])}"
        )

    def _take_splits_below(self, top: Folder) -> bool:
        """Take ``cat/train`` and ``cat/test``, at whatever depth; False if there are none."""
        found: dict[int, _Placed] = {}
        bare: list[File] = []

        def walk(folder: Folder, path: Parts, split: str | None) -> None:
            if path:
                folder = self._without_masks(folder)
            names = list(folder.folders)
            splits = find_splits(_folders_of(folder)) if split is None else {}
            if not splits and split is None and path and names and _are_bare_splits(names):
                splits = {name: split_name(name).split for name in names}
            if split is not None:
                found.update(dict.fromkeys(map(id, folder.files), _Placed(split, path)))
            elif not splits:
                bare.extend(folder.files)
            alone = len(names) == 1 and not folder.files and is_container(names[0])
            for name, sub in folder.folders.items():
                own = splits.get(name)
                if splits and own is None:
                    self._leave_out([sub])
                else:
                    walk(sub, path if own or (path and alone) else (*path, name), own or split)

        walk(top, (), None)
        kinds = {placed.split for placed in found.values()}
        if TRAIN not in kinds or (bare and kinds == {TRAIN}):
            return False
        if bare and not all(len(file.parts) == len(top.parts) + 1 for file in bare):
            without = sorted({"/".join((*file.parts[:-1], "")) for file in bare}, key=natural_key)
            raise UserError(
                f"{self.source}: some folders have a split below them and others, like "
                f"{without[0]}, have none; put all classes into train/ and test/"
            )
        groups: dict[str, set[str]] = defaultdict(set)
        for placed in found.values():
            groups[placed.path[0]].update(placed.path[1:2])
        self._check_same_folders(top, groups)
        chosen = next((split for split in _TESTS if split in kinds), None)
        if chosen == VALIDATION:
            self.notes.append("No test folders below the classes: val is the test split.")
        unused = [key for key, placed in found.items() if placed.split not in (TRAIN, chosen)]
        if unused:
            kind = " and ".join(sorted({found[key].split for key in unused}))
            self.notes.append(f"The {kind} folders are left out ({len(unused)} images).")
            self.left_out.update(unused)
        for key, placed in found.items():
            if placed.split in (TRAIN, chosen):
                self.placed[key] = _Placed(TRAIN if placed.split == TRAIN else TEST, placed.path)
        self.roots.append(top.parts)
        self.has_test = chosen is not None
        self._remark_on_levels()
        return True

    def _take_classes(self, folder: Folder, split: str = TRAIN) -> None:
        """Take the folders in a folder as classes."""

        def walk(sub: Folder, path: Parts) -> None:
            if self.class_folders != "top":
                sub = self._without_masks(sub)
            self.placed.update(dict.fromkeys(map(id, sub.files), _Placed(split, path)))
            for name, below in sub.folders.items():
                alone = len(sub.folders) == 1 and not sub.files and is_container(name)
                walk(below, path if alone else (*path, name))

        for name, sub in folder.folders.items():
            walk(sub, (name,))
        self.roots.append(folder.parts)
        if split == TRAIN and not self.has_test:
            self._remark_on_levels()

    # --- images without class folders

    def _take_flat(self, folder: Folder, around: Folder) -> None:
        """Take the labels of images without class folders from a table; ``around`` has masks."""
        inner = folder
        while not inner.files and len(inner.folders) == 1:
            (inner,) = inner.folders.values()
        labels = self._labels_of(inner, (), (), TRAIN)
        if labels is not None:
            self._place_labelled(inner, labels, TRAIN)
        elif len(around.folders) > 1:
            raise UserError(self._only_images_and_masks(around.folders))
        elif folder.folders:
            raise UserError(
                f"{self.source}: {inner.name} holds {len(inner.files)} images and no class "
                f"folders, and no table has their labels; {EXPECTED}, or a labels.csv with the "
                f"columns file and label beside {inner.name}"
            )

    def _labels_of(
        self, folder: Folder, root: Parts, others: Sequence[File], split: str
    ) -> Labels | None:
        """What a table says of a folder's images.

        Args:
            folder: that the images lie in.
            root: of the split; a table in it is for these images alone, and comes first.
            others: images of the other splits.
            split: what the images are for.
        """
        elsewhere = {file.parts[: len(root)] for file in others}
        own: list[File] = []
        above: list[File] = []
        beside: list[File] = []
        for file in self.others:
            if root and file.parts[: len(root)] == root:
                own.append(file)
            elif file.parts[:-1] == folder.parts[: len(file.parts) - 1]:
                above.append(file)
            elif file.parts[: len(root)] not in elsewhere:
                beside.append(file)
        beside = [file for file in beside if is_table(file)]
        for tables, rivals in (
            (own, ()),
            (above, others),
            (beside if len(beside) <= _MAX_TABLES else [], others),
        ):
            if found := find_labels(self.source, tables, folder.files, rivals, split):
                return found
        return None

    def _place_labelled(self, folder: Folder, labels: Labels, split: str) -> None:
        for key, label in labels.by_file.items():
            self.placed[key] = _Placed(split, (label,))
        self.used.add(labels.table)
        self.left_out.update(id(file) for file in labels.unnamed)
        note = f"The labels of {folder.name or self.source} are those of {labels.table}"
        if labels.missing:
            note += f"; {len(labels.missing)} rows have no image ({_some(labels.missing, '')})"
        if labels.unnamed:
            named = _some([file.name for file in labels.unnamed], "")
            note += f"; {len(labels.unnamed)} images have no label and are left out ({named})"
        self.notes.append(note + ".")

    def _no_classes(self, top: Folder, splits: dict[str, str]) -> str:
        train = [name for name in splits if splits[name] == TRAIN]
        count = sum(1 for name in train for _ in top.folders[name].all_files())
        return (
            f"{self.source}: {_some(splits)} look like splits, but there are no class folders in "
            f"{_some(train)} ({count} images) and no table has their labels; put one folder per "
            f"class into each, or {train[0]}.csv with the columns file and label beside it; {_ASK}"
        )

    # --- what is not clear

    def _check_class_level(self, folder: Folder) -> None:
        """Refuse folders in a split that look like anything but classes."""
        self._check_level(folder)
        self._check_same_folders(folder, _folders_of(folder))

    def _check_level(self, top: Folder) -> None:
        names = list(top.folders)
        if are_all_splits(names):
            raise UserError(
                f"{self.source}: {_some(names)} look like splits, and none or more than one is for "
                f"training; {self._say_which(top, {n: split_name(n).split for n in names})}; {_ASK}"
            )
        if are_parts(names):
            raise UserError(
                f"{self.source}: {_some(names)} look like parts, folds or sizes of one set, not "
                f"like classes; {EXPECTED}, or {self._give_one(top.folders[names[0]])}; {_ASK}"
            )
        self._check_strays(names)
        self._check_sets(top)
        self._check_letters(top)

    def _check_strays(self, names: list[str]) -> None:
        """Refuse ``test`` or ``unlabeled`` beside classes."""
        stray = [name for name in names if is_no_class(name, names)]
        if stray:
            beside = _some(name for name in names if name not in stray)
            looks = "does not look like a class" if len(stray) == 1 else "do not look like classes"
            raise UserError(
                f"{self.source}: {_some(stray)} beside {beside} {looks}; put the classes into "
                f"train/ and test/, or {stray[0]}/ elsewhere; {_ASK}"
            )

    def _check_sets(self, top: Folder) -> None:
        """Refuse ``data`` or ``train`` with class folders beside something else."""
        for name, folder in top.folders.items():
            split = split_name(name)
            if not is_container(name) and not (split and split.is_bare and len(top.folders) == 2):
                continue
            others = top.without([name]).folders
            inner = _class_names(folder)
            is_flat = not any(sub.folders for sub in others.values())
            if others and len(inner) > 1 and (is_container(name) or is_flat):
                raise UserError(
                    f"{self.source}: {name}/ holds {len(inner)} folders and is beside "
                    f"{_some(others)}; {self._give_one(folder)}; {_ASK}"
                )

    def _check_letters(self, top: Folder) -> None:
        """Refuse ``a/abbey`` and ``b/bar``: folders that only sort others."""
        if self.class_folders is None and all(
            len(name) == 1
            and not name.isdigit()
            and sub.folders
            and all(below.casefold().startswith(name.casefold()) for below in sub.folders)
            for name, sub in top.folders.items()
        ):
            raise UserError(
                f"{self.source}: {_some(top.folders)} only sort the folders in them by their first "
                f"letter; take those as classes with --class-folders leaves"
            )

    def _check_same_folders(self, top: Folder, groups: dict[str, set[str]]) -> None:
        """Refuse folders that hold the same folders: which of the two levels are the classes?"""
        for name, group in groups.items():
            if len(group & groups.keys()) > 1:
                raise UserError(
                    f"{self.source}: {name}/ holds folders that are beside it too "
                    f"({_some(sorted(group & groups.keys(), key=natural_key))}); put {name}/ "
                    f"elsewhere, and give it with --test if it is for testing; {_ASK}"
                )
        alike, common = _alike(groups)
        if not alike or (self.class_folders == "leaves" and not are_parts(common)):
            return
        where, below = self._path(top.parts), sorted(common, key=natural_key)
        raise UserError(
            f"{self.source}: {_some(alike)} hold the same folders ({_some(below)}); if those are "
            f"the classes, give one of the upper, as {where}/{alike[0]}, with --test "
            f"{where}/{alike[1]}; if the upper are the classes, say --class-folders top"
        )

    def _path(self, parts: Parts) -> str:
        return "/".join((str(self.source), *parts))

    def _say_which(self, top: Folder, splits: dict[str, str], **chosen: str) -> str:
        """How to name a training and a test folder."""
        for name, split in splits.items():
            chosen.setdefault(split, name)
        test = next((chosen[split] for split in _TESTS if split in chosen), "TEST")
        train = self._path((*top.parts, chosen.get(TRAIN, "TRAIN")))
        return f"say which is meant, as {train} --test {self._path((*top.parts, test))}"

    def _give_one(self, folder: Folder) -> str:
        return f"give the one that is meant, as {self._path(folder.parts)}"

    # --- what comes of it

    def _apply_lists(self) -> None:
        """Take the split that lists beside the images give, if there are any."""
        images = [file for file in self.images if id(file) in self.placed]
        lists, notes = read_lists(str(self.source), self.others, images)
        self.notes += notes
        if lists is None:
            return
        self.used.update(lists.files)
        kinds = set(lists.split_of.values())
        chosen = next((split for split in _TESTS if split in kinds), None)
        left: Counter[str] = Counter()
        for file in images:
            split = lists.split_of.get(id(file))
            if split is not None and split in (TRAIN, chosen):
                path = self.placed[id(file)].path
                if id(file) in lists.class_of:
                    path = (lists.class_of[id(file)],)
                self.placed[id(file)] = _Placed(TRAIN if split == TRAIN else TEST, path)
            else:
                del self.placed[id(file)]
                self.left_out.add(id(file))
                left["in none of the lists" if split is None else split] += 1
        self.has_test = chosen is not None
        note = f"The split is that of {' and '.join(sorted(lists.files))}"
        note += "".join(f"; {count} images are left out ({why})" for why, count in left.items())
        if lists.missing:
            named = _some(lists.missing, "")
            note += f"; {len(lists.missing)} listed images are not there ({named})"
        self.notes.append(note + ".")

    def _by_class(self) -> tuple[ClassFiles, ClassFiles | None]:
        """Files by split and class; the classes are the topmost folders or the lowest."""
        names = self._leaf_names() if self.class_folders == "leaves" else None
        groups: dict[str, ClassFiles] = {TRAIN: defaultdict(list), TEST: defaultdict(list)}
        for file in self.images:
            placed = self.placed.get(id(file))
            if placed is None:
                continue
            if names is None:
                groups[placed.split][placed.path[0]].append(file)
            elif placed.path in names:
                groups[placed.split][names[placed.path]].append(file)
            else:  # beside the folders of the classes
                del self.placed[id(file)]
        train = dict(groups[TRAIN])
        return train, dict(groups[TEST]) if self.has_test else None

    def _leaf_names(self) -> dict[Parts, str]:
        """Names of the lowest folders, with their parents' where two have the same."""
        paths = {placed.path for placed in self.placed.values()}
        upper = {path[:depth] for path in paths for depth in range(1, len(path))}
        names: dict[Parts, str] = {}
        leaves = sorted(paths - upper)
        for depth in range(1, 1 + max(map(len, leaves))):
            open_ = [path for path in leaves if path not in names]
            called = Counter(" ".join(path[-depth:]) for path in open_)
            names.update(
                {path: name for path in open_ if called[name := " ".join(path[-depth:])] == 1}
            )
        return names

    def _remark_on_levels(self) -> None:
        """Say which level of nested class folders is taken."""
        below: dict[str, set[str]] = defaultdict(set)
        for placed in self.placed.values():
            if len(placed.path) > 1:
                below[placed.path[0]].add(placed.path[1])
        if not below or self.class_folders == "top":
            return
        name = min(below, key=natural_key)
        inner = _some(sorted(below[name], key=natural_key))
        many = f" and {len(below) - 1} more" if len(below) > 1 else ""
        note = f"Class folders have folders in them ({name}/: {inner}{many}): "
        if self.class_folders == "leaves":
            note += "the classes are the lowest ones."
        else:
            note += "the classes are the upper ones; --class-folders leaves takes the lowest."
        self.notes = [line for line in self.notes if not line.startswith("Class folders have")]
        self.notes.append(note)

    def _leave_out(self, folders: Iterable[Folder]) -> None:
        for folder in folders:
            files = [id(file) for file in folder.all_files()]
            if not self.left_out.issuperset(files):
                self.left_out.update(files)
                self.dropped.append(folder)

    def _dropped_folders(self) -> Iterator[str]:
        """Notes on the folders that are left out, one for those of one name."""
        groups: dict[str, list[Folder]] = defaultdict(list)
        for folder in self.dropped:
            groups[folder.parts[-1]].append(folder)
        for group in groups.values():
            count = sum(1 for folder in group for _ in folder.all_files())
            flat = "" if any(_class_names(folder) for folder in group) else ", no class folders"
            verb = "is" if len(group) == 1 else "are"
            names = _some([folder.name for folder in group], "")
            yield f"{names} {verb} left out ({count} images{flat})."

    def _leave_out_mask_files(self, folder: Folder) -> None:
        """Leave out files like ``1_mask.png`` beside ``1.png``."""
        masks: list[File] = []

        def walk(sub: Folder) -> None:
            stems = [file.parts[-1].rpartition(".")[0] for file in sub.files]
            known = set(stems)
            for file, stem in zip(sub.files, stems, strict=True):
                found = _MASK_FILE.fullmatch(stem)
                if found and found[1] in known and id(file) in self.placed:
                    masks.append(file)
            for below in sub.folders.values():
                walk(below)

        walk(folder)
        if masks:
            named = _some([file.name for file in masks], "")
            self.notes.append(f"{len(masks)} masks beside their images are left out ({named}).")
        for file in masks:
            del self.placed[id(file)]
            self.left_out.add(id(file))

    def _loose(self) -> list[Skipped]:
        """The images that are in no class and in no folder that a note names."""
        return [
            Skipped(file.name, "not in a class folder")
            for file in self.images
            if id(file) not in self.placed and id(file) not in self.left_out
        ]

    def _empty_folders(self) -> list[str]:
        """A note that names the class folders without images, if there are any."""
        filled = {file.parts[:depth] for file in self.images for depth in range(1, len(file.parts))}
        empty = sorted(
            "/".join(folder) + "/"
            for folder in self.listing.folders - filled
            if folder[:-1] in self.roots
        )
        return [f"No images in {list_some(empty)}: left out."] if empty else []


def _tree(images: Iterable[File]) -> Folder:
    root = Folder(())
    for file in images:
        folder = root
        for depth, name in enumerate(file.parts[:-1], 1):
            if name not in folder.folders:
                folder.folders[name] = Folder(file.parts[:depth])
            folder = folder.folders[name]
        folder.files.append(file)
    return root


def _unwrap(folder: Folder) -> Folder:
    """The folder that all class folders or splits lie in, below the single ones around it."""
    while len(folder.folders) == 1:
        (only,) = folder.folders.values()
        if not only.folders or (only.files and not find_splits(_folders_of(only))):
            break
        folder = only
    return folder


def _folders_of(folder: Folder) -> dict[str, set[str]]:
    """The names of the folders in a folder, each with the names of those in it."""
    return {name: _class_names(sub) for name, sub in folder.folders.items()}


def _class_names(folder: Folder) -> set[str]:
    """The names of the folders in a folder, or in the ``images/`` that is all it has but masks."""
    names = set(folder.folders) - set(find_masks(folder.folders)[1])
    while len(names) == 1 and is_container(next(iter(names))):
        folder = folder.folders[names.pop()]
        names = set(folder.folders)
    return names


def _alike(groups: dict[str, set[str]]) -> tuple[list[str], set[str]]:
    """The folders that share at least two, and half, of what they hold; and what that is."""
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


def _is_lone_flat(top: Folder) -> bool:
    """Whether there is only one folder, of images, whose name is no class's."""
    if len(top.folders) != 1:
        return False
    ((name, only),) = top.folders.items()
    return not only.folders and (is_container(name) or split_name(name) is not None)


def _are_bare_splits(names: Iterable[str]) -> bool:
    found = [split_name(name) for name in names]
    return all(name is not None and name.is_bare for name in found)


def _some(names: Iterable[str], end: str = "/") -> str:
    """The first three of the folders, and how many more there are."""
    names = list(names)
    named = [name + end for name in names[:3]]
    if len(names) > 3:
        return f"{', '.join(named)} and {len(names) - 3} more"
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def list_some(names: Sequence[str]) -> str:
    """The first three of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = ["EXPECTED", "ClassFolders", "check_class_folders", "list_some", "read_folders"]
