"""How a training step fits into memory: whole, with checkpointed blocks, or in parts.

Steps of two and three images are run and counted, see `TensorMemory`. Every tensor of a step grows
in proportion to its images, or does not depend on them, so two sizes tell every other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from clip_randlora.utils.tensor_memory import TensorMemory

_USABLE = 0.9  # of the free memory: gaps between tensors and the kernels' own memory take the rest
_NEARLY = 1.05  # so much more than the least is as good as it, where nothing fits


@dataclass(frozen=True)
class Plan:
    """How the images of a step are encoded.

    Attributes:
        parts: one after the other; their gradients are added.
        checkpoints_blocks: whether the backward pass computes each block again.
    """

    parts: int
    checkpoints_blocks: bool


@dataclass(frozen=True)
class Measured:
    """The memory of steps of two images and of three, as `TensorMemory.stretches`."""

    two: list[list[int]]
    three: list[list[int]]

    def peak(self, images: int) -> int:
        """Return the bytes that a step of so many images takes at most."""
        two, three = self.two, self.three
        if len(two) != len(three):
            two, three = [[*chain.from_iterable(two)]], [[*chain.from_iterable(three)]]
        pairs = (pair for a, b in zip(two, three, strict=True) for pair in _same_moments(a, b))
        return max(a + max(b - a, 0) * (images - 2) for a, b in pairs)


def _same_moments(two: list[int], three: list[int]) -> Iterator[tuple[int, int]]:
    """Pair the memory of two steps at the same moments of a stretch.

    Attention in bf16 on a CPU takes an operation for each image, so only the start, the most and
    the end of its stretch can be compared.
    """
    if len(two) == len(three):
        yield from zip(two, three, strict=True)
    else:
        yield from ((two[0], three[0]), (max(two), max(three)), (two[-1], three[-1]))


RunStep = Callable[[Plan, int], None]
"""Computes and adds the gradients of ``plan.parts`` parts of so many images each."""


class StepMemory:
    """The memory that a step takes beside what is in memory already, by its plan."""

    def __init__(self, run: RunStep):
        """Take what runs steps of few images; each kind of step is run once."""
        self._run = run
        self._measured: dict[Plan, Measured] = {}

    def peak(self, plan: Plan, images: int) -> int:
        """Return the bytes that a step of so many images takes at most."""
        # further parts take the memory of the second, whose gradients are added to the first's
        kind = replace(plan, parts=min(plan.parts, 2))
        if kind not in self._measured:
            self._run(kind, 1)  # makes what later steps share: bases in the precision, for example
            self._measured[kind] = Measured(*(self._count(kind, count) for count in (2, 3)))
        return self._measured[kind].peak(-(-images // plan.parts))

    def _count(self, plan: Plan, images: int) -> list[list[int]]:
        with TensorMemory() as memory:
            self._run(plan, images)
        return memory.stretches


def plans(images: int, parts: int | None, checkpoints_blocks: bool | None) -> Iterator[Plan]:
    """Yield the plans that a training may choose from, the fastest first.

    Blocks are checkpointed before there are parts, as that changes no bit of the result.

    Args:
        images: of a step.
        parts: asked for; None if they are chosen.
        checkpoints_blocks: asked for; None if it is chosen.
    """
    choices = (False, True) if checkpoints_blocks is None else (checkpoints_blocks,)
    for choice in choices:
        yield Plan(parts or 1, choice)
    count = 2
    while parts is None and count < 2 * images:
        yield Plan(min(count, images), choices[-1])
        count *= 2


def choose_plan(
    images: int,
    free: int,
    parts: int | None,
    checkpoints_blocks: bool | None,
    run: RunStep,
) -> tuple[Plan, list[str]]:
    """Return the first plan that fits into the free memory, or else the smallest; and a note.

    Args:
        images: of a step.
        free: bytes that new tensors may take.
        parts, checkpoints_blocks: as `plans` takes them.
        run: takes a step of two or three images.
    """
    memory, peaks = StepMemory(run), dict[Plan, int]()
    for plan in plans(images, parts, checkpoints_blocks):
        peaks[plan] = memory.peak(plan, images)
        if peaks[plan] <= _USABLE * free:
            break
    else:  # more parts are no use where the prompts take the memory
        least = min(peaks.values())
        plan = next(plan for plan, peak in peaks.items() if peak <= _NEARLY * least)
    usual = next(iter(peaks))
    if plan == usual:
        return plan, []
    chosen = []
    if plan.checkpoints_blocks and checkpoints_blocks is None:
        chosen.append("blocks are computed again in the backward pass")
    if plan.parts > 1 and parts is None:
        chosen.append(f"the {images} images of a step are encoded in {plan.parts} parts")
    what = ", and ".join(chosen)
    return plan, [
        f"{what[0].upper()}{what[1:]}: a step takes about {peaks[plan] / 1e9:.1f} GB of memory so, "
        f"it would take {peaks[usual] / 1e9:.1f} GB otherwise, and {free / 1e9:.1f} GB are free."
    ]


def certainly_fits(images: int, of_image: int, of_classes: int, of_weights: int, free: int) -> bool:
    """Return whether a step fits for certain, as it nearly always does, without running one.

    Args:
        images: of a step.
        of_image: bytes of everything that the forward pass of one image makes.
        of_classes: the same of the classes' prompts.
        of_weights: bytes of the adapted weights.
        free: bytes that new tensors may take.
    """
    # what is kept for the backward pass, as much again in it, and the updated weights likewise
    return 2 * (images * of_image + of_classes) + 3 * of_weights <= _USABLE * free
