"""What came out of a sweep: ``report.md``, ``report.csv`` and figures."""

from __future__ import annotations

from pathlib import Path

from clip_randlora.errors import UserError
from clip_randlora.report.markdown import TITLE, as_csv, as_markdown
from clip_randlora.report.results import Results, gather
from clip_randlora.sweep.sweep_folder import SweepFolder
from clip_randlora.utils.outputs import atomic_write, figure_errors_to_notes

__all__ = ["Results", "gather", "write_report"]


def write_report(sweep: str | Path, out: str | Path | None = None) -> Path:
    """Write a sweep's report; a sweep that is still running is reported as far as it is.

    Figures that cannot be drawn are named in it.

    Args:
        sweep: its folder.
        out: folder for the report; by default the sweep's.

    Returns:
        The path of ``report.md``.

    Raises:
        UserError: the folder is not a sweep's, a file in it is damaged, or ``out`` has a
            ``report.md`` that is not a sweep's.
    """
    folder, out = SweepFolder(sweep), Path(out or sweep)
    results = gather(folder)
    path = out / "report.md"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(TITLE):
        raise UserError(f"--out {out}: has a report.md that is not a sweep's; choose another")
    out.mkdir(parents=True, exist_ok=True)
    drawn, notes = [], []
    with figure_errors_to_notes("The figures", notes):
        from clip_randlora.report.plots import draw
        from clip_randlora.runs import figures  # an error of matplotlib's must not cost the tables

        for name, figure in draw(results).items():
            figures.save(figure, out / name)
            drawn.append(name)
    _write(out / "report.csv", as_csv(results))
    _write(path, as_markdown(results, drawn, notes))
    return path


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
