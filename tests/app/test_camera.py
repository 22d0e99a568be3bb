"""The camera, with Chromium's fake device: pictures by holding a button, and streamed answers."""

import re
import time

import pytest
from helpers.app import (
    card,
    drawing,
    give,
    needs_chromium,
    open_filled,
    start_training,
    wait_until_trained,
)

pytestmark = needs_chromium


@pytest.mark.alone
def test_holding_the_button_takes_five_pictures_a_second(app, browser):
    page = open_filled(browser, app, {"bird": 2})
    bird = card(page, "bird")
    bird.get_by_role("button", name="Camera").click()
    page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
    button = bird.get_by_role("button", name="Hold to take pictures")
    box = button.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.wait_for_timeout(3000)
    page.mouse.up()
    taken = int(re.search(r"\d+", bird.locator(".taken").inner_text())[0])
    print(f"{taken} pictures in 3 seconds")
    assert taken >= 15
    bird.get_by_text(re.compile(r"Added \d+ images")).wait_for()
    assert page.locator("video").is_visible(), "the camera stays open"
    bird.get_by_role("button", name="Done").click()
    page.locator("video").wait_for(state="detached")


@pytest.mark.slow
@pytest.mark.alone
def test_answers_are_streamed(app, browser):
    page = open_filled(browser, app)
    start_training(page)
    wait_until_trained(page)
    page.locator("#try").get_by_role("button", name="Camera").click()
    answers = []
    page.on("response", lambda answer: answers.append(answer.url.endswith("/answer_frame")))
    page.locator("#tuned li").first.wait_for()
    started = time.monotonic()
    answers.clear()
    page.wait_for_timeout(5000)
    rate = sum(answers) / (time.monotonic() - started)
    print(f"{rate:.1f} answers a second")
    assert rate >= 2
    page.get_by_role("button", name="Stop the camera").click()
    page.locator("video").wait_for(state="detached")
    give(page, "tool", [drawing("tool", 1)])
