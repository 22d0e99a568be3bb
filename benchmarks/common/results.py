"""The answers of a benchmark as one JSON file, written after every row so that it can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from clip_randlora.errors import UserError

_NOT_COMPARED = ("rows", "repeats")  # settings that may differ when a benchmark goes on


class Results:
    """The samples of one benchmark: one for each row and round.

    Attributes:
        name: the benchmark's; ``folder``: where ``NAME.json`` is.
        settings: what all rows share.
        samples: ``{"row", "round", "settings", "result" or "failed"}``, in the order measured.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any], resume: bool = False):
        self.name, self.folder, self.settings = name, Path(folder), dict(settings)
        self.samples: list[dict[str, Any]] = []
        if resume and self.path.exists():
            self._read()

    @property
    def path(self) -> Path:
        """The JSON file."""
        return self.folder / f"{self.name}.json"

    def _read(self) -> None:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            then = stored["settings"]
            # what failed is tried again
            self.samples = [sample for sample in stored["samples"] if "result" in sample]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: damaged ({error}); leave out --resume") from error
        for setting, value in json.loads(json.dumps(self.settings)).items():
            if setting not in _NOT_COMPARED and then.get(setting) != value:
                raise UserError(
                    f"{self.path}: was measured with {setting} {then.get(setting)}, not {value}; "
                    f"give another --out, or leave out --resume"
                )

    def has(self, row: str, turn: int) -> bool:
        """Tell whether a row was measured in a round."""
        return any(s["row"] == row and s["round"] == turn and "result" in s for s in self.samples)

    def failure(self, row: str) -> str | None:
        """Return why a row failed, if it did and has no result at all."""
        mine = [sample for sample in self.samples if sample["row"] == row]
        if any("result" in sample for sample in mine):
            return None
        return mine[-1]["failed"] if mine else None

    def of(self, row: str) -> list[dict[str, Any]]:
        """Return a row's results, one for each round in which it ran."""
        return [s["result"] for s in self.samples if s["row"] == row and "result" in s]

    def add(
        self, row: str, turn: int, settings: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> None:
        """Add an answer and save."""
        self.samples.append({"row": row, "round": turn, "settings": dict(settings), **answer})
        self.write({})

    def write(self, summary: Mapping[str, Any]) -> None:
        """Save samples and a summary, under a temporary name first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": self.name, "settings": self.settings, **summary}
        temporary = self.path.with_suffix(".tmp")
        text = json.dumps(content | {"samples": self.samples}, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the smallest, the largest and the number of some measurements."""
    values = list(values)
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }
