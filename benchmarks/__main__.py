"""The command ``python -m benchmarks``."""

from __future__ import annotations

import sys

import typer

from benchmarks.ablation import ablation
from benchmarks.ask import ask
from benchmarks.blocks import blocks
from benchmarks.calibration import calibration
from benchmarks.check import check
from benchmarks.embed import embed
from benchmarks.export import export
from benchmarks.fewshot import fewshot
from benchmarks.infer import infer
from benchmarks.label import label
from benchmarks.listing import listing
from benchmarks.memory import memory
from benchmarks.page import page
from benchmarks.read import read
from benchmarks.retrieval import retrieval
from benchmarks.scale import scale
from benchmarks.serve import serve
from benchmarks.start import start
from benchmarks.step import step
from benchmarks.stream import stream
from benchmarks.unknown import unknown
from benchmarks.web import web
from clip_randlora.errors import UserError

app = typer.Typer(
    name="python -m benchmarks",
    help="What the project costs, measured. Each prints a table, and writes it, JSON and a figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    step,
    ablation,
    scale,
    memory,
    stream,
    fewshot,
    blocks,
    infer,
    label,
    embed,
    retrieval,
    ask,
    start,
    serve,
    page,
    export,
    check,
    read,
    listing,
    calibration,
    unknown,
    web,
):
    app.command()(command)


def main() -> None:
    """Run a benchmark; exit status 2 for wrong input, with one line."""
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(f"error: {error}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error, which typer shows in a box
            raise
        _fail(f"error: {error.format_message()}")


def _fail(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
