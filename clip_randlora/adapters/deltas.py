"""The trained weight updates of every method: made from a configuration, added to weights."""

import torch
from torch import Tensor

from clip_randlora.adapters.bases import Bases
from clip_randlora.adapters.config import Full, LoRA, MethodConfig, NoLA, RandLoRA, Sum, VeRA
from clip_randlora.adapters.delta import Delta, FullDelta, WeightedSum
from clip_randlora.adapters.low_rank import LoRADelta, NoLADelta, VeRADelta
from clip_randlora.adapters.randlora import RandLoRADelta, make_randlora_deltas
from clip_randlora.errors import UserError

_MOST_FROZEN = 2**30
"""Numbers, 4 GiB, that the random matrices of VeRA and NoLA may have."""


def add_updates(
    weight: Tensor,
    rows: list[slice],
    deltas: list[Delta],
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``weight + strength * dW``, (out, in), where each delta updates a run of rows.

    ``dtype`` is the result's: the weight's own, or the one that autocast would round it to.
    """
    covered = sum(run.stop - run.start for run in rows)
    if (
        all(isinstance(delta, RandLoRADelta) for delta in deltas)
        and covered == len(weight)
        and weight.dtype == deltas[0].lam.dtype
    ):
        return RandLoRADelta.all_added_to(weight, deltas, strength, dtype)
    pieces, end = [], 0
    for run, delta in zip(rows, deltas, strict=True):
        pieces += [weight[end : run.start], delta.added_to(weight[run], strength)]
        end = run.stop
    pieces = [piece for piece in (*pieces, weight[end:]) if len(piece)]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(dtype)


def make_deltas(
    shapes: list[tuple[int, int]], config: MethodConfig, bases: Bases | None = None
) -> list[Delta]:
    """Make one fresh update for each weight shape (out, in), all from the config's one seed.

    RandLoRA's frozen bases are ``bases``, if given, instead of those that the seed makes.

    Raises:
        UserError: a rank is above that of every weight, or the random matrices would be too large.
    """
    if isinstance(config, Sum):
        of_each_term = [make_deltas(shapes, term) for term in config.terms]
        return [
            WeightedSum(shape, list(terms), config.weights)
            for shape, *terms in zip(shapes, *of_each_term, strict=True)
        ]
    if isinstance(config, RandLoRA | LoRA | NoLA):
        _check_rank(config.rank, shapes)
    if isinstance(config, RandLoRA):
        return make_randlora_deltas(shapes, config, bases)
    if isinstance(config, LoRA):
        generator = torch.Generator().manual_seed(config.seed)
        return [LoRADelta(shape, config, generator) for shape in shapes]
    if isinstance(config, VeRA | NoLA):
        largest = max(out for out, _ in shapes), max(width for _, width in shapes)
        _check_frozen(config, largest)
        delta = VeRADelta if isinstance(config, VeRA) else NoLADelta
        return [delta(shape, config, largest) for shape in shapes]
    if isinstance(config, Full):
        return [FullDelta(shape) for shape in shapes]
    return []  # nothing in the towers is trained


def _check_rank(rank: int, shapes: list[tuple[int, int]]) -> None:
    """Refuse a rank that no weight can have: more of it adds nothing but memory."""
    most = max(min(shape) for shape in shapes)
    if rank > most:
        raise UserError(
            f"rank: {rank}, but no adapted weight has a rank above {most}; give at most {most}"
        )


def _check_frozen(config: VeRA | NoLA, largest: tuple[int, int]) -> None:
    """Refuse random matrices that fill the memory; VeRA's rank may be above the weights'."""
    setting = "rank" if isinstance(config, VeRA) else "number_of_bases"
    value = getattr(config, setting)
    of_each = sum(largest) * (1 if isinstance(config, VeRA) else config.rank)
    most = _MOST_FROZEN // of_each
    if value > most:
        raise UserError(
            f"{setting}: {value}, whose random matrices would take more than 4 GiB; give at most "
            f"{most}"
        )
