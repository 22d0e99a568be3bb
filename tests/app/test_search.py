"""The search for settings: in the queue of trainings, on training images alone, into the page."""

import re
import time
from collections.abc import Callable

import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from helpers.app import drop, needs_chromium, open_filled, open_page, wait_until_drawn, zip_of
from helpers.images import write_colors
from helpers.looks import low_contrasts, overflows, shift, watch_shifts

import clip_randlora as cr
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.describe import describe
from clip_randlora.app.project_archive import open_project, save_project
from clip_randlora.app.searches import Choices, SearchJob
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import Upload
from clip_randlora.app.workspace import Workspace

WRONG_NAMES = {"blue": (220, 40, 40), "green": (40, 40, 220), "red": (40, 220, 40)}
"""Each colour under the name of another: before, every answer is wrong."""

STUCK = {"strength": 1e6, "steps": 1}
"""With it, the anchored head stays at the names, and is wrong too; at its default it is right."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 8}, WRONG_NAMES)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Service:
    return Service(Settings(folder=tmp_path_factory.mktemp("all"), max_train_minutes=5))


@pytest.fixture
def workspace(service, folders, request) -> Workspace:
    workspace = service.workspaces.of(request.node.name)
    paths = sorted(folders.rglob("*.png"))
    workspace.add_tree([Upload(path, path.relative_to(folders).as_posix()) for path in paths])
    return workspace


def choices(**more) -> Choices:
    return Choices(model="lite0", method="anchored_head", preset="fast", more=more)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def has_found(job: SearchJob) -> Callable[[], bool]:
    return lambda: any(trial.accuracy == 1 for trial, _ in list(job.trials.values()))


@pytest.mark.slow
def test_a_stopped_search_keeps_what_it_found(service, workspace):
    """It leaves runs and test images alone, and its result is there after a restart."""
    job = service.start_search(workspace, choices(**STUCK), 5)
    with pytest.raises(cr.UserError, match="search for settings is under way"):
        service.start(workspace, "lite0", "fast", {"method": "anchored_head"})
    with pytest.raises(cr.UserError, match="search for settings is under way"):
        service.start_search(workspace, choices(), 5)
    under_way = "a training, search or check is under way; stop it first"
    with pytest.raises(cr.UserError, match=under_way):
        workspace.replace_project(workspace.folder)
    wait_for(has_found(job))
    shown = describe(service, workspace)["search"]
    assert shown["is_running"] and shown["state"] == "searching" and shown["found"] is None
    assert 0 < shown["seconds_left"] < 300
    assert shown["tried"][0] | {"low": 0, "high": 0} == {
        "method": "anchored_head", "details": "", "is_start": False, "accuracy": 1.0, "low": 0,
        "high": 0, "images": 6, "parts": 1, "failed": "",
    }  # fmt: skip
    unfinished = save_project(workspace)
    service.queue.stop(job)
    wait_for(lambda: workspace.search is None)
    search = describe(service, workspace)["search"]
    assert search["state"] == "done" and not search["is_running"] and not search["is_changed"]
    assert (search["outcome"], search["notes"][-1]) == (
        "better",
        "The search was stopped before its end.",
    )
    assert search["verdict"].startswith("Better than your settings: 100 % of 6 images")
    assert search["found"] == choices(steps=1).model_dump()
    assert [row["is_start"] for row in search["tried"]].count(True) == 1
    assert describe(service, workspace)["runs"] == []
    assert list((workspace.folder / "runs").iterdir()) == []
    assert not job.folder.exists(), "the copy of the images is gone"
    assert sum(picture.is_test for picture in workspace.pictures()) == 6, "set apart, not asked"
    again = Workspace(workspace.folder, workspace.settings)
    assert again.project.search == workspace.project.search
    open_project(again, unfinished, "mine.zip")
    assert again.project.search is None, "it was saved during a search"


def test_a_search_waits_its_turn(service, workspace, folders):
    """One that is stopped while it waits leaves the result of before; a restart ends one."""
    other = service.workspaces.of("other")
    other.add_images("red", [Upload(p, p.name) for p in sorted((folders / "red").iterdir())])
    other.add_images("blue", [Upload(p, p.name) for p in sorted((folders / "blue").iterdir())])
    first = service.start_search(workspace, choices(steps=1), 5)
    second = service.start_search(other, choices(steps=1), 5)
    wait_for(lambda: first.trials)
    shown = describe(service, other)["search"]
    assert (shown["state"], shown["place"], shown["tried"]) == ("waiting", 1, [])
    restarted = Workspace(other.folder, other.settings)
    assert restarted.project.search is not None
    assert restarted.project.search.state == "interrupted"
    service.queue.stop(second)
    assert other.search is None and describe(service, other)["search"] is None
    service.delete(workspace)
    wait_for(lambda: workspace.search is None)
    assert not workspace.folder.exists()


def test_mistakes_are_told_before_the_search(service, workspace):
    def refuses(match: str, minutes: float = 1, start: Choices | None = None) -> None:
        with pytest.raises(cr.UserError, match=match):
            service.start_search(workspace, start or choices(), minutes)
        assert workspace.search is None and workspace.project.search is None

    refuses("minutes: 0; give a number above 0, at most 5", minutes=0)
    refuses("minutes: 6; give a number above 0, at most 5", minutes=6)
    refuses("images of each class: a search needs two or more", start=choices(shots=1))
    refuses("strength", start=choices(strength=-1))
    refuses("method magic: choose randlora", start=Choices(model="a", method="magic", preset="b"))
    refuses("model a is not offered", start=Choices(model="a", method="lora", preset="fast"))
    assert describe(service, workspace)["why_not_search"] == ""
    red = workspace.pictures("red")
    workspace.remove_images([picture.number for picture in red[2:]])
    why = "Needs two images of each class to learn from, beside its test images; add images of red."
    assert describe(service, workspace)["why_not_search"] == why
    refuses(re.escape(why))


@pytest.mark.parametrize(
    ("method", "more", "changed", "result"),
    [
        ("randlora", {"rank": 8, "seed": 2, "learning_rate": 0.1}, {"method": "anchored_head"},
         {"seed": 2}),
        ("anchored_head", {"strength": 0.5, "shots": 4},
         {"method": {"method": "randlora", "blocks": 6}, "learning_rate": 0.02, "strength": 0.75},
         {"shots": 4, "learning_rate": 0.02, "strength": 0.75, "blocks": 6}),
        ("lora", {"rank": 8}, {"method": {"method": "lora", "rank": 8}}, {"rank": 8}),
    ],
)  # fmt: skip
def test_what_was_found_becomes_the_choices_of_the_page(service, method, more, changed, result):
    """Settings of another method go, those of the training stay; they make the same training."""
    start = Choices(model="lite0", method=method, preset="fast", more=more)
    base = service.config("lite0", "fast", start.settings())
    config = base.model_copy(update={"learning_rate": None, "strength": 1.0}).parse(
        {**base.model_dump(exclude={"method", "learning_rate", "strength"}), **changed}
    )
    found = start.changed_to(config)
    assert found.more == result
    assert service.config("lite0", "fast", found.settings()) == config


def test_by_client(app, folders, tmp_path):
    client = app.client()
    archive = zip_of(tmp_path / "two.zip", {"bird": "bird", "fruit": "fruit"}, images=2)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    start = ("lite0", "anchored_head", "fast")
    with pytest.raises(AppError, match="Needs two images of each class to learn from"):
        client.predict(1, *start, api_name="/start_search")
    offered = client.predict(api_name="/choices")
    assert offered["search_minutes"] == [2, 10, 30]
    archive = zip_of(tmp_path / "more.zip", {"bird": "bird", "fruit": "fruit"}, images=6)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    client.predict(2, *start, api_name="/start_search")
    with pytest.raises(AppError, match="Your search for settings is under way; stop it first"):
        client.predict(*start, api_name="/start_training")
    client.predict(api_name="/stop_search")
    wait_for(lambda: not (client.predict(api_name="/state")["search"] or {}).get("is_running"))
    client.predict(api_name="/stop_search")  # nothing to stop
    client.predict(*start, {"strength": 0.2}, api_name="/use_settings")
    chosen = client.predict(api_name="/state")["choices"]
    assert chosen == choices(strength=0.2).model_dump()
    with pytest.raises(AppError, match="Preset long: choose"):
        client.predict("lite0", "lora", "long", api_name="/use_settings")
    assert client.predict(api_name="/state")["choices"] == chosen


@needs_chromium
def test_too_few_images_are_told_beside_the_button(app, browser):
    page = open_filled(browser, app, {"bird": 2, "fruit": 4})
    page.get_by_role("button", name="Find the best settings").click()
    start = page.get_by_role("button", name="Start the search")
    assert start.is_disabled()
    page.locator("#search").get_by_text("add images of bird.").wait_for()
    page.get_by_role("button", name="Find the best settings").click()
    start.wait_for(state="detached")
    page.context.close()


@pytest.mark.slow
@needs_chromium
def test_from_a_click_to_used_settings(app, browser, folders):
    """By keyboard; the page is reloaded during the search, and a second tab stops it."""
    page = open_page(browser, app, width=390, color_scheme="dark")
    drop(page, sorted(folders.iterdir()))
    page.get_by_text("Added 24 images.").wait_for()
    page.get_by_text("More options").click()
    page.locator("#method").select_option("anchored_head")
    for name, value in STUCK.items():
        page.locator(f"#more-{name}").fill(f"{value:.0f}")
        page.locator(f"#more-{name}").blur()
    page.get_by_role("button", name="Find the best settings").press("Enter")
    page.get_by_role("radio", name="10 min").press("Space")
    page.get_by_role("button", name="Start the search").press("Enter")
    panel = page.locator("#search")
    panel.get_by_text("The first training is under way.").wait_for()
    assert page.evaluate("document.activeElement.id") == "stop-search"
    train = page.locator("#train").get_by_role("button", name="Train", exact=True)
    assert train.is_disabled()
    watch_shifts(page)
    best = re.compile("Best so far: 100 % of 6 images right with Anchored head$")
    panel.get_by_text(best).wait_for()
    moved, what = shift(page)
    assert moved < 0.01, what
    assert "% - searching" in page.title()
    assert not low_contrasts(page) and not overflows(page)
    page.reload()
    wait_until_drawn(page)
    panel.get_by_text("Searching").wait_for()

    tab = page.context.new_page()
    tab.goto(app.url)
    tab.get_by_role("button", name="Stop", exact=True).click()
    for each in (tab, page):
        each.locator("#search .verdict", has_text="Better than your settings: 100 %").wait_for()
    tab.close()
    page.get_by_role("button", name="Use these settings").press("Enter")
    panel.get_by_text("Train uses Anchored head.").wait_for()
    page.wait_for_function("document.activeElement.id === 'undo-settings'")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Use these settings").press("Enter")
    page.get_by_role("button", name="Undo").wait_for()
    assert not low_contrasts(page) and not overflows(page)
    page.reload()
    wait_until_drawn(page)
    panel.get_by_text("Train uses Anchored head.").wait_for()
    assert page.locator("#method").input_value() == "anchored_head"
    assert page.locator("#more-strength").input_value() == ""
    train.press("Enter")
    panel.wait_for(state="detached")
    page.get_by_text(re.compile("Run 1 · Anchored head · 100.0 %")).wait_for()
    page.context.close()
