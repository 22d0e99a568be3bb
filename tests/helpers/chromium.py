"""The browser that opens pages, and a server of static files."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that shows a moving picture
    "--use-fake-ui-for-media-stream",  # and may be used without asking
]
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"

CLASSIFY = """async (files) => {
  const { Classifier } = await import("/classifier.js");
  const classifier = await Classifier.load();
  const answers = [];
  for (const file of files) {
    const blob = await (await fetch(`data:;base64,${file}`)).blob();
    const started = performance.now();
    const { before, after, unknown } = await classifier.classify(blob);
    const seconds = (performance.now() - started) / 1000;
    answers.push({ zero_shot: [...before], tuned: [...after], unknown, seconds });
  }
  return answers;
}"""
"""Classify files (base64) in an exported web page; return the answers and the seconds of each."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS, NO_NETWORK]
        )
        yield browser
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """What ``python -m http.server`` serves with, without its log."""

    def log_message(self, *_) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback as ``python -m http.server`` does; yield its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def drop(page, paths, onto=None) -> None:
    """Drop files and folders as from a file manager, on an element or beside everything."""
    box = onto.bounding_box() if onto else {"x": 30, "y": 5, "width": 20, "height": 20}
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})
    session.detach()
