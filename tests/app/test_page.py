"""The page in a real browser: the way from photos to an answer, as somebody new to it goes it."""

import re
import shutil
import time
from pathlib import Path

import pytest
from helpers.app import (
    CLIPART,
    MINUTE,
    answers,
    card,
    drawing,
    drop,
    give,
    needs_chromium,
    open_filled,
    open_page,
    start_training,
    upload,
    wait_for_new_answers,
    wait_until_drawn,
    wait_until_trained,
)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Three folders of 12 drawings each."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("bird", "dessert", "vehicle"):
        (root / name).mkdir()
        for image in sorted((CLIPART / "train" / name).iterdir())[:12]:
            shutil.copy(image, root / name)
    return root


def test_two_minutes_from_dropped_folders_to_an_answer(app, browser, folders):
    """At most 4 clicks after the drop, 2 minutes in all; then the strength, and a reload."""
    page = open_page(browser, app)
    page.evaluate("window.clicks = 0; addEventListener('click', () => window.clicks++, true)")
    started = time.monotonic()
    drop(page, sorted(folders.iterdir()))
    page.get_by_text("Added 36 images.").wait_for()
    for name in ("bird", "dessert", "vehicle"):
        card(page, name).get_by_text("12 images").wait_for()
    page.get_by_text(re.compile("Takes about")).wait_for(timeout=MINUTE)
    start_training(page)
    page.wait_for_function("document.title.includes('% - training')")
    wait_until_trained(page)
    page.get_by_role("button", name="Try it").click()
    tested = wait_for_new_answers(page)
    drop(page, [drawing("vehicle", 3)], onto=page.locator(".tried"))
    answered = wait_for_new_answers(page, tested)
    elapsed = time.monotonic() - started
    clicks = page.evaluate("window.clicks")
    print(f"from the drop to an answer: {elapsed:.0f} s, {clicks} clicks")
    assert elapsed < 120 and clicks <= 4
    assert set(answered["tuned"]) == set(answered["zero-shot"]) == {"bird", "dessert", "vehicle"}
    assert re.search(r"Fixed \d+ of \d+ test images|No difference", page.inner_text(".verdict"))

    page.get_by_role("slider", name="Strength").focus()
    page.keyboard.press("Home")  # strength 0, by keyboard
    at_zero = wait_for_new_answers(page, answered)
    assert at_zero["tuned"] == at_zero["zero-shot"] == answered["zero-shot"]

    page.reload()
    wait_until_drawn(page)
    page.locator("#progress .verdict").wait_for()
    page.get_by_text("Run 1 · RandLoRA").wait_for()
    assert page.get_by_role("radio", name=re.compile("Fast")).is_checked()


@pytest.mark.slow
@pytest.mark.alone
def test_see_it_work_is_one_click(app, browser):
    page = open_page(browser, app)
    started = time.monotonic()
    page.get_by_role("button", name="See it work").click()
    wait_for_long = 90
    while not all(answers(page).values()):
        assert time.monotonic() - started < wait_for_long
        page.wait_for_timeout(300)
    print(f"from the empty page to an answer: {time.monotonic() - started:.0f} s")


def test_classes_are_edited_on_their_cards(app, browser):
    page = open_page(browser, app)
    name = "b onmouseover=1 {{7+7}} ${7+7} &lt;"
    page.get_by_role("button", name="Use my photos").click()
    box = page.get_by_label("Name of a new class")
    box.fill("a/b")
    page.keyboard.press("Enter")
    page.get_by_text("leave out / \\").wait_for()
    assert box.input_value() == "a/b", "what was typed is kept"
    give(page, "tool", sorted((CLIPART / "test/tool").iterdir())[:3])
    give(page, "hammer", [drawing("vehicle", 1)])

    card(page, "tool").get_by_role("button", name="tool", exact=True).click()
    page.get_by_label("New name of tool").fill(name)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=name).wait_for()

    other = page.locator("li.card", has=page.get_by_role("heading", name=name))
    other.get_by_role("button", name="Show all", exact=True).click()
    other.locator(".tile").nth(1).click()
    other.get_by_text("1 marked").wait_for()
    other.get_by_label("Move the marked images to").select_option("hammer")
    card(page, "hammer").locator(".count", has_text="2 images").wait_for()
    other.locator(".count", has_text="2 images").wait_for()
    other.locator(".tile").nth(0).click()
    other.get_by_role("button", name="Enlarge").click()
    page.locator("dialog img").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")

    card(page, "hammer").get_by_role("button", name="More for hammer").click()
    card(page, "hammer").get_by_role("textbox").fill("claw hammer")
    other.locator(".tile").nth(0).click()  # the page is drawn anew
    other.get_by_text("Click images to mark them.").wait_for()
    assert card(page, "hammer").get_by_role("textbox").input_value() == "claw hammer", "kept"
    card(page, "hammer").get_by_role("button", name="Use these words").click()
    card(page, "hammer").get_by_role("textbox").wait_for(state="hidden")
    card(page, "hammer").get_by_role("button", name="More for hammer").click()
    assert card(page, "hammer").get_by_role("textbox").input_value() == "claw hammer"
    card(page, "hammer").get_by_role("button", name="Switch off").click()
    page.get_by_text("2 images, switched off").wait_for()
    page.get_by_text(f"Needs two classes with images; {name} is one.").wait_for()


def test_prompts_and_the_share_of_test_images_are_checked_where_they_are_set(app, browser):
    page = open_filled(browser, app, {"bird": 2, "fruit": 2})
    page.get_by_text("More options").click()
    page.locator("#templates").fill("no place for the name")
    page.locator("#templates").blur()
    page.get_by_text("write {} once, where the class name goes").wait_for()
    page.locator("#templates").fill("a drawing of a {}.")
    page.locator("#templates").blur()
    page.get_by_text("write {} once").wait_for(state="hidden")
    page.locator("#held-out").fill("3")
    page.locator("#held-out").blur()
    page.get_by_text("The share of test images lies between 0 and 1.").wait_for()


@pytest.mark.slow
def test_many_images_are_answered_at_once(app, browser, tmp_path):
    page = open_filled(browser, app)
    start_training(page)
    wait_until_trained(page)
    page.get_by_text("Many images at once").click()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    files = [*sorted((CLIPART / "test/bird").iterdir())[:3], drawing("fruit", 1), broken]
    upload(page, page.get_by_role("button", name="Choose images or a zip"), files)
    page.locator(".many tbody tr").nth(3).wait_for()
    assert page.locator(".many tbody tr").count() == 4
    page.get_by_text("broken.jpg: not an image").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Every probability, as CSV").click()
    assert download.value.suggested_filename == "bird-fruit-answers.csv"
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("image,zero_shot,tuned,zero_shot: bird,") and len(lines) == 5


@pytest.mark.slow
def test_results_one_can_work_with(app, browser):
    """A cell of the matrix opens its images; one is moved and one removed from there."""
    page = open_filled(browser, app, {"bird": 8, "fruit": 8, "tool": 8})
    start_training(page)
    wait_until_trained(page)
    page.get_by_role("button", name="How good is it?").click()
    figures = page.locator("#results .figure").all_inner_texts()
    assert [text.split("\n")[0] for text in figures] == ["Before", "After"]
    cells = page.locator("#results .cell")
    assert sum(int(text) for text in cells.all_inner_texts()) == 6  # 2 test images of each class
    right = page.get_by_role("button", name=re.compile("images? of bird taken for bird")).first
    right.click()
    shown = page.locator("#images .cases li")
    assert shown.count() == int(right.inner_text())
    shown.first.get_by_role("combobox").select_option("fruit")
    card(page, "fruit").locator(".count", has_text="9 images").wait_for()
    page.get_by_role("button", name=re.compile("of fruit taken for fruit")).first.click()
    shown.first.get_by_role("button", name="Remove").click()
    card(page, "fruit").locator(".count", has_text="8 images").wait_for()
    page.get_by_role("button", name="Undo").click()
    card(page, "fruit").locator(".count", has_text="9 images").wait_for()
