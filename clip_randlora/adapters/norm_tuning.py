"""Norm tuning: only the weights and biases of the normalisation layers are trained.

``w' = w + dw`` and ``b' = b + db`` of every layer, batch, group and RMS norm; dw and db
(C,) are trained, zero at first. The statistics of batch norms stay as they are.

Source: Kim et al., How to Adapt Your Large-Scale Vision-and-Language Model, 2022
(openreview.net/forum?id=EhwEUb2ynIa), for CLIP's layer norms; Frankle et al., ICLR 2021,
arXiv 2003.00152, for batch norms.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clip_randlora.adapters.config import MethodConfig, Tower
from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.adapters.full import FullDelta


class NormTuning(MethodConfig):
    """Weights and biases of the norms alone (Kim et al., 2022; Frankle et al., arXiv 2003.00152).

    The difference from the base values is trained, as `Full` does, so weight decay draws them
    towards their start.

    Attributes:
        towers: the encoders whose norms are trained.
        blocks: train only the norms of the last K blocks of each tower, and after them; None
            trains all.
    """

    method: Literal["norm_tuning"] = "norm_tuning"
    towers: tuple[Tower, ...] = Field(default=("vision", "text"), min_length=1)
    blocks: int | None = Field(default=None, ge=1)

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each tensor's shape (C, 1)."""
        return [FullDelta(shape) for shape in shapes]
