"""The browser app: gather images, train, compare zero-shot with tuned, take the result away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from clip_randlora.app.app_settings import Settings
from clip_randlora.errors import needs_extra

__all__ = ["Settings", "launch"]

_SECONDS_BETWEEN_CHECKS = 0.25


def launch(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    open_browser: bool = False,
    mcp: bool = False,
) -> None:
    """Serve the app until Ctrl-C or SIGTERM; what is still open then ends with the process.

    Args:
        settings: the limits.
        host: address to listen on; other than 127.0.0.1, others can reach the app.
        port: TCP port.
        auth: user name and password to ask for.
        open_browser: also open it in a browser.
        mcp: also serve the endpoints to assistants, by the Model Context Protocol. The settings
            must be personal.

    Raises:
        UserError: Gradio is not installed, or without what ``mcp`` needs.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # uploads and workspaces share one folder, so that what is served need not be copied
    os.environ["GRADIO_TEMP_DIR"] = str(settings.folder)
    with _signals_collected() as signals:
        with needs_extra("the app", "app"):
            import gradio  # noqa: F401
        from starlette.middleware import Middleware

        from clip_randlora.app.access import AccessMiddleware
        from clip_randlora.app.page import HEAD, build, theme
        from clip_randlora.app.routes import routes
        from clip_randlora.app.service import Service

        if mcp:
            with needs_extra("--mcp", "mcp"):
                import mcp as _  # noqa: F401
        service = Service(settings)
        build(service).queue(default_concurrency_limit=8).launch(
            server_name=host,
            server_port=port,
            auth=auth,
            max_file_size=settings.max_upload_mb * 2**20,
            inbrowser=open_browser,
            theme=theme(),
            head=HEAD,
            footer_links=["api"],
            share=False,
            show_error=True,
            prevent_thread_lock=True,  # Gradio's own waiting ends only seconds after an interrupt
            mcp_server=mcp,
            app_kwargs={
                "middleware": [Middleware(AccessMiddleware, service.workspaces)],
                "routes": routes(service),
            },
        )
        while not signals:
            time.sleep(_SECONDS_BETWEEN_CHECKS)


@contextmanager
def _signals_collected() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM are added; a second signal raises at once.

    The first signal raises nothing: an exception is lost if it comes in a destructor or a callback.
    The caller checks the list now and then, because the system may hand a signal to another
    thread, which wakes nobody.
    """
    signals: list[int] = []

    def collect(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield signals
        return
    handled = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # in the background of a script
        handled.append(signal.SIGINT)
    before = {number: signal.signal(number, collect) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
