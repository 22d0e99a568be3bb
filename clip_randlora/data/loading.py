"""From a folder, an archive or a registered name to a labelled image set with a test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_randlora.data.dataset import Data, Item, Skipped, Split
from clip_randlora.data.images import EXTENSIONS, UnreadableImage
from clip_randlora.data.parallel import parallel_map
from clip_randlora.data.registry import DATASETS
from clip_randlora.data.sampling import hold_out
from clip_randlora.data.sources import File, Listing, list_folder, list_zip, natural_key
from clip_randlora.errors import UserError

_LAYOUT = "put the images into one folder per class, like cat/1.jpg and dog/1.jpg"
_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation")

ClassFiles = dict[str, list[File]]
Folder = tuple[str, ...]


def load_data(source: str | Path, test: str | Path | None = None, held_out: float = 0.3) -> Data:
    """Read a labelled image set; headers are checked, pixels are not decoded yet.

    Args:
        source: a folder or ``.zip`` of class folders, or one with ``train/`` and ``test/`` (else
            ``val/``) folders of class folders, or a registered name (see ``DATASETS``). An
            existing path wins over a name.
        test: where the test images are, in the same forms; by default the source's own test
            split, else ``held_out`` of each class.
        held_out: share of each class held out for testing where there is no test split. Which
            images is fixed: it depends on the class's name and the order of its images' names.

    Raises:
        UserError: the source is missing or not in this form, has fewer than two classes, test
            classes that training has not, or a class with no readable training image.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out: {held_out} is not a share; give a number between 0 and 1")
    layout = _read_layout(source)
    notes, skipped = layout.notes, layout.skipped
    train_files, test_files = layout.train, layout.test
    if test is not None:
        if test_files is not None:
            count = sum(map(len, test_files.values()))
            notes.append(f"The {count} test images of {source} are not used: {test} is given.")
        other = _read_layout(test)
        test_files = other.test if other.test is not None else other.train
        notes += other.notes
        skipped += other.skipped
    classes = tuple(sorted(train_files, key=natural_key))
    _check_classes(source, test or source, classes, test_files)

    train, broken = _readable(_items(train_files, classes))
    skipped += broken
    _check_not_empty(classes, train, broken)
    if test_files is not None:
        tested, broken = _readable(_items(test_files, classes))
        skipped += broken
        digests = _digests([*train, *tested])
    else:
        digests = _digests(train)
        train, tested, note = _hold_out(train, classes, digests, held_out)
        notes.append(note)
    if not tested:
        why = "can be read" if test_files is not None else "can be held out, there are too few"
        raise UserError(f"{test or source}: no test image {why}; give more images")
    notes += _notes(classes, train, tested, digests)
    return Data(
        _name_of(source),
        classes,
        Split(tuple(train), classes),
        Split(tuple(tested), classes),
        tuple(skipped),
        tuple(notes),
        held_out=test_files is None,
    )


def list_images(source: str | Path) -> tuple[list[Item], list[Skipped]]:
    """List every image of a folder or ``.zip``, whatever its folders; the labels mean nothing.

    Returns:
        The images whose headers are in order, naturally sorted, and what was left out.

    Raises:
        UserError: the source is missing, cannot be read, or holds no image.
    """
    listing = _list(source)
    images = [Item(f.name, 0, f.content) for f in listing.files if _extension(f) in EXTENSIONS]
    others = [f for f in listing.files if _extension(f) not in EXTENSIONS]
    good, broken = _readable(images)
    if not good:
        raise UserError(f"{source}: no images that can be read")
    left_out = [Skipped(file.name, _not_image(_extension(file))) for file in others]
    return good, [*listing.skipped, *left_out, *broken]


@dataclass
class _Layout:
    """The files of a source by split and class; ``test`` is None where it has no test split."""

    train: ClassFiles
    test: ClassFiles | None = None
    roots: list[Folder] = field(default_factory=list)  # the folders that class folders lie in
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def _read_layout(source: str | Path) -> _Layout:
    listing = _list(source)
    images, others = [], []
    for file in listing.files:
        (images if _extension(file) in EXTENSIONS else others).append(file)
    if not images:
        raise UserError(f"{source}: no images found; {_LAYOUT}")
    top = _wrapper(images)
    layout = _split_layout(images, top) or _Layout(_below(images, top), roots=[top])
    if not layout.train:
        raise UserError(f"{source}: {len(images)} images but no class folders; {_LAYOUT}")
    layout.notes += _empty_folders(listing, layout)
    layout.skipped = [
        *listing.skipped,
        *(Skipped(file.name, _not_image(_extension(file))) for file in others),
        *(Skipped(file.name, "not in a class folder") for file in _loose(images, layout, top)),
    ]
    return layout


def _list(source: str | Path) -> Listing:
    path = Path(source).expanduser()
    if path.is_dir():
        return list_folder(path)
    if path.exists():
        return list_zip(path)
    if str(source) in DATASETS:
        return DATASETS[str(source)].load()
    raise UserError(
        f"{source}: no such folder, .zip or registered name ({', '.join(DATASETS)}); "
        "give a folder with one folder of images per class"
    )


def _name_of(source: str | Path) -> str:
    path = Path(source).expanduser()
    if not path.exists():
        return str(source)
    return path.stem if path.is_file() else path.resolve().name


def _extension(file: File) -> str:
    return Path(file.parts[-1]).suffix.lower()


def _not_image(extension: str) -> str:
    if extension in (".heic", ".heif"):
        return "HEIC is not supported; convert it to JPEG"
    return f"not an image ({extension or 'no extension'})"


def _wrapper(images: Sequence[File]) -> Folder:
    """The folders that all images lie in and that still have class folders below them."""
    depth = 0
    while (
        len({file.parts[depth] for file in images}) == 1
        and min(len(file.parts) for file in images) >= depth + 3
    ):
        depth += 1
    return images[0].parts[:depth]


def _below(images: Iterable[File], folder: Folder) -> dict[str, list[File]]:
    """Files by the name that follows ``folder`` in their path, of those that lie deeper."""
    groups: dict[str, list[File]] = defaultdict(list)
    depth = len(folder)
    for file in images:
        if file.parts[:depth] == folder and len(file.parts) >= depth + 2:
            groups[file.parts[depth]].append(file)
    return dict(groups)


def _split_layout(images: Sequence[File], top: Folder) -> _Layout | None:
    """Read ``train/`` and ``test/`` or ``val/``; None where there are no such two folders."""
    folders = _below(images, top)
    with_classes = [name for name in folders if _below(folders[name], (*top, name))]

    def find(candidates: Sequence[str], names: tuple[str, ...]) -> str | None:
        return next((folder for folder in candidates if folder.lower() in names), None)

    train = find(with_classes, _TRAIN)
    if train is None or find(list(folders), _TEST + _VALIDATION) is None:
        return None
    test = find(with_classes, _TEST)
    validation = find(with_classes, _VALIDATION)
    chosen = test or validation
    used = [name for name in (train, chosen) if name is not None]
    by_class = {name: _below(folders[name], (*top, name)) for name in used}
    notes = [f"No test/ with class folders: {validation}/ is the test split."] * (chosen != test)
    notes += [
        f"{name}/ is left out ({len(files)} images"
        f"{'' if name in with_classes else ', no class folders'})."
        for name, files in folders.items()
        if name not in used
    ]
    roots = [(*top, name) for name in used]
    return _Layout(by_class[train], by_class[chosen] if chosen else None, roots, notes)


def _loose(images: Sequence[File], layout: _Layout, top: Folder) -> list[File]:
    """Images beside the class folders, or beside the split folders."""
    return [file for file in images if file.parts[:-1] in {top, *layout.roots}]


def _empty_folders(listing: Listing, layout: _Layout) -> list[str]:
    """A note that names the class folders without images, if there are any."""
    groups = [*layout.train.values(), *(layout.test or {}).values()]
    depth = len(layout.roots[0]) + 1
    filled = {group[0].parts[:depth] for group in groups}
    empty = sorted(
        "/".join(folder) + "/" for folder in listing.folders - filled if folder[:-1] in layout.roots
    )
    return [f"No images in {_some(empty)}: left out."] if empty else []


def _items(files: ClassFiles, classes: Sequence[str]) -> list[Item]:
    return [
        Item(file.name, label, file.content)
        for label, name in enumerate(classes)
        for file in files.get(name, [])
    ]


def _check_classes(
    source: str | Path, test: str | Path, classes: Sequence[str], test_files: ClassFiles | None
) -> None:
    if len(classes) < 2:
        raise UserError(
            f'{source}: only one class ("{classes[0]}"), at least two are needed; {_LAYOUT}'
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
        if label not in present:
            raise UserError(
                f'class "{name}": no training image can be read; replace or remove them '
                f"({len(broken)} unreadable in all, the first is {broken[0].name}: "
                f"{broken[0].reason})"
            )


def _readable(items: list[Item]) -> tuple[list[Item], list[Skipped]]:
    good, broken = [], []
    for item, problem in zip(items, parallel_map(_header_problem, items), strict=True):
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


def _digests(items: Sequence[Item]) -> dict[int, str]:
    """``id(item)`` -> a content key; only files of equal size are read, others differ anyway."""
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_size[item.content.size].append(item)
    keys = {id(item): f"unique {number}" for number, item in enumerate(items)}
    shared = [item for group in by_size.values() if len(group) > 1 for item in group]
    digests = parallel_map(lambda item: item.content.digest(), shared)
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
    note = f"No test split: held out {share * 100:g} % of each class"
    return train, test, f"{note} ({len(test)} of {len(items)} images)."


def _notes(
    classes: Sequence[str], train: list[Item], test: list[Item], digests: dict[int, str]
) -> list[str]:
    notes = []
    tested = {item.label for item in test}
    if untested := [name for label, name in enumerate(classes) if label not in tested]:
        named = ", ".join(untested[:10]) + ", ..." * (len(untested) > 10)
        notes.append(f"No test images for {named}.")
    first: dict[str, Item] = {}
    contradictions = []
    for item in [*train, *test]:
        same = first.setdefault(digests[id(item)], item)
        if same.label != item.label:
            contradictions.append(f"{same.name} = {item.name}")
    if contradictions:
        notes.append(
            f"The same image under two classes, {len(contradictions)} times: "
            f"{_some(contradictions)}; remove one of each."
        )
    in_train = {digests[id(item)]: item for item in reversed(train)}
    leaks = [
        f"{in_train[key].name} = {item.name}"
        for item in test
        if (key := digests[id(item)]) in in_train
    ]
    if leaks:
        notes.append(
            f"{len(leaks)} of {len(test)} test images are also training images "
            f"({_some(leaks)}): test figures will be too good."
        )
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
