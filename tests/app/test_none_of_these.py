"""A photo of something that is of none of the classes, in Try and among those not sorted yet."""

import re

import numpy as np
import pytest
from gradio_client import handle_file
from helpers.app import (
    drawing,
    drop,
    needs_chromium,
    open_page,
    start_training,
    train,
    upload,
    wait_for_new_answers,
    wait_until_trained,
    zip_of,
)
from helpers.images import COLORS, write_colors
from helpers.looks import low_contrasts, overflows
from PIL import Image


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 16})


@pytest.mark.slow
@needs_chromium
def test_something_else_is_answered_with_none_of_these(app, browser, colors, tmp_path):
    page = open_page(browser, app)
    choose = page.get_by_role("button", name="Choose an image")
    drop(page, sorted(colors.iterdir()))
    page.get_by_text("Added 48 images.").wait_for()
    start_training(page)
    wait_until_trained(page)
    right = page.locator("#tuned")
    other = drawing("vehicle", 3)
    upload(page, choose, [other])
    answered = wait_for_new_answers(page)
    right.get_by_text("None of these").wait_for()
    assert not low_contrasts(page) and not overflows(page)
    noise = np.random.default_rng(5).normal(0, 40, (40, 48, 3))
    pixels = np.clip(np.array(COLORS["red"]) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    upload(page, choose, [tmp_path / "red.png"])
    assert next(iter(wait_for_new_answers(page, answered)["tuned"])) == "red"
    right.get_by_text("None of these").wait_for(state="detached")
    drop(page, [other, tmp_path / "red.png"])
    page.locator(".tray .guesses").get_by_text("none of these").wait_for()
    page.get_by_role("slider", name="How sure").press("Home")
    page.get_by_role("button", name="Accept 1 of 2").click()
    page.get_by_text("1 image without a class").wait_for()
    assert not low_contrasts(page) and not overflows(page)
    page.get_by_role("button", name="Accept 0 of 1").wait_for()
    page.get_by_role("checkbox", name=re.compile("the one that looks like none of these")).check()
    page.get_by_role("button", name="Accept 1 of 1").click()
    page.locator("li.tray").wait_for(state="detached")
    page.context.close()


@pytest.mark.slow
def test_many_answers_say_it_too(app, tmp_path):
    client = app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=12)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    train(client)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    files = [handle_file(str(path)) for path in (drawing("bird", 1), tmp_path / "white.png")]
    answered = client.predict(files, ["bird.webp", "white.png"], api_name="/answer_many")
    assert [type(row["unknown"]) for row in answered["rows"]] == [bool, bool]
    one = client.predict(files[0], api_name="/answer")
    assert one["unknown"] == answered["rows"][0]["unknown"]
    assert re.search("bird|car", next(iter(one["tuned"])))
