"""Group images that are nearly the same: by their thumbnails, then by their features.

Two images match if their thumbnails differ little once their mean colours are equal, and their
features agree to some degree. Features alone do not do: two photographs of one scene agree more
than a photograph and its copy at half the size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from clip_randlora.checking.findings import Duplicates, Where
from clip_randlora.utils.progress import OnProgress, report_progress

_DIFFERENCE = 10.0  # root mean square difference of two thumbnails, of 255
_AGREEMENT = 0.4  # cosine of the features
_BLOCK = 1024


def match_images(
    features: Tensor, thumbnails: Tensor, on_progress: OnProgress | None = None
) -> tuple[Tensor, Tensor]:
    """Return the pairs of images that are nearly the same, and the cosines of their features.

    Memory does not grow with the square of N: differences are formed in blocks.

    Args:
        features: unit features, float32 (N, E).
        thumbnails: uint8 (N, 3, T, T).
        on_progress: told how many blocks were compared.

    Returns:
        Indices int64 (P, 2), the first of a pair less than the second, and float32 (P,).
    """
    pairs: list[Tensor] = [torch.empty(0, 2, dtype=torch.int64)]
    cosines: list[Tensor] = [torch.empty(0)]
    starts = range(0, len(features), _BLOCK)
    for start in report_progress(starts, "comparing images", len(starts), on_progress):
        block = _centred(thumbnails[start : start + _BLOCK])
        for other in range(start, len(features), _BLOCK):
            difference = _differences(block, _centred(thumbnails[other : other + _BLOCK]))
            rows, columns = (difference <= _DIFFERENCE).nonzero(as_tuple=True)
            first, second = rows + start, columns + other
            first, second = first[first < second], second[first < second]
            if not len(first):  # kept empty tensors would pin the freed blocks around them
                continue
            cosine = _cosines(features, first, second)
            kept = cosine >= _AGREEMENT
            pairs.append(torch.stack([first[kept], second[kept]], dim=1))
            cosines.append(cosine[kept])
    return torch.cat(pairs), torch.cat(cosines)


def _centred(thumbnails: Tensor) -> Tensor:
    """Return thumbnails as vectors (N, 3 T T) whose mean is 0."""
    vectors = thumbnails.flatten(1).float()
    return vectors - vectors.mean(dim=1, keepdim=True)


def _differences(block: Tensor, other: Tensor) -> Tensor:
    """Return the root mean square differences (N, M) of vectors (N, D) and (M, D)."""
    squares = block.square().sum(dim=1)[:, None] + other.square().sum(dim=1)
    return ((squares - 2 * block @ other.T).clamp(min=0) / block.shape[1]).sqrt()


def _cosines(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of each pair; few pairs at a time are in memory."""
    parts = [
        (features[a] * features[b]).sum(dim=1)
        for a, b in zip(first.split(_BLOCK), second.split(_BLOCK), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def join_pairs(pairs: Tensor, count: int) -> Tensor:
    """Return the group of each image, int64 (count,): the smallest index in it."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in pairs.tolist():
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    return torch.tensor([root(index) for index in range(count)], dtype=torch.int64)


def describe_groups(
    pairs: Tensor, cosines: Tensor, groups: Tensor, labels: Sequence[int], splits: Sequence[str]
) -> list[Duplicates]:
    """Return the groups of two images or more: across splits, across classes, then the others."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    lowest: dict[int, float] = {}
    for (first, _), cosine in zip(pairs.tolist(), cosines.tolist(), strict=True):
        group = int(groups[first])
        lowest[group] = min(cosine, lowest.get(group, 1.0))
    found = [
        Duplicates(
            tuple(indices),
            _where([labels[i] for i in indices], [splits[i] for i in indices]),
            lowest[group],
        )
        for group, indices in members.items()
        if len(indices) > 1
    ]
    order = ("splits", "classes", "class")
    return sorted(found, key=lambda group: (order.index(group.where), group.indices))


def _where(labels: Sequence[int], splits: Sequence[str]) -> Where:
    if len(set(splits)) > 1:
        return "splits"
    return "classes" if len(set(labels)) > 1 else "class"
