"""A labelled image set: items, splits, and the files that were left out of them."""

from __future__ import annotations

import hashlib
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import torch
from PIL import Image
from torch.utils.data import Dataset

from clip_randlora.data.coop_draws import CoopDraw
from clip_randlora.data.images import UnreadableImage, check_image, decode_image
from clip_randlora.utils.wording import join_names

if TYPE_CHECKING:
    import pandas as pd

Transform = Callable[[Image.Image], Any]


class Content(Protocol):
    """The content of one image: a file, a member of an archive, a row of a table, or pixels."""

    @property
    def size(self) -> int:
        """Bytes or pixels; images of different sizes differ, so they need not be compared."""
        ...

    def read(self) -> Path | bytes | Image.Image:
        """Return what `decode_image` takes.

        A content whose reading costs much also has ``read_head``, which returns its first bytes.
        One that is a file of its own has its ``path``.
        """
        ...


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    name: str
    reason: str


def summarize_skipped(skipped: Sequence[Skipped], most: int = 5) -> str:
    """Return a line that counts the files left out and names the first ``most``, or ""."""
    if not skipped:
        return ""
    named = join_names((f"{entry.name} ({entry.reason})" for entry in skipped), most)
    return f"Left out {len(skipped)} {'file' if len(skipped) == 1 else 'files'}: {named}."


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image that has not been decoded yet.

    Attributes:
        name: its path inside the source, with ``/``.
        label: index into the classes of its data set.
        content: where it is read from.
    """

    name: str
    label: int
    content: Content = field(repr=False, compare=False)

    def open(self, side: int | None = None) -> Image.Image:
        """Decode to an upright RGB image; raises ``UnreadableImage`` (a ``UserError``).

        ``side`` is as for `decode_image`.
        """
        return decode_image(self.content.read(), self.name, side)

    def check(self) -> None:
        """Read the header only; raises ``UnreadableImage`` (a ``UserError``)."""
        if read_head := getattr(self.content, "read_head", None):
            with suppress(UnreadableImage):  # some formats end with what others begin with
                return check_image(read_head(), self.name)
        check_image(self.content.read(), self.name)

    def digest(self) -> str:
        """Return the SHA-256 of the file, or of the pixels of a decoded image, in hexadecimal."""
        content = self.content.read()
        if isinstance(content, Image.Image):
            content = content.tobytes()
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        digest = hashlib.sha256()
        with open(content, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Split(Dataset[tuple[Any, int]]):
    """Labelled images in a fixed order: by class, then naturally by name.

    It is a ``torch.utils.data.Dataset`` as torchvision's are: ``split[0]`` decodes an image and
    returns it with its label, so a ``DataLoader`` takes it, in any number of processes. Iteration
    yields the items instead, and decodes none.

    Attributes:
        items: the images.
        classes: all class names of the data set; a class may have no item in this split.
        draw: how few-shot images are drawn, if a file of CoOp's says so; the items of a class are
            then in the order of the file.
        transform: what ``split[0]`` makes of the image, see `with_transform`.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    draw: CoopDraw | None = field(default=None, repr=False)
    transform: Transform | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        """Decode an image.

        Args:
            index: from 0, or from -1 backwards.

        Returns:
            The upright RGB PIL image, or what ``transform`` returns for it; and its label, an index
            into ``classes``.

        Raises:
            IndexError: there is no such image.
            UnreadableImage: (a ``UserError``) it cannot be decoded.
        """
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number}: there are {len(self)} images")
        item = self.items[number]
        image = item.open()
        return image if self.transform is None else self.transform(image), item.label

    def with_transform(self, transform: Transform | None) -> Split:
        """Return the split with what ``split[0]`` makes of an image, or without for None.

        It takes an upright RGB PIL image of any size. A ``DataLoader`` needs tensors of one size:
        ``Model.preprocess`` returns those of the model, and torchvision has more. Training,
        evaluation and `Classifier` do not use it.
        """
        return replace(self, transform=transform)

    @property
    def labels(self) -> torch.Tensor:
        """Class index of every item, int64 ``(N,)``."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    def counts(self) -> dict[int, int]:
        """Images per class index, for the classes that have any, in ascending order."""
        return dict(sorted(Counter(item.label for item in self.items).items()))

    def by_class(self) -> dict[int, list[Item]]:
        """Items per class index, in the split's order, classes ascending."""
        groups: dict[int, list[Item]] = {label: [] for label in self.counts()}
        for item in self.items:
            groups[item.label].append(item)
        return groups

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each image, in order: see `Data.to_pandas`, without ``split``."""
        import pandas as pd

        files = (getattr(item.content, "path", None) for item in self.items)
        return pd.DataFrame(
            {
                "image": [item.name for item in self.items],
                "path": [None if file is None else os.path.abspath(file) for file in files],
                "label": [self.classes[item.label] for item in self.items],
            },
            dtype=object,
        )


@dataclass(frozen=True)
class Data:
    """A labelled image set with a training and a test split.

    Attributes:
        name: of the folder, the archive or the data set.
        classes: class names as the folders spell them, naturally sorted; or as the data set's
            spec names and orders them.
        train: the training split.
        test: the test split.
        skipped: files that were left out when the set was read. Others only turn out broken when
            they are decoded.
        notes: sentences for the user, such as how the test split was made.
        held_out: whether the source has no test split, so that images were held out of training.
        is_ready_made: whether this is a published data set, whose split is used as it is.
        class_folders: the argument of `load_data`.
        templates: prompt templates of the data set's spec, the default of a training.
        prompts: ``{class: names in its prompts}`` of the data set's spec.
        validation: images that are neither trained on nor tested on, for choosing settings; None
            if there are none.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    held_out: bool = False
    is_ready_made: bool = False
    class_folders: str | None = None
    templates: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    validation: Split | None = None

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each image of all splits; `load_data` takes it back if all have a path.

        Returns:
            A table with the columns
            ``image``: its name in the data set, with ``/``;
            ``path``: the absolute path of its file; None where the image is in an archive, a table
            or in memory;
            ``label``: the name of its class;
            ``split``: train, validation or test.
        """
        import pandas as pd

        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        tables = [
            split.to_pandas().assign(split=name)
            for name, split in splits.items()
            if split is not None
        ]
        return pd.concat(tables, ignore_index=True)
