"""A benchmark: rows measured in interleaved rounds, saved after each, shown as one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.common import report
from benchmarks.common.machine import (
    describe_machine,
    describe_versions,
    one_line,
    usable_cores,
)
from benchmarks.common.measured import Measured, summarize
from benchmarks.common.processes import Row, run_row
from clip_randlora.errors import UserError
from clip_randlora.runs import figures
from clip_randlora.utils.outputs import atomic_write

messages = Console(stderr=True, highlight=False)


class Benchmark:
    """Measures rows and publishes them as ``NAME.json``, ``NAME.md`` and ``NAME.png``.

    Args:
        name: of the benchmark and its files.
        settings: what all rows share; ``resume`` needs the same ones.
        out: folder for the files; by default ``runs/benchmarks/NAME``.
        threads: of every measured process; by default the usable cores.
        resume: keep what the folder has, and measure the rest.

    Raises:
        UserError: what the folder has is damaged, or was measured with other settings.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        out: Path | None = None,
        threads: int | None = None,
        resume: bool = False,
    ):
        self.name, self.folder = name, out or Path("runs") / "benchmarks" / name
        self.threads = threads or usable_cores()
        self.settings = {**settings, "threads": self.threads}
        self.rows: list[Row] = []
        self.samples: list[dict[str, Any]] = []
        if resume and self._json.exists():
            self._read()

    @property
    def _json(self) -> Path:
        return self.folder / f"{self.name}.json"

    def _read(self) -> None:
        try:
            stored = json.loads(self._json.read_text(encoding="utf-8"))
            before = stored["settings"]
            # what failed is measured again
            self.samples = [sample for sample in stored["samples"] if "result" in sample]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._json}: damaged ({error}); leave out --resume") from error
        for setting, value in json.loads(json.dumps(self.settings)).items():
            if before.get(setting) != value:
                raise UserError(
                    f"{self._json}: was measured with {setting} {before.get(setting)}, not "
                    f"{value}; give another --out, or leave out --resume"
                )

    def measure(
        self,
        rows: Sequence[Row],
        repeats: int = 1,
        run: Callable[[Row, int], dict[str, Any]] | None = None,
        progress: Callable[[dict[str, Any]], str] | None = None,
    ) -> list[Measured]:
        """Run each row once, then each again, so that a slow spell of the machine hits all rows.

        Every answer is saved at once. What is there already is not measured again, nor is a row
        that failed.

        Args:
            rows: with different keys.
            repeats: the number of rounds.
            run: measures a row in a round, by default `run_row`.
            progress: describes a result in a few words.

        Returns:
            These rows, and then rows that were measured before.
        """
        run = run or (lambda row, _: run_row(row, self.threads))
        progress = progress or _seconds_and_memory
        self.rows = list(rows)
        for turn in range(1, repeats + 1):
            for row in rows:
                mine = [sample for sample in self.samples if sample["row"] == row.key]
                if any("failed" in sample or sample["round"] == turn for sample in mine):
                    continue
                with messages.status(f"round {turn} of {repeats}: {row.key}"):
                    answer = run(row, turn)
                described = {"row": row.key, "group": row.group, "label": row.label}
                self.samples.append(
                    {**described, "round": turn, "settings": row.settings, **answer}
                )
                self._write({})
                said = f"failed: {answer['failed']}" if "failed" in answer else ""
                said = said or progress(answer["result"])
                messages.print(f"round {turn} of {repeats}: {row.key}: {said}", markup=False)
        return self.measured()

    def measured(self) -> list[Measured]:
        """Return every row with samples, the rows of this command first."""
        samples: dict[str, list[dict[str, Any]]] = {row.key: [] for row in self.rows}
        for sample in self.samples:
            samples.setdefault(sample["row"], []).append(sample)
        first: dict[str, dict[str, Any]] = {}
        found = []
        for key, mine in samples.items():
            results = [sample["result"] for sample in mine if "result" in sample]
            values = summarize(results) if results else {}
            one = mine[-1]
            group = one["group"]
            found.append(
                Measured(
                    key,
                    group,
                    one["label"],
                    one["settings"],
                    values,
                    None if values else one["failed"],
                    first.setdefault(group, values),
                )
            )
        return found

    def publish(self, table: str, notes: Sequence[str], figure: Figure | None = None) -> None:
        """Print the table and the notes; write them, the JSON and the figure."""
        machine, versions = describe_machine(), describe_versions()
        lines = [f"Measured on {one_line(machine, versions, self.threads)}.", *notes]
        text = "\n\n".join([table, "\n".join(f"- {line}" for line in lines)]) + "\n"
        rows = [row.as_json() for row in self.measured()]
        self._write({"machine": machine, "versions": versions, "notes": lines, "rows": rows})
        with atomic_write(self.folder / f"{self.name}.md") as path:
            path.write_text(text, encoding="utf-8")
        if figure is not None:
            figures.save(figure, self.folder / f"{self.name}.png")
        print(text)
        print(f"Saved to {self.folder}")

    def _write(self, summary: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": self.name, "settings": self.settings, **summary}
        with atomic_write(self._json) as path:
            text = json.dumps(content | {"samples": self.samples}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")


def _seconds_and_memory(result: Mapping[str, Any]) -> str:
    values = summarize([result])
    memory = f", {report.gigabytes(values['memory'])} GB" if "memory" in values else ""
    return f"{report.seconds(values['seconds'])} s{memory}"
