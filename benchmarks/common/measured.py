"""The rounds of a row put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A row's rounds put together.

    Attributes:
        key, group, label, settings: the row's.
        values: of each quantity that was measured, a `spread` if it varies, else its value;
            ``memory`` is the peak in bytes, of the GPU where there is one. Empty if it failed.
        failed: the reason, or None.
        first: the values of the first row of the group.
    """

    key: str
    group: str
    label: dict[str, str]
    settings: dict[str, Any]
    values: dict[str, Any]
    failed: str | None
    first: dict[str, Any]

    def ratio(self, quantity: str) -> float | None:
        """Return the median over that of the group's first row; None if that one failed."""
        if not self.values or not self.first:
            return None
        return self.values[quantity]["median"] / self.first[quantity]["median"]

    def as_json(self) -> dict[str, Any]:
        """Return everything but ``first``."""
        return {name: value for name, value in vars(self).items() if name != "first"}


def summarize(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the results of a row's rounds together.

    Numbers that vary, which are floats, lists of floats and bytes, become a `spread`; of anything
    else the first round's value is taken.
    """
    values: dict[str, Any] = {}
    for name in results[0]:
        listed = [one[name] for one in results]
        flat = [x for value in listed for x in (value if isinstance(value, list) else [value])]
        varies = all(isinstance(number, float) for number in flat) or name.endswith("_bytes")
        values[name] = spread(flat) if flat and varies else listed[0]
    for name in ("peak_memory_bytes", "peak_cuda_bytes"):
        if name in values:
            values["memory"] = values[name]
    return values


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, min, max, mean, standard deviation and count of some measurements."""
    values = list(values)
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "mean": mean(values),
        "deviation": stdev(values) if len(values) > 1 else 0.0,
        "count": len(values),
    }
