"""Official splits in text files: CUB's own form, and ``train.txt`` with ``test.txt``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from clip_randlora.data.folder_names import TEST, TRAIN, VALIDATION, split_name
from clip_randlora.data.sources import File
from clip_randlora.data.texts import read_text
from clip_randlora.errors import UserError

_CUB = ("images.txt", "train_test_split.txt")
_MAX_LINES = 2_000_000


@dataclass
class ListedSplit:
    """What lists say of images.

    Attributes:
        files: the lists' names.
        split_of: split by ``id(file)``.
        class_of: class by ``id(file)``, if the lists name the classes.
        missing: images that the lists name and that do not exist.
    """

    files: list[str]
    split_of: dict[int, str] = field(default_factory=dict)
    class_of: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_lists(
    source: str, files: Sequence[File], images: Sequence[File]
) -> tuple[ListedSplit | None, list[str]]:
    """Find lists that split the images, and read them.

    Returns:
        What the lists say, or None if there are none; and notes on lists that are not used.

    Raises:
        UserError: a list in CUB's form is damaged.
    """
    texts = {file.parts: file for file in files if file.parts[-1].lower().endswith(".txt")}
    for parts in texts:
        if parts[-1] == _CUB[0] and (*parts[:-1], _CUB[1]) in texts:
            return _read_cub(source, parts[:-1], texts, images), []
    return _read_named(source, list(texts.values()), images)


def _read_cub(
    source: str,
    folder: tuple[str, ...],
    texts: dict[tuple[str, ...], File],
    images: Sequence[File],
) -> ListedSplit:
    """Read ``id path`` and ``id is_train`` lines, and the classes' names if there are any."""

    def pairs(name: str) -> dict[str, str]:
        file = texts[(*folder, name)]
        found: dict[str, str] = {}
        for number, line in enumerate(_lines(source, file), 1):
            key, space, value = line.partition(" ")
            if not space or key in found:
                raise UserError(
                    f"{source}: {file.name}: line {number}: {line[:60]!r} is no `id value` of its "
                    f"own; get the file again"
                )
            found[key] = value.strip()
        return found

    paths, flags = pairs(_CUB[0]), pairs(_CUB[1])
    where = f"{source}: {'/'.join((*folder, _CUB[1]))}"
    if set(flags.values()) - {"0", "1"} or set(flags) != set(paths):
        raise UserError(f"{where}: not 0 or 1 for each id of {_CUB[0]}; get the files again")
    class_names = {}
    if {(*folder, "classes.txt"), (*folder, "image_class_labels.txt")} <= set(texts):
        names, labels = pairs("classes.txt"), pairs("image_class_labels.txt")
        if len(set(names.values())) == len(names):  # else the folders tell the classes apart
            class_names = {key: names.get(label) for key, label in labels.items()}
    at = {file.parts: file for file in images}
    result = ListedSplit(["/".join((*folder, name)) for name in _CUB])
    for key, path in paths.items():
        parts = tuple(path.split("/"))
        file = at.get((*folder, "images", *parts)) or at.get((*folder, *parts))
        if file is None:
            result.missing.append(path)
            continue
        result.split_of[id(file)] = TRAIN if flags[key] == "1" else TEST
        if name := class_names.get(key):
            result.class_of[id(file)] = name
    if not result.split_of:
        raise UserError(f"{where}: none of the {len(paths)} images that it lists is there")
    if len(result.class_of) < len(result.split_of):
        result.class_of = {}
    return result


def _read_named(
    source: str, texts: Sequence[File], images: Sequence[File]
) -> tuple[ListedSplit | None, list[str]]:
    """Read lists that are called after splits and name images, one a line."""
    by_split: dict[str, list[File]] = defaultdict(list)
    for file in texts:
        name = split_name(file.parts[-1].rpartition(".")[0])
        if name and not name.rest:
            by_split[name.split].append(file)
    found: dict[str, tuple[File, set[int], list[str]]] = {}
    for split, files in by_split.items():
        try:
            lists = [(file, *_find_images(_lines(source, file), images)) for file in files]
        except UserError as error:  # it may be another kind of text
            return None, [f"{error}; it is not used."]
        lists = [entry for entry in lists if len(entry[1]) > len(entry[2])]
        if len(lists) > 1:
            names = ", ".join(file.name for file, _, _ in lists[:3])
            return None, [f"There are {len(lists)} lists of one split ({names}): none is used."]
        if lists:
            found[split] = lists[0]
    if not {TEST, VALIDATION} & found.keys():
        unused = [file.name for file, _, _ in found.values()]
        return None, [f"{name} is not used: there is no list of test images." for name in unused]
    result = ListedSplit([file.name for file, _, _ in found.values()])
    for split, (_, named, missing) in found.items():
        result.split_of.update(dict.fromkeys(named, split))
        result.missing += missing
    if TRAIN not in found:  # the images that no list names
        rest = (id(file) for file in images if id(file) not in result.split_of)
        result.split_of.update(dict.fromkeys(rest, TRAIN))
    return result, []


def _lines(source: str, file: File) -> list[str]:
    lines = [line.strip() for line in read_text(file, f"{source}: {file.name}").splitlines()]
    if len(lines) > _MAX_LINES:
        raise UserError(f"{source}: {file.name}: {len(lines)} lines, at most {_MAX_LINES}")
    return [line for line in lines if line]


def _find_images(lines: Sequence[str], images: Sequence[File]) -> tuple[set[int], list[str]]:
    """Find images by class and file: ``cat/1.jpg``, ``/cat/1`` or ``cat/1.jpg 0``.

    Returns:
        The ``id`` of each image that a line names alone, and the lines that name no image.
    """
    wanted = {key: line for line in lines for key in _spellings(line)}
    depths = {key.count("/") + 1 for key in wanted}
    found: dict[str, set[int]] = defaultdict(set)
    for file in images:
        for depth in depths:
            if depth > len(file.parts):
                continue
            name = "/".join(file.parts[-depth:])
            for key in {name, name.rpartition(".")[0]} & wanted.keys():
                found[wanted[key]].add(id(file))
    named = {key for keys in found.values() if len(keys) == 1 for key in keys}
    return named, [line for line in lines if line not in found]


def _spellings(line: str) -> set[str]:
    """Read a line as a path with a folder, with and without what follows the path."""
    texts = {line, re.split(r"[,;\t]", line)[0], line.rsplit(None, 1)[0]}
    paths = {text.strip().replace("\\", "/").removeprefix("./").strip("/") for text in texts}
    return {path for path in paths if "/" in path}
