"""The base and the novel classes of a data set, for the base-to-novel experiment.

Zhou et al., Conditional Prompt Learning for Vision-Language Models (CVPR 2022), section 4.1: the
first half of the classes in the order of their labels, rounded up, is trained on. The accuracy is
measured among the names of these base classes, and among those of the others, the novel classes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from clip_randlora.data.dataset import Data, Split
from clip_randlora.errors import UserError

Half = Literal["base", "novel"]


def select_classes(data: Data, half: Half) -> Data:
    """Return a data set with the images and the names of one half of its classes.

    The images of a class, and which of them are drawn, are those of the whole data set.

    Args:
        data: at least four classes.
        half: ``base``: the first half, rounded up; ``novel``: the others.

    Raises:
        UserError: there are too few classes, or none of the half's has a test image.
    """
    count = len(data.classes)
    if count < 4:
        raise UserError(
            f"{data.name}: {count} classes; base and novel classes need two each, so four"
        )
    first = math.ceil(count / 2)
    labels = range(first) if half == "base" else range(first, count)
    classes = tuple(data.classes[label] for label in labels)
    new_labels = {label: place for place, label in enumerate(labels)}

    def select(split: Split) -> Split:
        items = (
            replace(item, label=new_labels[item.label])
            for item in split.items
            if item.label in new_labels
        )
        draw = split.draw and split.draw.with_labels(new_labels)
        return Split(tuple(items), classes, draw)

    test = select(data.test)
    if not test.items:
        raise UserError(f"{data.name}: its {half} classes have no test image; give some")
    note = f"The {half} classes: {len(classes)} of {count}, {classes[0]} to {classes[-1]}."
    return replace(
        data,
        classes=classes,
        train=select(data.train),
        test=test,
        validation=data.validation and select(data.validation),
        notes=(*data.notes, note),
        prompts={name: own for name, own in data.prompts.items() if name in classes},
    )
