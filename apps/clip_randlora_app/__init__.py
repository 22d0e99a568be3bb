"""The browser app: gather images, train, compare zero-shot with tuned, take the result away."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from clip_randlora_app.settings import Settings

__all__ = ["Settings", "launch"]


def launch(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    open_browser: bool = False,
) -> None:
    """Serve the app until it is interrupted; what is still open then ends with the process.

    Args:
        settings: the limits.
        host: address to listen on; other than 127.0.0.1, others can reach the app.
        port: TCP port.
        auth: user name and password to ask for.
        open_browser: also open it in a browser.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # uploads and workspaces share one folder, so that what is served need not be copied
    os.environ["GRADIO_TEMP_DIR"] = str(settings.folder)
    from starlette.middleware import Middleware

    from clip_randlora_app.gate import Gate
    from clip_randlora_app.page import CSS, Page, theme
    from clip_randlora_app.service import Service

    service = Service(settings)
    page = Page(service)
    page.blocks.queue(default_concurrency_limit=8).launch(
        server_name=host,
        server_port=port,
        auth=auth,
        max_file_size=settings.max_upload_mb * 2**20,
        inbrowser=open_browser,
        theme=theme(),
        css_paths=[CSS],
        footer_links=["api"],
        share=False,
        show_error=True,
        prevent_thread_lock=True,  # Gradio's own waiting ends only seconds after an interrupt
        app_kwargs={"middleware": [Middleware(Gate, service.visitors)]},
    )
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
