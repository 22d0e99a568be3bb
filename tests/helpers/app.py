"""The real app, started as a user starts it, and the browser that opens its page."""

import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
from gradio_client import Client

from helpers.chromium import CHROMIUM, CHROMIUM_FLAGS, drop, needs_chromium

__all__ = ["CHROMIUM", "CHROMIUM_FLAGS", "drop", "needs_chromium"]  # of helpers.chromium
CLIPART = Path(__file__).parents[2] / "clip_randlora" / "bundled" / "clipart"
UPLOAD_LIMIT_MB = 20
MINUTE = 60_000


class App:
    """A running app: its address, its process, its folder."""

    def __init__(
        self, folder: Path, *more: str, errors: Path | None = None, port: int | None = None
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = port or free.getsockname()[1]
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


def open_page(browser, app: App, width: int = 1280, height: int = 900, **options):
    """Open the app in a browser of its own, with the empty page."""
    context = browser.new_context(
        accept_downloads=True, viewport={"width": width, "height": height}, **options
    )
    page = context.new_page()
    page.set_default_timeout(MINUTE)
    page.goto(app.url)
    wait_until_drawn(page)
    return page


def wait_until_drawn(page) -> None:
    page.locator(".clip[data-state]").wait_for()


def open_filled(browser, app: App, classes: dict[str, int] | None = None, **options):
    """Open the app with drawings of some classes: ``{class: number of images}``."""
    page = open_page(browser, app, **options)
    for name, images in (classes or {"bird": 6, "fruit": 6}).items():
        give(page, name, sorted((CLIPART / "train" / name).iterdir())[:images])
    return page


def give(page, class_name: str, files) -> None:
    """Add a class, and upload images to it."""
    own_photos = page.get_by_role("button", name="Use my photos")
    if own_photos.is_visible():
        own_photos.click()
    page.get_by_label("Name of a new class").fill(class_name)
    page.keyboard.press("Enter")
    upload(page, card(page, class_name).get_by_role("button", name="Upload"), files)
    card(page, class_name).get_by_text(re.compile(r"Added \d+ image")).wait_for()


def card(page, class_name: str):
    return page.locator(f'li.card[data-class="{class_name}"]')


def upload(page, button, files) -> None:
    """Press a button that opens a file chooser, and choose files."""
    with page.expect_file_chooser() as chooser:
        button.click()
    chooser.value.set_files(files)


def start_training(page, preset: str = "Fast") -> None:
    page.get_by_role("radio", name=re.compile(preset)).check()
    page.locator("#train").get_by_role("button", name="Train", exact=True).click()


def wait_until_trained(page) -> None:
    page.locator("#progress .verdict").wait_for(timeout=2 * MINUTE)


def answers(page) -> dict[str, dict[str, str]]:
    """Read both bar lists as ``{"zero-shot": {class: percent}, "tuned": {...}}``."""
    read = """() => Object.fromEntries(["zero-shot", "tuned"].map((which) => [which,
        Object.fromEntries([...document.querySelectorAll(`#${which} li`)].map((row) => [
            row.querySelector(".bar-name").firstChild.textContent.trim(),
            row.querySelector(".bar-value").textContent]))]))"""
    return page.evaluate(read)


def wait_for_new_answers(page, before: dict | None = None) -> dict:
    """Wait until both lists are there, differ from before, and have come to rest."""
    deadline, last = time.monotonic() + 60, None
    while time.monotonic() < deadline:
        now = answers(page)
        if now == last and now != before and all(now.values()):
            return now
        last = now
        page.wait_for_timeout(150)
    raise AssertionError("the answers did not change")


def train(client: Client, **settings) -> list[dict]:
    chosen = {"model": "lite0", "method": "randlora", "shots": 8, "seed": 1, "preset": "fast"}
    job = client.submit(**{**chosen, **settings}, api_name="/train")
    rows = list(job)
    job.result()  # raises what the endpoint raised
    return rows
