"""The app's page in a real browser, attacked and left: HTML in names, closed tabs, the password."""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from gradio_client import handle_file
from helpers.app import (
    App,
    card,
    drawing,
    drop,
    give,
    needs_chromium,
    open_filled,
    open_page,
    train,
    upload,
    wait_until_drawn,
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
def test_names_of_dropped_files_are_text(app, browser, tmp_path):
    for name in ("a", HOSTILE):
        (tmp_path / name).mkdir()
        for number in range(2):
            shutil.copy(drawing("bird", number), tmp_path / name / f"{number}{HOSTILE}.webp")
    (tmp_path / "a" / f"{HOSTILE}.png").write_bytes(b"no image")
    page = open_page(browser, app)
    drop(page, [tmp_path / "a", tmp_path / HOSTILE])
    page.get_by_text(f"a/{HOSTILE}.png: not an image that can be read").wait_for()
    check_no_html(page)
    card(page, "a").get_by_role("button", name="Show all", exact=True).click()
    check_no_html(page)
    page.get_by_label("Name of a new class").fill(HOSTILE)
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("lass name ‹img.*leave out")).first.wait_for()
    check_no_html(page)


@pytest.mark.slow
def test_names_of_an_uploaded_run_are_text(app, browser, tmp_path):
    archive = hostile_run(tmp_path)
    page = open_page(browser, app)
    page.get_by_role("button", name="No run yet").click()
    upload(page, page.get_by_role("button", name="Load a run or an adapter"), [archive])
    page.get_by_text(f": {HOSTILE}, b. Go on at Try.").wait_for()
    check_no_html(page)
    page.keyboard.press("Escape")
    page.locator("#results .per-class").get_by_text(HOSTILE).wait_for()
    upload(page, page.get_by_role("button", name="Choose an image"), [drawing("bird", 1)])
    page.locator("#tuned .bar-name").get_by_text(HOSTILE).wait_for()
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


@pytest.mark.slow
def test_where_it_is_set_a_closed_page_stops_its_training(tmp_path, browser):
    """As on shared servers; a page that was only reloaded does not stop it."""
    app = App(tmp_path / "app", "--stop-when-closed")
    try:
        page = open_filled(browser, app, {"bird": 12, "fruit": 12})
        page.get_by_text("More options").click()
        page.locator("#more-steps").fill("400")
        page.locator("#more-steps").blur()
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_text(re.compile(r"step \d+ of 400")).wait_for()
        page.reload()
        page.wait_for_timeout(1000 * (COMES_BACK + 3))
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        other = app.client()
        archive = zip_of(tmp_path / "m.zip", {"bird": "bird", "car": "vehicle"}, images=4)
        other.predict(handle_file(str(archive)), api_name="/load_archive")
        page.close()
        closed = time.monotonic()
        rows = train(other, shots=2)
        print(f"the next training ended {time.monotonic() - closed:.0f} s after the page closed")
        assert rows[0] == {"state": "waiting", "place": 1}
        assert rows[-1]["images"]["train"] == 4
        cards = [path.read_text() for path in app.folder.glob("*/runs/*/README.md")]
        assert sum(bool(re.search(r"Stopped at step \d+ of 400", card)) for card in cards) == 1
    finally:
        app.close()


@pytest.mark.slow
def test_the_password_is_asked_for_in_the_page(locked_app, browser):
    page = browser.new_context().new_page()
    page.goto(locked_app.url)
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Login").click()
    wait_until_drawn(page)
    give(page, "bird", [drawing("bird", 1)])
    page.wait_for_function("document.querySelector('.thumb')?.naturalWidth > 0")
