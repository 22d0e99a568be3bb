"""Images of torchvision's data sets, by the paths or arrays that its classes hold."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from torchvision import datasets

from clip_randlora.data.dataset_spec import Arguments, DatasetSpec
from clip_randlora.data.images import decode_image
from clip_randlora.data.sources import DiskFile, File, LabelledFiles, MemoryImage, natural_key
from clip_randlora.errors import UserError
from clip_randlora.utils.paths import data_root


@dataclass(frozen=True, slots=True)
class ArrayImage:
    """One image of a data set that torchvision holds in memory as an array."""

    images: Any
    index: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Give another process this image alone, not the whole array."""
        return MemoryImage, (self.read(),)

    @property
    def size(self) -> int:
        """Pixels."""
        image = self.read()
        return image.width * image.height

    def read(self) -> Image.Image:
        """Return the image."""
        return self.images[self.index][0]


@dataclass(frozen=True, slots=True)
class BoxInFile:
    """A rectangle of an image file: left, top, right and bottom in pixels."""

    file: Path
    box: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def read(self) -> Image.Image:
        """Return the part of the image that is in the box; raises ``UnreadableImage``."""
        return decode_image(self.file).crop(self.box)


def is_on_disk(spec: DatasetSpec) -> bool:
    """Whether the path that the download leaves is there."""
    return spec.on_disk is not None and (data_root() / spec.on_disk).exists()


def download(spec: DatasetSpec) -> None:
    """Fetch all splits of the data set into the data folder."""
    _open(spec, spec.train, download=True)
    if spec.test is not None:
        _open(spec, spec.test, download=True)


def read_split(spec: DatasetSpec, split: str | Arguments | None) -> LabelledFiles:
    """List the images of a split; nothing is decoded.

    Raises:
        UserError: torchvision has no such class or split, or its files are not there.
    """
    images = _open(spec, split, download=False)
    if isinstance(images, datasets.VOCDetection):
        return _objects(images)
    names = getattr(images, "classes", None) or getattr(images, "categories", None)
    paths, labels = _paths_and_labels(images)
    if paths is None:
        digits = len(str(len(images)))
        files = [File((f"{n:0{digits}d}",), ArrayImage(images, n)) for n in range(len(images))]
    else:
        files = [_file(Path(path)) for path in paths]
    order = sorted(range(len(files)), key=lambda index: natural_key(files[index].name))
    return LabelledFiles(
        [files[index] for index in order],
        [int(labels[index]) for index in order],
        tuple(names) if names else None,
    )


def _open(spec: DatasetSpec, split: str | Arguments | None, download: bool) -> Any:
    kind: Any = getattr(datasets, spec.torchvision or "", None)
    is_class = inspect.isclass(kind)
    if not is_class:
        raise UserError(
            f"{spec.file}: torchvision: {spec.torchvision!r} is no class of torchvision.datasets"
        )
    arguments = {"split": split} if isinstance(split, str) else dict(split or {})
    try:
        return kind(str(data_root()), download=download, **arguments)
    except Exception as error:  # files, networks and arguments raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{spec.file}: torchvision's {spec.torchvision} cannot be "
            f"{'downloaded to' if download else 'read from'} {data_root()} ({reason})"
        ) from error


def _paths_and_labels(images: Any) -> tuple[Sequence[Any] | None, Sequence[int]]:
    """Return the path of each image (None: they are in memory), and its label."""
    for attribute in ("samples", "_samples"):  # ImageFolder and its kin; GTSRB, StanfordCars
        if hasattr(images, attribute):
            paths, labels = zip(*getattr(images, attribute), strict=True)
            return paths, labels
    for attribute in ("_image_files", "_images"):
        if hasattr(images, attribute):
            return getattr(images, attribute), images._labels
    if hasattr(images, "categories"):  # Caltech101 and Caltech256: the opened image knows its path
        return [_path_of(images, index) for index in range(len(images))], images.y
    return None, images.targets if hasattr(images, "targets") else images.labels


def _path_of(images: Any, index: int) -> str:
    with images[index][0] as image:
        return image.filename


def _file(path: Path) -> File:
    size = path.stat().st_size if path.exists() else 0  # a missing file is named when it is read
    return File(path.parts[-2:], DiskFile(path, size))


def _objects(images: datasets.VOCDetection) -> LabelledFiles:
    """Return every annotated object, cut out by its box, as one image."""
    files, kinds = [], []
    for path, annotation in zip(images.images, images.annotations, strict=True):
        for number, thing in enumerate(ElementTree.parse(annotation).iter("object")):
            edges = (thing.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = (round(float(edge or "nan")) for edge in edges)
            box = (left - 1, top - 1, right, bottom)  # VOC counts pixels from 1
            files.append(File((f"{Path(path).stem} {number}",), BoxInFile(Path(path), box)))
            kinds.append(thing.findtext("name") or "")
    names = tuple(sorted(set(kinds)))
    return LabelledFiles(files, [names.index(kind) for kind in kinds], names)
