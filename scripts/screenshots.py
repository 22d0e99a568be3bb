"""Screenshots of every step of the browser app, at the width of a desktop and of a phone.

    python scripts/screenshots.py --out build/screenshots

Starts the app on the bundled model and drawings, trains with the preset fast, and photographs each
tab in light and dark. Needs Chromium (Debian: ``apt install chromium``) and playwright.
"""

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.app import CHROMIUM, CHROMIUM_FLAGS, App

WIDTHS = {"desktop": 1280, "phone": 390}
TABS = {
    "gather": "1 Gather",
    "train": "2 Train",
    "try": "3 Try",
    "hood": "4 Under the hood",
    "take": "5 Take away",
}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("build/screenshots"),
    sample: Annotated[str, typer.Option(help="Bundled set to train on.")] = "clipart",
) -> None:
    """Take the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(App(Path(folder))) as app,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        storage = train_once(browser, app.url, sample, out)
        for device, width in WIDTHS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": 900},
                    color_scheme=scheme,
                    storage_state=storage,
                )
                photograph(context.new_page(), app.url, out, f"{device}-{scheme}")
                context.close()
        browser.close()


def train_once(browser: Browser, url: str, sample: str, out: Path) -> dict:
    """Go the whole way once, photograph the training; return what the browser remembers."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Bundled set").wait_for()
    page.screenshot(path=out / "empty-desktop-light.png", full_page=True)
    page.get_by_label("Bundled set").click()
    page.get_by_role("option", name=sample).click()
    page.get_by_role("button", name="Load it").click()
    page.locator(".class-card").first.wait_for(timeout=60_000)
    open_tab(page, "train")
    page.get_by_label("Fast").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_function(
        "() => +document.querySelector('#progress [role=progressbar]').ariaValueNow >= 50",
        timeout=300_000,
    )
    page.screenshot(path=out / "training-desktop-light.png", full_page=True)
    page.get_by_text("Done:").wait_for(timeout=300_000)
    storage = context.storage_state()
    context.close()
    return storage


def photograph(page: Page, url: str, out: Path, suffix: str) -> None:
    """Photograph every tab."""
    page.goto(url)
    page.locator(".class-card").first.wait_for(timeout=60_000)
    for name in TABS:
        open_tab(page, name)
        if name == "try":
            page.locator("#try-examples .thumbnail-item").nth(2).click()
            page.locator("#tuned .bar-value").first.wait_for(timeout=60_000)
        if name == "take":
            page.get_by_role("button", name="Prepare").click()
            page.locator("#download a").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=out / f"{name}-{suffix}.png", full_page=True)


def open_tab(page: Page, name: str) -> None:
    """Open a tab, which on a phone may lie in the menu of those that do not fit."""
    tab = page.get_by_role("tab", name=TABS[name])
    if not tab.first.is_visible():
        page.locator(".overflow-menu button").first.click()
        page.get_by_role("button", name=TABS[name]).click()
        return
    tab.first.click()


if __name__ == "__main__":
    typer.run(main)
