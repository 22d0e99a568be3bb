"""Screenshots of every state of the browser app, wide and narrow, light and dark.

    python scripts/screenshots.py --out build/screenshots [--docs]

Starts the app on the bundled model and drawings, and trains twice. For every picture it prints what
can be measured: text with too little contrast, and a page that scrolls sideways. ``--docs`` also
renews the README's pictures. Needs Chromium (Debian: ``apt install chromium``) and playwright.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.app import (
    CHROMIUM,
    CHROMIUM_FLAGS,
    CLIPART,
    App,
    card,
    drawing,
    drop,
    give,
    start_training,
    upload,
    wait_for_new_answers,
    wait_until_drawn,
    wait_until_trained,
)
from helpers.looks import low_contrasts, overflows

LOOKS = [(width, scheme) for width in (1280, 1440, 390) for scheme in ("light", "dark")]
DOCS = Path(__file__).parents[1] / "docs"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("build/screenshots"),
    docs: Annotated[bool, typer.Option("--docs", help="Renew the README's pictures.")] = False,
) -> None:
    """Take the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(App(Path(folder))) as app,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for width, scheme in LOOKS:
            with opened(browser, app, width, scheme) as page:
                photograph(page, out, "empty")
        storage = gather_and_train(browser, app, out)
        for width, scheme in LOOKS:
            with opened(browser, app, width, scheme, storage) as page:
                photograph_trained(page, out)
            with opened(browser, app, width, scheme) as page:
                photograph_names(page, out)
        if docs:
            with opened(browser, app, 1280, "light", storage) as page:
                photograph_docs(page)
        browser.close()


@contextmanager
def opened(
    browser: Browser, app: App, width: int, scheme: str, storage: dict | None = None
) -> Iterator[Page]:
    """Open the app in a browser of its own, or in one with somebody's cookie."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        storage_state=storage,
    )
    page = context.new_page()
    page.goto(app.url)
    wait_until_drawn(page)
    page.look = f"{width}-{scheme}"
    yield page
    context.close()


def photograph(page: Page, out: Path, state: str) -> None:
    """Take a picture of the whole page, and print what is wrong with it."""
    page.wait_for_timeout(400)
    for image in page.locator(".thumb").all()[:400]:
        if image.is_visible():
            image.evaluate("image => image.loading = 'eager'")
    page.wait_for_timeout(300)
    page.screenshot(path=out / f"{state}-{page.look}.png", full_page=True)
    faults = low_contrasts(page) + (["scrolls sideways"] if overflows(page) else [])
    print(f"{state}-{page.look}:", "; ".join(faults) or "fine")


def gather_and_train(browser: Browser, app: App, out: Path) -> dict:
    """Gather three classes, train twice with pictures in between; return the browser's cookie."""
    with opened(browser, app, 1280, "light") as page:
        for name in ("bird", "fruit", "mammal", "vehicle"):
            give(page, name, sorted((CLIPART / "train" / name).iterdir())[:12])
        page.get_by_text("Takes about").wait_for(timeout=60_000)
        photograph(page, out, "gathered")
        photograph_search(page, out)
        photograph_sorting(page, out)
        start_training(page)
        page.wait_for_function(
            "() => +document.querySelector('#progress [role=progressbar]')?.ariaValueNow >= 50"
        )
        photograph(page, out, "training")
        wait_until_trained(page)
        page.get_by_text("More options").click()
        page.locator("#method").select_option("lora")
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_text(re.compile("Run 2 · LoRA")).wait_for(timeout=180_000)
        wait_until_trained(page)
        photograph_check(page, out)
        return page.context.storage_state()


def photograph_sorting(page: Page, out: Path) -> None:
    """Photograph loose images before any training; they stay for the pictures after it."""
    names = ("bird", "fruit", "mammal", "vehicle", "tool")
    drop(page, [drawing(name, number) for name in names for number in range(4)])
    page.get_by_text("20 images without a class").wait_for()
    page.locator(".guesses button.taken").nth(19).wait_for(timeout=60_000)
    page.locator(".tray .next").wait_for(timeout=60_000)
    page.locator(".guesses .tile").first.click()
    photograph(page, out, "sorting")
    page.get_by_role("button", name="Accept", exact=False).first.click()
    page.locator(".undo button").wait_for()
    photograph(page, out, "accepted")
    page.locator(".undo button").click()
    page.get_by_text("20 images without a class").wait_for()


def photograph_check(page: Page, out: Path) -> None:
    """Photograph a check of images of which two are in a wrong class."""
    for name, other in (("bird", "vehicle"), ("fruit", "mammal")):
        files = [drawing(other, 5), drawing(other, 6)]
        upload(page, card(page, name).get_by_role("button", name="Upload"), files)
        card(page, name).get_by_text("Added 2 images.").wait_for()
    page.locator("#start-check").click()
    page.locator("#check .track").wait_for()
    photograph(page, out, "checking")
    page.locator("#check .cases li").first.wait_for(timeout=180_000)
    photograph(page, out, "checked")


def photograph_search(page: Page, out: Path) -> None:
    """Photograph a search for settings, which is stopped early."""
    page.get_by_role("button", name="Find the best settings").click()
    photograph(page, out, "search")
    page.get_by_role("button", name="Start the search").click()
    page.locator("#search tbody tr", has_text=" of ").nth(3).wait_for(timeout=120_000)
    photograph(page, out, "searching")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#search .verdict").wait_for(timeout=60_000)
    photograph(page, out, "searched")


def photograph_trained(page: Page, out: Path) -> None:
    """Photograph what there is after two trainings."""
    page.locator("#results .figure").first.wait_for()
    page.locator("#check .cases li").first.wait_for()
    page.wait_for_timeout(500)  # what comes later moves what is below
    page.locator("#take").scroll_into_view_if_needed()
    page.locator(".format").first.wait_for(timeout=60_000)
    page.locator(".examples .tile").first.click()
    wait_for_new_answers(page)
    photograph(page, out, "trained")
    page.get_by_role("button", name=re.compile("^Run 2")).click()
    photograph(page, out, "runs")
    page.get_by_role("button", name="Compare").last.click()
    page.locator("#results .cell").first.click()
    photograph(page, out, "compared")
    bird = card(page, "bird")
    bird.get_by_role("button", name="Show all", exact=True).click()
    bird.locator(".tile").first.click()
    bird.get_by_role("button", name="More for bird").click()
    page.get_by_text("More options").click()
    page.get_by_role("button", name="Find the best settings").click()
    page.get_by_text("Many images at once").click()
    page.get_by_text("Training curves").click()
    page.get_by_label("Name of a new class").fill("bird")
    page.keyboard.press("Enter")
    page.locator(".message.error").wait_for()
    photograph(page, out, "opened")
    bird.locator(".tile").first.wait_for()
    page.get_by_role("button", name=re.compile("^Run ")).first.click()
    page.get_by_role("button", name="Delete everything").click()
    page.locator("dialog[open]").wait_for()
    photograph(page, out, "dialog")
    page.get_by_role("button", name="Cancel").click()


def photograph_names(page: Page, out: Path) -> None:
    """Photograph 30 classes, with names of one letter and of sixty."""
    page.get_by_role("button", name="Use my photos").click()
    names = ["a", "Donaudampfschifffahrtsgesellschaftskapitaenswitwenrentenantrag"[:60], "🦊🐻"]
    names += [f"class number {number}" for number in range(27)]
    for name in names:
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=name, exact=True).wait_for()
    upload(page, card(page, "a").get_by_role("button", name="Upload"), [drawing("tool", 1)])
    card(page, "a").get_by_text("Added 1 image.").wait_for()
    photograph(page, out, "names")


def photograph_docs(page: Page) -> None:
    """Renew the README's pictures."""
    page.set_viewport_size({"width": 1280, "height": 820})
    page.get_by_role("button", name=re.compile("^Run 2")).click()
    page.get_by_role("button", name="Use", exact=True).click()
    page.get_by_role("button", name="Close the runs").click()
    page.get_by_text(re.compile("Run 1 · RandLoRA")).wait_for()
    page.locator(".examples .tile").first.click()
    wait_for_new_answers(page)
    page.wait_for_timeout(800)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=DOCS / "app.png")


if __name__ == "__main__":
    typer.run(main)
