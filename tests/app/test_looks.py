"""What can be measured of the page's looks, in each of its states that matter."""

import pytest
from helpers.app import (
    card,
    needs_chromium,
    open_filled,
    open_page,
    start_training,
    wait_until_trained,
)
from helpers.cases import slow_cases
from helpers.looks import low_contrasts, overflows, shift, tab_through, watch_shifts

pytestmark = needs_chromium

LOOKS = [(1280, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
SLOW = LOOKS[1:3]
SHIFT = 0.01  # a tenth of what counts as good for a whole visit


def check(page, state: str) -> None:
    assert not overflows(page), f"{state}: the page scrolls sideways"
    assert not low_contrasts(page), f"{state}: text that is hard to read"


@pytest.mark.parametrize("look", slow_cases(LOOKS, *SLOW), ids=str)
def test_the_page_is_readable_and_fits(app, browser, look):
    """Empty; filled with names of one letter and of sixty; a menu, the runs, an error."""
    width, scheme = look
    page = open_page(browser, app, width=width, color_scheme=scheme)
    check(page, "empty")
    page.get_by_role("button", name="Use my photos").click()
    for name in ("a", "W" * 60, "🦊🐻"):
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=name, exact=True).wait_for()
    page.get_by_label("Name of a new class").fill("a")
    page.keyboard.press("Enter")
    page.get_by_text("There is a class a already.").wait_for()
    card(page, "a").get_by_role("button", name="More for a").click()
    page.get_by_text("More options").click()
    page.get_by_role("button", name="No run yet").click()
    check(page, "filled")
    page.context.close()


@pytest.mark.slow
def test_everything_is_reached_by_keyboard_and_nothing_jumps(app, browser):
    page = open_filled(browser, app, {"bird": 8, "fruit": 8})
    card(page, "bird").get_by_role("button", name="Show all", exact=True).click()
    card(page, "bird").locator(".tile").first.wait_for()
    check_keyboard(page, "gathered")
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator("#progress").wait_for()
    page.wait_for_timeout(1000)
    watch_shifts(page)
    page.wait_for_function("document.title.startsWith('9') || !document.title.includes('%')")
    moved, what = shift(page)
    print(f"layout shift during the training: {moved:.4f} {what}")
    assert moved <= SHIFT
    wait_until_trained(page)
    page.get_by_role("button", name="Try it").click()
    page.locator("#tuned li").first.wait_for()
    page.locator("#take").scroll_into_view_if_needed()
    page.locator(".format").first.wait_for()
    page.get_by_role("button", name="Run 1").click()
    check_keyboard(page, "trained")
    check(page, "trained")


def check_keyboard(page, state: str) -> None:
    controls, reached, without_outline = tab_through(page)
    print(f"{state}: {reached} of {controls} controls by keyboard")
    assert reached >= controls
    assert not without_outline


@pytest.mark.slow
def test_results_fit_on_a_phone(app, browser):
    page = open_filled(browser, app, {"bird": 6, "fruit": 6}, width=390, color_scheme="dark")
    start_training(page)
    wait_until_trained(page)
    page.locator("#results .cell").first.click()
    check(page, "results")
