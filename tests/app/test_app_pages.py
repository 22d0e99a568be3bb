"""The app's page in a real browser, attacked and left: HTML in names, closed tabs, the password."""

from __future__ import annotations

import re
import time
import zipfile
from pathlib import Path

import pytest
from gradio_client import handle_file
from helpers.app import (
    drawing,
    fill_opened,
    needs_chromium,
    open_page,
    open_tab,
    train,
    upload_archive,
    zip_of,
)
from PIL import Image

import clip_randlora as cr

pytestmark = needs_chromium

HOSTILE = "<img src=x onerror=window.hacked=1>"
COMES_BACK = 10  # seconds that a closed page's training goes on for


def check_no_html(page) -> None:
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x'], [onerror]").count() == 0
    assert page.locator("body").inner_html().count("<img src=x") == 0


@pytest.mark.slow
def test_names_of_an_uploaded_archive_are_text(app, browser, tmp_path):
    archive = tmp_path / f"{HOSTILE}.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for number, image in enumerate(map(drawing, ["bird"] * 4, range(4))):
            zipped.write(image, f"a/{number}{HOSTILE}.webp")
            zipped.write(image, f"b/{number}{HOSTILE}.webp")
        zipped.writestr(f"b/{HOSTILE}.png", b"no image")
    page = open_page(browser, app)
    upload_archive(page, archive)
    page.get_by_text(f"b/{HOSTILE}.png (not an image that can be read").wait_for()
    check_no_html(page)
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in ("a", HOSTILE):
            for number in range(2):
                zipped.write(drawing("bird", number), f"{name}/{number}.webp")
    upload_archive(page, archive)
    page.get_by_text(f"lass name {HOSTILE}: leave out").first.wait_for()
    page.get_by_label("Class name").fill(HOSTILE)
    page.get_by_role("button", name="Add class").click()
    page.get_by_text(re.compile("lass name ‹img.*leave out")).first.wait_for()
    check_no_html(page)


@pytest.mark.slow
def test_names_of_an_uploaded_run_are_text(app, browser, tmp_path):
    archive = hostile_run(tmp_path)
    page = open_page(browser, app)
    open_tab(page, "5 Take away")
    page.locator("#load-run input[type=file]").set_input_files(archive)
    page.get_by_text(f": {HOSTILE}, b. Go on at Try.").wait_for()
    check_no_html(page)
    open_tab(page, "3 Try")
    page.locator("#try-image input[type=file]").set_input_files(drawing("bird", 1))
    page.locator("#tuned .bar-name").get_by_text(HOSTILE).wait_for()
    check_no_html(page)
    open_tab(page, "4 Under the hood")
    page.locator("#per-class").get_by_text(HOSTILE).locator("visible=true").first.wait_for()
    check_no_html(page)


def hostile_run(folder: Path) -> Path:
    """Train on classes and files with such names; return the zip of the run."""
    for name, color in ((HOSTILE, "red"), ("b", "blue")):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(4):
            path = folder / "data" / name / f"{number}{HOSTILE}.png"
            Image.new("RGB", (32, 32 + number), color).save(path)
    config = cr.TrainConfig(steps=1, method={"method": "lora", "rank": 1, "blocks": 1})
    run = folder / "run"
    cr.fit(cr.load_model("lite0"), cr.load_data(folder / "data"), config, run)
    with zipfile.ZipFile(folder / "run.zip", "w") as zipped:
        for file in run.iterdir():
            zipped.write(file, f"run/{file.name}")
    return folder / "run.zip"


def start_long_training(browser, app):
    page = open_page(browser, app)
    page.get_by_role("button", name="Load it").click()
    page.get_by_text("Added 452 images.").wait_for()
    open_tab(page, "2 Train")
    page.get_by_label("Thorough").check()
    page.get_by_text("Advanced").click()
    fill_opened(page, "Steps", "400")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(re.compile(r"step \d+ of 400")).wait_for()
    return page


@pytest.mark.slow
def test_a_closed_page_stops_its_training_and_a_reloaded_one_does_not(app, browser, tmp_path):
    page = start_long_training(browser, app)
    page.reload()
    page.wait_for_timeout(1000 * (COMES_BACK + 3))
    open_tab(page, "2 Train")
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    other = app.client()
    archive = zip_of(tmp_path / "m.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    other.predict(handle_file(str(archive)), api_name="/load_archive")
    page.close()
    closed = time.monotonic()
    rows = train(other, shots=2)
    print(f"the next training ended {time.monotonic() - closed:.0f} s after the page was closed")
    assert rows[0] == {"state": "waiting", "place": 1}
    assert rows[-1]["images"]["train"] == 4
    cards = [path.read_text() for path in app.folder.glob("*/runs/*/README.md")]
    assert sum(bool(re.search(r"Stopped at step \d+ of 400", card)) for card in cards) == 1


@pytest.mark.slow
def test_the_password_is_asked_for_in_the_page(locked_app, browser):
    page = browser.new_context().new_page()
    page.goto(locked_app.url)
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Login").click()
    page.get_by_text("Nothing here yet").wait_for()
    page.get_by_role("button", name="Load it").click()
    page.get_by_text("Added 452 images.").wait_for()
    page.wait_for_function("document.querySelector('#class-gallery img')?.naturalWidth > 0")
