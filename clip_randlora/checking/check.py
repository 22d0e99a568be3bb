"""Check a labelled image set for wrong labels, near duplicates, outliers and bad files."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_randlora.checking.findings import Findings, SmallImage
from clip_randlora.checking.looks import TINY, look_at
from clip_randlora.checking.near_duplicates import describe_groups, join_pairs, match_images
from clip_randlora.checking.outliers import find_outliers
from clip_randlora.checking.wrong_labels import find_wrong_labels
from clip_randlora.clip.models import Model, load_model
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import Data, Item, Split
from clip_randlora.errors import UserError
from clip_randlora.utils.progress import OnProgress


def check_images(
    data: Data | Split,
    model: Model | None = None,
    on_progress: OnProgress | None = None,
    *,
    seed: int = 1,
) -> Findings:
    """Find wrong labels, near duplicates, outliers and bad files. No file is changed.

    Labels of all splits are judged, those of test images as well. Every image is decoded and
    encoded once, with the image tower as it is; heads on these features judge the labels.

    Args:
        data: an image set, or one split of it. `load_data` keeps copies of test images out of
            training and so out of a check; ``load_data(source, check=False)`` leaves them in.
        model: encodes the images; by default ``lite0``.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.
        seed: of the folds by which labels are judged.

    Raises:
        UserError: no image can be decoded.
    """
    model = model or load_model()
    items, splits = _items_of(data)
    looks = look_at(items, model, on_progress)
    skipped = [*(data.skipped if isinstance(data, Data) else ()), *looks.skipped]
    if not len(looks.rows):
        first = f", e.g. {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"no image to check can be decoded{first}; give others")
    kept = [items[row] for row in looks.rows.tolist()]
    split_of = [splits[row] for row in looks.rows.tolist()]
    labels = torch.tensor([item.label for item in kept])
    plain = looks.features[:, 0]

    pairs, cosines = match_images(plain, looks.thumbnails, on_progress)
    pairs, cosines = _without(looks.is_blank, pairs, cosines)
    groups = join_pairs(pairs, len(kept))
    wrong = find_wrong_labels(
        looks.features,
        labels,
        _class_features(model, data),
        float(model.logit_scale().detach()),
        groups,
        seed,
        on_progress,
    )
    blank = set(looks.is_blank.nonzero().flatten().tolist())  # they have nothing to be judged by
    sizes = looks.sizes.tolist()
    tiny = [i for i, size in enumerate(sizes) if min(size) < TINY]
    return Findings(
        items=tuple(kept),
        splits=tuple(split_of),
        classes=data.classes,
        wrong_labels=tuple(found for found in wrong if found.index not in blank),
        duplicates=tuple(
            describe_groups(
                pairs,
                cosines,
                groups,
                labels.tolist(),
                ["" for _ in kept] if isinstance(data, Data) and data.held_out else split_of,
            )
        ),
        outliers=tuple(
            found for found in find_outliers(plain, on_progress) if found.index not in blank
        ),
        blank=tuple(sorted(blank)),
        tiny=tuple(
            SmallImage(i, tuple(sizes[i])) for i in sorted(tiny, key=lambda i: min(sizes[i]))
        ),
        unreadable=tuple(skipped),
    )


def _items_of(data: Data | Split) -> tuple[list[Item], list[str]]:
    """Return the images of all splits, and the split of each."""
    if isinstance(data, Split):
        return list(data.items), ["train"] * len(data)
    named = {"train": data.train, "test": data.test, "validation": data.validation}
    present = {name: split for name, split in named.items() if split is not None}
    items = [item for split in present.values() for item in split]
    return items, [name for name, split in present.items() for _ in split]


def _class_features(model: Model, data: Data | Split) -> Tensor:
    """Return unit class features (C, E) of the set's prompts."""
    templates = (data.templates or None) if isinstance(data, Data) else None
    names = data.prompts if isinstance(data, Data) else {}
    prompts = make_prompts(data.classes, templates, names)
    with torch.no_grad():
        return TextClassifier(model, data.classes, prompts).features().float().cpu()


def _without(is_blank: Tensor, pairs: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out pairs of blank images, which are all alike and are named as blank."""
    kept = ~is_blank[pairs].any(dim=1)
    return pairs[kept], cosines[kept]
