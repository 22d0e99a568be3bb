"""The command ``clip-randlora``. Commands import heavy libraries only when they run."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from clip_randlora.cli.app_command import browser_app
from clip_randlora.cli.catalogues import datasets, models
from clip_randlora.cli.check_command import check
from clip_randlora.cli.console import (
    EXIT_STATUS,
    INTERRUPTED,
    SWEEP_STATUS,
    fail,
    messages,
    results,
)
from clip_randlora.cli.embed_command import embed
from clip_randlora.cli.evaluate_command import evaluate
from clip_randlora.cli.export_command import export
from clip_randlora.cli.interrupts import handle_signals
from clip_randlora.cli.label_command import label
from clip_randlora.cli.predict_command import predict
from clip_randlora.cli.push_command import push
from clip_randlora.cli.sweep_command import report, sweep
from clip_randlora.cli.train_command import demo, train
from clip_randlora.cli.tune_command import tune
from clip_randlora.errors import UserError, is_out_of_memory

app = typer.Typer(
    name="clip-randlora",
    help="Teach CLIP your own classes from a handful of images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="`clip-randlora COMMAND --help` has the options of a command. " + EXIT_STATUS,
    rich_markup_mode="markdown",
)
_TASKS: dict[str, dict[str, Callable[..., None]]] = {
    "Teach a model": {"demo": demo, "train": train, "tune": tune},
    "Use what was trained": {
        "predict": predict,
        "eval": evaluate,
        "embed": embed,
        "export": export,
        "push": push,
    },
    "Prepare images": {"check": check, "label": label},
    "Compare methods": {"sweep": sweep, "report": report},
    "Work in the browser": {"app": browser_app},
    "Look up": {"models": models, "datasets": datasets},
}
for _task, _commands in _TASKS.items():
    for _name, _command in _commands.items():
        _status = SWEEP_STATUS if _command is sweep else EXIT_STATUS
        app.command(_name, rich_help_panel=_task, epilog=_status)(_command)


def main() -> None:
    """Run the command and exit.

    The status is 0 when done, 1 if cells of a sweep failed, 2 for wrong input, 130 if interrupted.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # SIGTERM is handled as Ctrl-C, so that states are saved and temporary files removed
    with handle_signals(), _warnings_in_one_line():
        _run()


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings as notes, without the line of the program that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"- {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _run() -> None:
    if os.environ.get("RANK", "0") != "0":  # only the main one of several processes prints
        results.quiet = messages.quiet = True
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        fail(2, f"error: {error}")
    except OSError as error:
        fail(2, f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):  # older versions of typer raise Abort for Ctrl-C
        fail(INTERRUPTED, "interrupted; start again")
    except Exception as error:
        if is_out_of_memory(error):
            fail(2, "error: out of memory; end other programs, or use smaller settings")
        # click's usage errors have this method; click itself would print more than one line
        if not hasattr(error, "format_message"):
            raise
        fail(2, f"error: {error.format_message()}")
