"""The report of a sweep: ``report.md``, tables as CSV, and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from clip_randlora.errors import UserError
from clip_randlora.report.markdown import TITLE, as_markdown, save_table, write_csv
from clip_randlora.report.paired import paired_differences, paired_sections
from clip_randlora.report.published_figures import beside_published, published_sections
from clip_randlora.report.results import read_cells, summarize_models
from clip_randlora.report.transfer import summarize_transfer, transfer_sections
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils.outputs import figure_errors_to_notes, write_text
from clip_randlora.utils.progress import OnProgress, one_stage

__all__ = ["read_table", "write_report"]


def write_report(
    sweep: str | Path, out: str | Path | None = None, on_progress: OnProgress | None = None
) -> Path:
    """Write the report of a sweep, which may still be running.

    Beside ``report.md`` stand ``report.csv``, the figures, ``paired.csv`` if there are two methods
    or more, ``transfer.csv`` if there are tests on novel classes or other data sets, and
    ``published.csv`` if there are published figures of the same experiments.
    Figures that cannot be drawn are named in the report.

    Args:
        sweep: the sweep's folder.
        out: folder for the report; by default the sweep's.
        on_progress: told each step, see `clip_randlora.utils.progress.OnProgress`.

    Returns:
        The path of ``report.md``.

    Raises:
        UserError: the folder is not a sweep's, a file in it is damaged, or ``out`` has a
            ``report.md`` that is not a sweep's.
    """
    out = Path(out or sweep)
    folder = SweepFolder(sweep)
    cells = read_cells(folder, on_progress)
    models = summarize_models(cells)
    path = out / "report.md"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(TITLE):
        raise UserError(f"--out {out}: has a report.md that is not a sweep's; choose another")
    out.mkdir(parents=True, exist_ok=True)
    drawn: list[str] = []
    notes: list[str] = []
    with (
        one_stage("drawing figures", on_progress),
        figure_errors_to_notes("The figures", notes),
    ):
        from clip_randlora.report.plots import draw
        from clip_randlora.runs import figures  # an error of matplotlib must not cost the tables

        for name, figure in draw(models).items():
            figures.save(figure, out / name)
            drawn.append(name)
    write_csv(models, out / "report.csv")
    with one_stage("comparing methods", on_progress):
        paired = paired_differences(models, folder.reference())
        transfer = summarize_transfer(folder)
        published = beside_published(folder.asked(), models)
    tables = {"paired": paired, "transfer": transfer, "published": published}
    for name, table in tables.items():
        if len(table):
            save_table(table, out / f"{name}.csv")
    more = [
        *transfer_sections(transfer),
        *paired_sections(paired),
        *published_sections(published),
    ]
    write_text(path, as_markdown(cells, models, drawn, notes, more))
    return path


def read_table(folder: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a ``report.csv`` by their columns; what is not known is None."""
    table = pd.read_csv(Path(folder) / "report.csv")
    return json.loads(table.to_json(orient="records", double_precision=15))
