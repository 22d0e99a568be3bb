"""The commands about many runs: sweep, report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from clip_randlora.cli.completion import complete_dataset, complete_sweep
from clip_randlora.cli.console import (
    CELLS_FAILED,
    INTERRUPTED,
    fail,
    loading,
    messages,
    print_json,
    progress,
    results,
)
from clip_randlora.cli.options import (
    DATA,
    AddressOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    TrackOption,
)

_NAMED = 5  # failed cells in the last line; each also had a line of its own when it failed


def sweep(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file, or the name of one in configs/sweeps.",
            autocompletion=complete_sweep,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; an existing one is continued.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="One more data set; may be repeated.",
            autocompletion=complete_dataset,
            rich_help_panel=DATA,
        ),
    ] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    device: DeviceOption = None,
    track: TrackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run data sets x methods x shots x seeds; finished cells are not run again.

    The exit status is 1 if cells failed. They are named, and the same command tries them again.
    """
    with loading():
        from clip_randlora.sweep import Stopped, read_sweep, run_sweep

        settings = read_sweep(config, data or ())
    try:
        # a terminal has a table that says how far the running cell is
        with nullcontext() if messages.is_terminal else progress() as on_progress:
            done = run_sweep(
                settings,
                out,
                engine=engine,  # type: ignore[arg-type]  # checked there
                address=address,
                device=device,
                console=messages,
                on_progress=on_progress,
                track=track or (),
            )
    except Stopped as stop:
        fail(
            INTERRUPTED,
            f"interrupted: {stop.left} cells left, finished ones are in {out}; run the same "
            f"command to go on",
        )
    if as_json:
        finished = [cell.id for cell in done.done]
        print_json({"folder": str(out), "done": finished, "failed": done.failed})
    else:
        results.print(f"{len(done.done)} cells finished, {len(done.failed)} failed: {out}")
        results.print(f"clip-randlora report {out}")
    if done.failed:
        names, count = list(done.failed), len(done.failed)
        named = ", ".join(names[:_NAMED]) + f" and {count - _NAMED} more" * (count > _NAMED)
        fail(CELLS_FAILED, f"failed: {named}; the same command tries again")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report. Default: DIR.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a sweep's tables (report.md, report.csv) and figures."""
    with loading():
        from clip_randlora.report import read_table, write_report
    with progress() as on_progress:
        written = write_report(folder, out, on_progress)
    if as_json:
        return print_json({"report": str(written), "rows": read_table(written.parent)})
    results.print(f"Saved {written}")
