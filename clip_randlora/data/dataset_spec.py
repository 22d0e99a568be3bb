"""Data sets described in YAML: where the images are, and what the classes and prompts are.

The package's own specs are in ``configs/datasets``; a user's is any YAML file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clip_randlora.clip.templates import check_templates
from clip_randlora.errors import UserError, unknown_setting
from clip_randlora.utils.paths import configs_folder, data_root
from clip_randlora.utils.yaml_files import read_mapping

SPEC_SUFFIXES = (".yaml", ".yml")
# open_clip's list has "missile" and "sunglasses" twice: these are other names in WordNet
_TWICE_IN_IMAGENET = {744: "projectile", 836: "sunglass"}
Arguments = dict[str, str | bool | int]


class Columns(BaseModel):
    """Names of the columns of a Hugging Face data set, or of the files of a sample in shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = "image"
    label: str = "label"


class CoopSplitPaths(BaseModel):
    """Where one of CoOp's splits may be, see `clip_randlora.data.coop_splits`.

    Attributes:
        file: of the split.
        images: folders that the paths in the file start from; the first that exists is used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    images: tuple[str, ...] = Field(min_length=1)


class DatasetSpec(BaseModel):
    """One data set, as its YAML file describes it.

    Attributes:
        name: what the data set is called.
        description: one line about it.
        hub: id of a Hugging Face data set, or a folder of parquet files in the hub's form.
        config: configuration of the hub's data set.
        revision: commit of the hub's data set.
        torchvision: name of a class of ``torchvision.datasets``.
        folder: folder of class folders.
        shards: folder of WebDataset shards, one shard, or a pattern such as
            ``birds-{000..009}.tar``.
        train: split of the hub's data set; arguments of the torchvision class (a text is its
            ``split``); a folder in ``folder``; or a folder, file or pattern in ``shards``.
        test: likewise; without it, a fixed share of the training images is held out.
        validation: number of training images that are held back for validation.
        test_files: with ``folder``: pattern of the names of the test files.
        test_only: with ``folder``: all its images are for testing, and there are none to train on.
        class_folders: with ``folder``: ``top`` or ``leaves``, as for ``load_data``.
        columns: columns of the hub's data set; with ``shards``, how the image's file ends
            (``jpg``), and how the label's file ends or which field of the ``.json`` it is.
        coop_split: one of CoOp's splits, which is used in place of all other images if its file is
            there; paths start as that of ``folder``.
        classes: names in the order of the source's labels; or ``{name in the source: name}`` of
            the classes to rename; or ``open_clip:imagenet``, open_clip's list for ImageNet: the
            source has all its classes, or folders named by WordNet id or number of any of them. By
            default the source's names.
        templates: prompt templates with one ``{}`` each, the default of a training.
        number_of_classes: checked against ``classes`` and the source.
        images: number of images by split.
        download_megabytes: size of the download.
        on_disk: with ``torchvision``: path below the data folder that the download leaves.
        how_to_get: what to do if nothing can be downloaded.
        licence: of the images.
        homepage: where the data set is described.
        citation: the paper to cite.
        notes: what a training on it should tell.
        file: the YAML file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    torchvision: str | None = None
    folder: str | None = None
    shards: str | None = None
    train: str | Arguments | None = None
    test: str | Arguments | None = None
    validation: int | None = Field(None, ge=1)
    test_files: str | None = None
    test_only: bool = False
    class_folders: Literal["top", "leaves"] | None = None
    columns: Columns = Columns()
    coop_split: CoopSplitPaths | None = None
    classes: Literal["open_clip:imagenet"] | tuple[str, ...] | dict[str, str] | None = None
    templates: tuple[str, ...] = ()
    number_of_classes: int | None = Field(None, ge=2)
    images: dict[Literal["train", "test"], int] = Field(default_factory=dict)
    download_megabytes: int | None = Field(None, ge=1)
    on_disk: str | None = None
    how_to_get: str | None = None
    licence: str = "not stated"
    homepage: str | None = None
    citation: str | None = None
    notes: tuple[str, ...] = ()
    file: Path

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_templates(value) if value else value

    @field_validator("classes", mode="before")
    @classmethod
    def _check_classes(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list | Mapping):
            raise ValueError("give a list of names, or {name in the source: name}")
        names = [*value, *value.values()] if isinstance(value, Mapping) else value
        for name in names:  # YAML reads 1, no and 2020-01-01 as something else
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is not a text; put it into quotation marks")
        counts = Counter(value.values() if isinstance(value, Mapping) else value)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice; give every class a name of its own")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> DatasetSpec:
        known = ("hub", "torchvision", "folder", "shards")
        sources = [key for key in known if getattr(self, key)]
        if len(sources) != 1:
            given = " and ".join(sources) or "none of them"
            raise ValueError(f"give one of hub, torchvision, folder and shards, not {given}")
        only = {
            "config": "hub", "revision": "hub", "on_disk": "torchvision", "test_files": "folder",
            "test_only": "folder", "class_folders": "folder",
        }  # fmt: skip
        for key, source in only.items():
            if getattr(self, key) and sources != [source]:
                raise ValueError(f"{key}: only for a {source}")
        for key in ("train", "test"):
            if isinstance(getattr(self, key), Mapping) and sources != ["torchvision"]:
                raise ValueError(f"{key}: give one name; arguments are only for torchvision")
        if self.shards and self.test and not self.train:
            raise ValueError("train: needed with test, which shards are for training")
        if self.torchvision and not self.on_disk:
            raise ValueError("on_disk: needed with torchvision, what is there after the download")
        if self.test and self.test_files:
            raise ValueError("test_files: not together with test")
        if self.test_only and (self.train or self.test or self.test_files):
            raise ValueError("test_only: not together with train, test or test_files")
        stated = self.number_of_classes
        if stated and isinstance(self.classes, tuple) and len(self.classes) != stated:
            raise ValueError(f"classes: {len(self.classes)} names, number_of_classes is {stated}")
        return self

    @property
    def is_packaged(self) -> bool:
        """Whether this is one of the package's own specs."""
        return self.file.parent == datasets_folder()

    def path_of(self, text: str) -> Path:
        """Return a path relative to the YAML file or, if packaged, to the data folder."""
        return (data_root() if self.is_packaged else self.file.parent) / Path(text).expanduser()


def datasets_folder() -> Path:
    """Return the folder of the package's own specs."""
    return configs_folder() / "datasets"


def packaged_specs() -> dict[str, Path]:
    """Return the YAML files of the package's own specs by name, in alphabetical order."""
    return {path.stem: path for path in sorted(datasets_folder().glob("*.yaml"))}


def read_dataset_spec(path: str | Path) -> DatasetSpec:
    """Read the YAML file that describes a data set.

    Raises:
        UserError: it cannot be read or a field is wrong; the message names file and field.
    """
    path = Path(path).expanduser()
    fields = read_mapping(path, "`field: value` lines, as in the README")
    try:
        return DatasetSpec(**fields, file=path)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_error(error)}") from None
    except TypeError:
        raise UserError(f"{path}: file: no such field; remove it") from None


def find_dataset_spec(name: str | Path) -> DatasetSpec:
    """Read the packaged spec of a name, or the spec in a YAML file.

    Raises:
        UserError: there is no such spec, or a field is wrong.
    """
    if Path(name).suffix in SPEC_SUFFIXES:
        return read_dataset_spec(name)
    known = packaged_specs()
    if str(name) not in known:
        raise UserError(f"{name}: no such data set; there are {', '.join(known)}")
    return read_dataset_spec(known[str(name)])


def _first_error(error: ValidationError) -> str:
    """Return pydantic's first error as ``field: what is wrong``."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        inner: dict[str, type[BaseModel]] = {"columns": Columns, "coop_split": CoopSplitPaths}
        known = inner.get(str(first["loc"][0]), DatasetSpec)
        message = unknown_setting(str(first["loc"][-1]), known.model_fields)
    return f"{field}: {message}" if field else message


def name_classes(
    spec: DatasetSpec, source: Sequence[str] | None, labels: int
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Give the source's classes the names of the spec.

    Args:
        spec: whose ``classes`` to use.
        source: the source's names in the order of its labels, if it has names.
        labels: the smallest number of labels that there can be.

    Returns:
        Class names in the order of the labels, all different; and, for the classes that the spec
        names, ``{class: name in its prompts}``.

    Raises:
        UserError: the spec and the source do not agree, or neither names the classes.
    """
    where = f"{spec.file}: classes"
    classes, stated = spec.classes, spec.number_of_classes
    if source is not None and stated not in (None, len(source)):
        raise UserError(
            f"{spec.file}: number_of_classes: {stated}, the source has {len(source)} "
            f"({', '.join(source)})"
        )
    if isinstance(classes, Mapping):
        return _rename(where, classes, source)
    if classes is None:
        if source is None:
            raise UserError(f"{where}: the source has only numbers; list the names in their order")
        return tuple(source), {}
    if isinstance(classes, str):
        names, words = _imagenet_names(source, where)
    else:
        names = words = _in_order(classes, source, where)
    count = len(source) if source is not None else labels
    if len(words) != count and (source is not None or len(words) < count):
        raise UserError(f"{where}: {len(words)} names, the source has {count} classes")
    return tuple(names), {name: _in_prompts(word) for name, word in zip(names, words, strict=True)}


def _imagenet_names(source: Sequence[str] | None, where: str) -> tuple[list[str], list[str]]:
    """Return the names of ImageNet's classes, all different, and their names in prompts.

    They are those of the source's folders, if these are named by WordNet id (``n01440764``) or by
    number (``0`` to ``999``), else all 1,000.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as WORDS  # slow to import

    counts = Counter(WORDS)
    names = [word if counts[word] == 1 else f"{word} ({n})" for n, word in enumerate(WORDS)]
    words = [_TWICE_IN_IMAGENET.get(n, word) for n, word in enumerate(WORDS)]
    known: list[str] = []
    keys: list[str] = []
    if source and all(re.fullmatch(r"n\d{8}", name) for name in source):
        from timm.data.imagenet_info import ImageNetInfo

        known, keys = ImageNetInfo("imagenet-1k").label_names(), list(source)
    elif source and all(name.isdecimal() for name in source):
        known, keys = list(map(str, range(len(names)))), [str(int(name)) for name in source]
    if source is None or not set(known) & set(keys):
        return names, words
    for name, key in zip(source, keys, strict=True):
        if key not in known:
            raise UserError(f"{where}: {name} is no class of ImageNet; remove the folder")
    places = {key: place for place, key in enumerate(known)}
    return [names[places[key]] for key in keys], [words[places[key]] for key in keys]


def _rename(
    where: str, classes: Mapping[str, str], source: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Rename the classes that are in the mapping; the others keep the source's name."""
    if source is None:
        raise UserError(f"{where}: the source has only numbers; give a list in their order")
    for name in classes:
        if name not in source:
            raise UserError(f"{where}: the source has no {name!r}, only {', '.join(source)}")
    names = tuple(classes.get(name, name) for name in source)
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{where}: {name!r} would be there twice; give it another name")
    return names, {name: _in_prompts(name) for name in classes.values()}


def _in_prompts(name: str) -> tuple[str, ...]:
    """Return the names of a class in prompts; a full stop at the end would make a whole prompt."""
    return (name.rstrip(". ") or name,)


def _in_order(classes: Sequence[str], source: Sequence[str] | None, where: str) -> list[str]:
    """Return names in the source's order: by spelling if all are spelled alike, else by number."""
    if source is None or len(classes) != len(source):
        return list(classes)
    by_letters = {_letters(name): name for name in classes}
    if sorted(map(_letters, source)) == sorted(by_letters):
        return [by_letters[_letters(name)] for name in source]
    for number, (given, name) in enumerate(zip(classes, source, strict=True)):
        if _letters(name) in by_letters and _letters(given) != _letters(name):
            raise UserError(
                f"{where}: number {number} is {given!r}, in the source it is {name!r}; list the "
                f"names in the source's order"
            )
    return list(classes)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
