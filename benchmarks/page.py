"""``page``: how fast the app's page answers in a browser, as somebody at it feels it."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark, messages
from benchmarks.common.options import OutOption
from benchmarks.common.processes import Row
from clip_randlora.errors import UserError

_TESTS = Path(__file__).parents[1] / "tests"
_CLASS = "photos"
_ROWS = {
    "first": "a new browser's first page",
    "upload": "photos uploaded",
    "open": "their class opened",
    "strength": "a strength changed, and answered",
}


def page(
    tries: Annotated[int, typer.Option(min=1, help="Of each.")] = 20,
    photos: Annotated[int, typer.Option(min=1, help="Uploaded at once.")] = 100,
    megabytes: Annotated[float, typer.Option(help="Of each photo, about.")] = 3,
    out: OutOption = None,
) -> None:
    """Seconds until the page shows it: first page, upload, an opened class, another strength."""
    if not _TESTS.is_dir():
        raise UserError(f"{_TESTS}: not there; run this in a checkout")
    sys.path.insert(0, str(_TESTS))
    benchmark = Benchmark("page", {"photos": photos, "megabytes": megabytes}, out)
    with tempfile.TemporaryDirectory() as folder:
        with messages.status("making photos"):
            files = _photos(Path(folder), photos, megabytes)
        size = sum(file.stat().st_size for file in files) / len(files) / 1e6
        with _measuring(Path(folder) / "app", files, tries) as measure:
            rows = [Row(key, {"what": words}) for key, words in _ROWS.items()]
            found = benchmark.measure(rows, run=lambda row, _: {"result": measure(row.key)})
    columns = {
        "seconds: median (min - max)": lambda row: report.seconds(row.values["seconds"]),
        "95 of 100 within, s": lambda row: f"{row.values['slow']['median']:.2f}",
    }
    notes = [
        f"{tries} tries of each in Chromium on the same machine, with {photos} photos of "
        f"{size:.1f} MB and a run on lite0 with two classes."
    ]
    benchmark.publish(report.table(found, columns), notes, report.figure(found, {"seconds": "s"}))


def _photos(folder: Path, count: int, megabytes: float) -> list[Path]:
    """Write JPEGs of 12 megapixels, each another."""
    noise = np.random.default_rng(1).integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    for quality in (95, 90, 85, 75, 60, 40, 20):
        buffer = io.BytesIO()
        smooth.save(buffer, "JPEG", quality=quality)
        if buffer.tell() < 1.15e6 * megabytes:
            break
    content = buffer.getvalue()
    files = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        path.write_bytes(content + number.to_bytes(4, "big"))  # what follows a JPEG is not read
        files.append(path)
    return files


@contextmanager
def _measuring(
    folder: Path, files: list[Path], tries: int
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Yield a function that takes a row's times; the app and a trained page are open meanwhile."""
    from helpers.app import (
        CHROMIUM,
        CHROMIUM_FLAGS,
        App,
        answers,
        card,
        open_filled,
        start_training,
        upload,
        wait_for_new_answers,
        wait_until_trained,
    )
    from playwright.sync_api import sync_playwright

    with closing(App(folder)) as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        shown = open_filled(browser, app, {"bird": 8, "fruit": 8})
        start_training(shown)
        wait_until_trained(shown)
        shown.get_by_role("button", name="Try it").click()
        before = wait_for_new_answers(shown)
        shown.get_by_label("Name of a new class").fill(_CLASS)
        shown.keyboard.press("Enter")
        own = card(shown, _CLASS)

        def first() -> float:
            started = time.perf_counter()
            context = browser.new_context()
            new = context.new_page()
            new.goto(app.url)
            new.get_by_role("button", name="See it work").wait_for()
            seconds = time.perf_counter() - started
            context.close()
            return seconds

        def upload_all() -> float:
            started = time.perf_counter()
            upload(shown, own.get_by_role("button", name="Upload"), files)
            own.get_by_text(f"Added {len(files)} images.").wait_for()
            seconds = time.perf_counter() - started
            shown.wait_for_timeout(3000)  # the thumbnails are made in the background
            own.get_by_role("button", name=f"More for {_CLASS}").click()
            own.get_by_role("button", name="Remove the class").click()
            own.wait_for(state="detached")
            shown.get_by_label("Name of a new class").fill(_CLASS)
            shown.keyboard.press("Enter")
            own.wait_for()
            return seconds

        def open_class() -> float:
            if own.locator(".thumb").count() == 0:
                upload(shown, own.get_by_role("button", name="Upload"), files)
                own.get_by_text(f"Added {len(files)} images.").wait_for()
                shown.wait_for_timeout(15_000)
            started = time.perf_counter()
            own.get_by_role("button", name="Show all", exact=True).click()
            shown.wait_for_function(
                "() => document.querySelectorAll('.opened .thumb').length > 0 && "
                "[...document.querySelectorAll('.opened .thumb')].slice(0, 12)"
                ".every((image) => image.complete && image.naturalWidth)"
            )
            seconds = time.perf_counter() - started
            own.get_by_role("button", name="Close", exact=True).click()
            return seconds

        def change_strength() -> float:
            nonlocal before, strength
            strength = 0.05 + (strength + 0.35) % 0.9  # always another one
            started = time.perf_counter()
            shown.get_by_role("slider", name="Strength").first.fill(f"{strength:.2f}")
            while (now := answers(shown)) == before or not all(now.values()):
                shown.wait_for_timeout(10)  # the page needs the processor too
            before = now
            return time.perf_counter() - started

        strength = 1.0
        functions = {
            "first": first,
            "upload": upload_all,
            "open": open_class,
            "strength": change_strength,
        }

        def measure(key: str) -> dict[str, Any]:
            seconds = [functions[key]() for _ in range(tries)]
            return {"seconds": seconds, "slow": float(np.quantile(seconds, 0.95))}

        yield measure
        browser.close()
