"""Ratios of medians against targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """A ratio of two rows' medians that has a target, or is reported without one.

    Attributes:
        name: what is compared.
        value: None where one of the two was not measured.
        target: None where there is none.
        at_least: whether the target is the smallest value that meets it, not the largest.
        strictly: whether the target itself does not meet it.
    """

    name: str
    value: float | None
    target: float | None = None
    at_least: bool = False
    strictly: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a value or a target."""
        if self.value is None or self.target is None:
            return None
        if self.value == self.target:
            return not self.strictly
        return (self.value > self.target) == self.at_least

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``not measured`` or nothing, as tables say it."""
        if self.value is None:
            return "not measured"
        return {True: "met", False: "not met", None: ""}[self.is_met]

    @property
    def wanted(self) -> str:
        """The target in words."""
        if self.target is None:
            return ""
        if self.at_least:
            return f"{self.target:g} or more"
        return f"below {self.target:g}" if self.strictly else f"{self.target:g} or less"

    def cells(self) -> list[str]:
        """Return the cells of a table: name, value, target, verdict."""
        value = "" if self.value is None else f"{self.value:.3f}"
        return [self.name, value, self.wanted, self.verdict]

    def as_json(self) -> dict[str, Any]:
        """Return everything, with ``met``."""
        return {"name": self.name, "value": self.value, "target": self.wanted, "met": self.is_met}


def divide(
    numerator: Mapping[str, float] | None, denominator: Mapping[str, float] | None
) -> float | None:
    """Return the ratio of the medians of two `spread`s, None if one is missing."""
    if not numerator or not denominator:
        return None
    return numerator["median"] / denominator["median"]
