"""Nothing is lost: removals are undone, runs are kept and compared, projects move elsewhere."""

import json
import re
import zipfile
from pathlib import Path

import pytest
from gradio_client import handle_file
from helpers.app import (
    MINUTE,
    App,
    card,
    drawing,
    drop,
    needs_chromium,
    open_filled,
    open_page,
    start_training,
    train,
    upload,
    wait_for_new_answers,
    wait_until_drawn,
    wait_until_trained,
    zip_of,
)

import clip_randlora as cr

pytestmark = needs_chromium


def test_every_removal_is_undone(app, browser):
    """Images, a class, and images not sorted yet; each comes back with one click."""
    page = open_filled(browser, app, {"bird": 4, "fruit": 3})
    drop(page, [drawing("tool", 1)])
    page.get_by_text("1 image without a class").wait_for()
    before = page.locator(".cards .count").all_inner_texts()

    bird = card(page, "bird")
    bird.get_by_role("button", name="Show all", exact=True).click()
    bird.get_by_role("button", name="Mark all").click()
    bird.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_text("Removed 4 images of bird.").wait_for()
    bird.locator(".count", has_text="0 images").wait_for()
    page.get_by_role("button", name="Undo").click()
    bird.locator(".count", has_text="4 images").wait_for()

    bird.get_by_role("button", name="More for bird").click()
    bird.get_by_role("button", name="Remove the class").click()
    page.get_by_text("Removed bird with 4 images.").wait_for()
    bird.wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    bird.wait_for()
    assert page.locator("li.card[data-class] h3").first.inner_text() == "bird", (
        "it is back in its place"
    )

    tray = page.locator("li.tray")
    tray.locator(".tile").click()
    tray.get_by_role("button", name="Remove", exact=True).click()
    tray.wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    tray.wait_for()
    assert page.locator(".cards .count").all_inner_texts() == before
    page.get_by_role("button", name="Undo").wait_for(state="detached")


def test_deleting_everything_asks_and_says_what(app, browser):
    page = open_filled(browser, app, {"bird": 4, "fruit": 3})
    page.get_by_role("button", name="No run yet").click()
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_text("Delete 7 images for good?").wait_for()
    page.get_by_role("button", name="Cancel").click()
    card(page, "bird").locator(".count", has_text="4 images").wait_for()
    page.get_by_role("button", name="Delete everything").click()
    page.locator("dialog").get_by_role("button", name="Delete everything").click()
    page.get_by_text("Everything is deleted.").wait_for()
    page.get_by_role("button", name="See it work").wait_for()


@pytest.mark.slow
def test_three_runs_are_kept_compared_exported_and_moved(app, browser, tmp_path):
    """Three methods; the page is reloaded and closed during the third; then the project moves."""
    page = open_filled(browser, app, {"bird": 8, "fruit": 8, "tool": 8})
    for number, method in enumerate(("randlora", "lora"), 1):
        choose_method(page, method)
        start_training(page)
        page.get_by_text(re.compile(f"Run {number} · ")).wait_for(timeout=3 * MINUTE)
        wait_until_trained(page)
    choose_method(page, "vera")
    start_training(page)
    page.get_by_text(re.compile(r"step \d+ of \d+")).wait_for()
    page.reload()
    wait_until_drawn(page)
    page.get_by_text(re.compile(r"step \d+ of \d+ .*VeRA, fast, lite0")).wait_for()
    assert page.locator("#method").input_value() == "vera"
    page.goto("about:blank")  # the page is closed, and the training goes on
    page.wait_for_timeout(12_000)
    page.goto(app.url)
    wait_until_drawn(page)
    page.get_by_text(re.compile("Run 3 · VeRA")).wait_for(timeout=3 * MINUTE)

    page.get_by_role("button", name=re.compile("^Run 3")).click()
    rows = page.locator(".runs li.run")
    rows.nth(2).wait_for()
    assert rows.count() == 3
    for row in rows.all():
        assert re.search(r"% before, .* % after, on 6 test images", row.inner_text())
    rows.nth(2).get_by_role("button", name="Rename").click()
    page.get_by_label("New name of Run 1").fill("the first")
    page.keyboard.press("Enter")
    rows.nth(2).get_by_text("the first").wait_for()
    rows.nth(1).get_by_role("button", name="Use").click()
    page.get_by_role("button", name=re.compile("^Run 2 · LoRA")).wait_for()
    rows.nth(2).get_by_role("button", name="Compare").click()
    page.locator("#results .figure", has_text="the first").wait_for()
    shown = [text.split("\n")[0] for text in page.locator("#results .figure").all_inner_texts()]
    assert shown == ["the first", "Run 2"]
    upload(page, page.get_by_role("button", name="Choose an image"), [drawing("tool", 2)])
    answered = wait_for_new_answers(page)
    titles = page.locator(".answer h3").all_inner_texts()
    assert [re.sub(" tuned.*", "", title) for title in titles] == ["the first", "Run 2"]

    page.locator("#take").scroll_into_view_if_needed()  # which asks for the formats
    page.locator("#take input[value=head]").check()
    page.get_by_role("button", name="Export head").click()
    with page.expect_download() as download:
        page.locator("#exported a").click()
    assert download.value.suggested_filename == "bird-fruit-tool-head.zip"
    transformers = page.locator("input[value=transformers]")
    obstacle = page.locator(".format.off", has=transformers).inner_text()
    assert "Not for this run: it takes OpenAI's and LAION's ViT models" in obstacle
    assert page.get_by_role("button", name="Get the web page").is_enabled()

    page.get_by_role("button", name="Save the project").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="bird-fruit-tool.zip").click()
    archive = tmp_path / download.value.suggested_filename
    download.value.save_as(archive)
    saved_state = counts(page)
    page.context.close()
    opened_elsewhere(archive, browser, tmp_path, saved_state, answered)


def choose_method(page, method: str) -> None:
    if not page.locator("#method").is_visible():
        page.get_by_text("More options").click()
    page.locator("#method").select_option(method)


def counts(page) -> list[str]:
    return page.locator(".cards .count").all_inner_texts()


def opened_elsewhere(archive: Path, browser, tmp_path, saved_state, answered) -> None:
    """The same in a new app: images, split, runs, the run in use, and its answers."""
    app = App(tmp_path / "elsewhere")
    try:
        page = open_page(browser, app)
        drop(page, [archive])
        page.get_by_text("Opened the project.").wait_for()
        assert counts(page) == saved_state
        page.get_by_role("button", name=re.compile("^Run 2 · LoRA")).click()
        page.locator(".runs li.run").nth(2).wait_for()
        assert page.locator(".runs li.run").count() == 3
        page.get_by_text("the first").first.wait_for()
        page.keyboard.press("Escape")
        upload(page, page.get_by_role("button", name="Choose an image"), [drawing("tool", 2)])
        assert wait_for_new_answers(page)["tuned"] == answered["tuned"]
        page.context.close()
    finally:
        app.close()


@pytest.mark.slow
def test_a_saved_project_is_data_for_the_library(app, tmp_path):
    """`load_data` reads the same split that the app measured on; runs are left alone."""
    client = app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=10)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    client.predict("car", ["motor car"], True, api_name="/set_class")
    metrics = train(client)[-1]
    saved = client.predict(api_name="/save_project")
    assert saved["name"] == "bird-car.zip"
    answer = client_get(app, client, saved["address"])
    (tmp_path / "bird-car.zip").write_bytes(answer)
    data = cr.load_data(tmp_path / "bird-car.zip")
    assert data.classes == ("bird", "car") and data.prompts == {"car": ("motor car",)}
    assert {"train": len(data.train), "test": len(data.test)} == metrics["images"]
    with zipfile.ZipFile(tmp_path / "bird-car.zip") as zipped:
        names = zipped.namelist()
        assert json.loads(zipped.read("project.json"))["runs"][0]["number"] == 1
    assert sum(name.startswith("images/test/") for name in names) == 6
    assert sum(name.endswith("adapter.safetensors") for name in names) == 1

    other = app.client()
    other.predict("digits", api_name="/load_sample")
    opened = other.predict(
        handle_file(str(tmp_path / "bird-car.zip")), "bird-car.zip", api_name="/open_project"
    )
    image = handle_file(str(drawing("vehicle", 2)))
    first, second = (c.predict(image, 1.0, api_name="/predict") for c in (client, other))
    assert second["tuned"] == pytest.approx(first["tuned"], abs=1e-6)
    what = other.predict(opened["undo"], api_name="/undo")
    assert what.startswith("the project of before")
    assert len(other.predict(api_name="/state")["classes"]) == 10


def client_get(app: App, client, address: str) -> bytes:
    import httpx

    return httpx.get(f"{app.url}/{address}", cookies=client.cookies, timeout=60).content
