"""The real app, started as a user starts it, and the browser that opens its page."""

import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLIPART = Path(__file__).parents[2] / "clip_randlora" / "bundled" / "clipart"
UPLOAD_LIMIT_MB = 20
MINUTE = 60_000


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class App:
    """A running app: its address, its process, its folder."""

    def __init__(self, folder: Path, *more: str, errors: Path | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.folder = f"http://127.0.0.1:{port}", folder
        command = [sys.executable, "-m", "clip_randlora", "app", "--port", str(port)]
        options = ["--folder", str(folder), "--max-upload-mb", str(UPLOAD_LIMIT_MB)]
        with open(errors or os.devnull, "w") as stderr:
            self.process = subprocess.Popen(
                [*command, *options, *more], stderr=stderr if errors else None
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert self.process.poll() is None, "the app ended"
            time.sleep(0.3)
        raise AssertionError("the app did not start")

    def client(self) -> Client:
        return Client(self.url, verbose=False)

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(4)  # whatever connections are open
        finally:
            self.process.kill()  # one that does not end fails the test, and is not left behind
            self.process.wait()


def zip_of(path: Path, classes: dict[str, str], images: int) -> Path:
    """Zip the first training drawings of some classes, ``{name in the zip: name in clipart}``."""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, folder in classes.items():
            for image in sorted((CLIPART / "train" / folder).iterdir())[:images]:
                zipped.write(image, f"{name}/{image.name}")
    return path


def drawing(class_name: str, number: int) -> Path:
    """Return one of clipart's test images."""
    return sorted((CLIPART / "test" / class_name).iterdir())[number]


def open_page(browser, app: App):
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(MINUTE)
    page.goto(app.url)
    page.get_by_text("Nothing here yet").wait_for()
    return page


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fill_opened(page, label: str, text: str) -> None:
    """Fill a box of a section just opened, whose boxes Gradio sets once more some frames later."""
    box = page.get_by_label(label)
    for _ in range(10):
        page.wait_for_timeout(300)
        box.fill(text)
        page.wait_for_timeout(300)
        if box.input_value() == text:
            return
    raise AssertionError(f"{label} keeps being set to {box.input_value()!r}")


def upload_archive(page, path: Path) -> None:
    page.locator("#archive input[type=file]").set_input_files(path)


def train(client: Client, **settings) -> list[dict]:
    chosen = {"model": "lite0", "method": "randlora", "shots": 8, "seed": 1, "preset": "fast"}
    job = client.submit(**{**chosen, **settings}, api_name="/train")
    rows = list(job)
    job.result()  # raises what the endpoint raised
    return rows
