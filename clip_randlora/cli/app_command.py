"""The command app."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from clip_randlora.cli.console import loading
from clip_randlora.cli.options import DeviceOption
from clip_randlora.errors import UserError, needs_extra

_SECONDS_TO_FLUSH = 2
_LOCAL = ("127.0.0.1", "localhost", "::1")


def browser_app(
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel="Address")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", rich_help_panel="Address")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD", help="Require this login.", rich_help_panel="Address"
        ),
    ] = None,
    max_upload_mb: Annotated[
        int, typer.Option(help="Largest upload, in megabytes.", rich_help_panel="Limits")
    ] = 1000,
    max_images: Annotated[
        int, typer.Option(help="Images that one visitor may gather.", rich_help_panel="Limits")
    ] = 5000,
    max_train_minutes: Annotated[
        float,
        typer.Option(
            help="Stop a longer training and keep what it learned.", rich_help_panel="Limits"
        ),
    ] = 30,
    keep_hours: Annotated[
        float,
        typer.Option(
            help="Delete images and runs this long after their last use.", rich_help_panel="Limits"
        ),
    ] = 24,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for images and runs. Default: a cache folder.")
    ] = None,
    device: DeviceOption = None,
    stop_when_closed: Annotated[
        bool | None,
        typer.Option(
            "--stop-when-closed/--train-on",
            help="Stop a training once nobody has its page open. Default: only if --host is not "
            "this machine.",
            rich_help_panel="Limits",
        ),
    ] = None,
    mcp: Annotated[
        bool,
        typer.Option(
            "--mcp",
            help="Also serve assistants, by the Model Context Protocol. Pages and assistants then "
            "share one project.",
        ),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Also open a browser.", rich_help_panel="Address")
    ] = False,
) -> None:
    """Serve the app for the browser: gather images, train, compare, export."""
    is_local = host in _LOCAL
    if mcp and not is_local and auth is None:
        raise UserError("--mcp: whoever reaches the app would share one project; add --auth")
    with loading():
        from clip_randlora.app import Settings, launch
        from clip_randlora.app.app_settings import default_folder
        from clip_randlora.clip.models import find_device

        with needs_extra("the app", "app"):
            import gradio  # noqa: F401  # the slowest of what `launch` needs

        settings = Settings(
            folder=(folder or default_folder()).resolve(),
            max_upload_mb=max_upload_mb,
            max_images=max_images,
            max_train_minutes=max_train_minutes,
            keep_hours=keep_hours,
            device=str(find_device(device)),
            is_personal=mcp,
            trains_on=is_local if stop_when_closed is None else not stop_when_closed,
        )
    launch(settings, host, port, _parse_auth(auth), open_browser, mcp)
    # A training may still run in its thread, and Python aborts if it exits normally beside that.
    # Flushing blocks if nobody reads the output, so the timer ends the process in any case.
    timer = threading.Timer(_SECONDS_TO_FLUSH, os._exit, [0])
    timer.daemon = True
    timer.start()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _parse_auth(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, separator, password = auth.partition(":")
    if not (user and separator and password):
        raise UserError("--auth: give it as user:password")
    return user, password
