"""Images that are not sorted yet: what they are taken for, accepting, moving, and undoing that."""

import re
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from helpers.app import (
    CLIPART,
    MINUTE,
    card,
    drop,
    needs_chromium,
    open_filled,
    open_page,
    start_training,
    wait_until_trained,
)
from helpers.images import write_colors
from helpers.looks import low_contrasts, overflows

import clip_randlora as cr
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.describe import describe, suggestions
from clip_randlora.app.project_archive import open_project, save_project
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import Upload
from clip_randlora.app.workspace import Workspace

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
DRAWN = ("bird", "fruit", "mammal", "tool", "vehicle")


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 8}, COLORS)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Service:
    return Service(Settings(folder=tmp_path_factory.mktemp("all")))


@pytest.fixture
def workspace(service, request) -> Workspace:
    return service.workspaces.of(request.node.name)


def files(folder: Path, *names: str, images: slice = slice(None)) -> list[Upload]:
    """Images of some classes, with the class in the name of the file."""
    return [
        Upload(path, f"{name}-{path.name}")
        for name in names
        for path in sorted((folder / name).iterdir())[images]
    ]


def looked_at(service: Service, workspace: Workspace) -> dict:
    """Wait until the model has looked at all, and return what the page shows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        shown = describe(service, workspace)["unsorted"]
        if not shown["is_busy"]:
            return shown
        time.sleep(0.02)
    raise AssertionError("the model still looks at them")


def taken_for(service: Service, workspace: Workspace) -> list[str | None]:
    return [row["class_name"] for row in suggestions(service, workspace)]


def test_guesses_follow_the_classes_and_the_run_in_use(service, workspace, colors):
    """Nothing with one class, names alone with two, then the run; names again with a new class."""
    workspace.add_images(None, files(colors, "blue", "red"))
    workspace.add_class("blue")
    shown = looked_at(service, workspace)
    assert taken_for(service, workspace) == [None] * 16
    assert shown["words"].startswith("Add two classes")
    workspace.add_class("red")
    assert looked_at(service, workspace)["guessed"] == 16
    rows = suggestions(service, workspace)
    assert [row["class_name"] for row in rows] == [row["name"].split("-")[0] for row in rows]
    sure = [row["confidence"] for row in rows]
    assert sure == sorted(sure, reverse=True) and 0.5 <= sure[-1] <= sure[0] <= 1

    workspace.sort_images({row["class_name"]: [row["number"]] for row in (rows[0], rows[-1])})
    numbers = {name: [r["number"] for r in rows if r["class_name"] == name] for name in COLORS}
    workspace.sort_images({name: numbers[name][:6] for name in ("blue", "red")})
    workspace.rename_class("blue", "colour of the sky")
    job = service.start(workspace, "lite0", "fast", {"method": "anchored_head", "steps": 1})
    while job.is_running:
        time.sleep(0.02)
    assert job.state == "done", job.error
    assert looked_at(service, workspace)["words"] == "Run 1 takes them for:"
    assert set(taken_for(service, workspace)) == {"colour of the sky", "red"}
    workspace.add_class("green")
    words = looked_at(service, workspace)["words"]
    assert words == "By the names of the classes alone, as Run 1 does not know green:"


def test_a_broken_image_says_so_in_its_place(service, workspace, colors, tmp_path):
    whole = (colors / "red" / sorted((colors / "red").iterdir())[0].name).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    workspace.add_images(None, [*files(colors, "red")[:1], Upload(tmp_path / "cut.png", "cut.png")])
    for name in COLORS:
        workspace.add_class(name)
    looked_at(service, workspace)
    first, last = suggestions(service, workspace)
    assert first["class_name"] == "red" and not first["reason"]
    assert last["class_name"] is None and "truncated" in last["reason"]


def test_sorting_is_one_step_and_undone_in_one(workspace, colors):
    workspace.add_images(None, files(colors, "blue", "red"))
    numbers = [picture.number for picture in workspace.unsorted()]
    for name in ("blue", "red"):
        workspace.add_class(name)
    with pytest.raises(cr.UserError, match="there is no class green"):
        workspace.sort_images({"blue": numbers[:8], "green": numbers[8:]})
    assert len(workspace.unsorted()) == 16, "nothing is moved by half"
    first = workspace.sort_images({"blue": numbers[:8], "red": numbers[8:]})
    assert first.done == "Moved 16 images to 2 classes" and not workspace.unsorted()
    moved = workspace.sort_images({"red": numbers[:2]})
    assert moved.done == "Moved 2 images to red"
    workspace.remove_images(numbers[:1])
    workspace.remove_class("blue")
    assert workspace.undo(moved.token) == "2 images"
    assert [p.number for p in workspace.pictures("blue")] == numbers[1:2], "the class is back"
    workspace.undo(first.token)
    assert len(workspace.unsorted()) == 9, "what was removed since stays removed"
    assert workspace.sort_images({None: numbers[:0]}).what == "0 images"


def test_images_sorted_later_are_shared_out_between_training_and_test(workspace, colors):
    """Those that waited during a training are new; a test image stays one."""
    for name in ("blue", "red"):
        workspace.add_images(name, files(colors, name, images=slice(4)))
    workspace.add_images(None, files(colors, "green"))
    workspace.add_class("green")
    workspace.data("first")
    numbers = [picture.number for picture in workspace.unsorted()]
    sorted_in = workspace.sort_images({"green": numbers})
    workspace.data("second")
    tested = {p.number for p in workspace.pictures("green") if p.is_test}
    assert len(tested) == 2
    workspace.undo(sorted_in.token)
    assert len(workspace.unsorted()) == 8
    again = Workspace(workspace.folder, workspace.settings)
    again.data("third")
    again.sort_images({"green": numbers})
    again.data("fourth")
    assert {p.number for p in again.pictures("green") if p.is_test} == tested


def test_a_zip_without_class_folders_and_images_that_are_here_already(workspace, colors, tmp_path):
    blue = files(colors, "blue")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as zipped:
        for path, _ in blue:
            zipped.write(path, path.name)
    workspace.add_images("blue", blue[:3])
    added = workspace.add_data(tmp_path / "photos.zip")
    assert (added.images, added.known) == (5, 3)
    assert len(workspace.unsorted()) == 5 and workspace.classes == ["blue"]
    saved = save_project(workspace)
    workspace.remove_images([picture.number for picture in workspace.unsorted()])
    open_project(workspace, saved, "mine.zip")
    assert len(workspace.unsorted()) == 5, "the tray is part of the project"


def test_what_an_app_left_that_ended_in_between_is_deleted_at_its_start(workspace, colors):
    for name in ("blue", "red"):
        workspace.add_images(name, files(colors, name))
    workspace.data("a-search")
    workspace.thumbnails.path(workspace.pictures()[0])
    (workspace.downloads / "hats.zip").write_bytes(b"zip")
    assert (workspace.work / "a-search").exists()
    Workspace(workspace.folder, workspace.settings)
    assert {path.name for path in workspace.work.iterdir()} == {"downloads", "thumbnails"}
    assert (workspace.downloads / "hats.zip").exists()


COUNT_CLICKS = """() => {
  window.clicks = 0;
  addEventListener("click", (event) => { if (event.detail) window.clicks++; }, true); // no keys
  addEventListener("change", (event) => {
    if (event.target.matches("select, [type=range]")) window.clicks++;
  }, true);
}"""


def loose(folder: Path, split: str, images: slice) -> list[Path]:
    """Copy drawings, with their class in the name."""
    folder.mkdir()
    for path, name in files(CLIPART / split, *DRAWN, images=images):
        shutil.copy(path, folder / name)
    return sorted(folder.iterdir())


def wait_for_guesses(page, images: int, by: str) -> None:
    page.locator(".tray .whose", has_text=by).wait_for()
    page.wait_for_function(
        "n => document.querySelectorAll('.guesses button.taken').length === n", arg=images
    )


def accept(page, line: float) -> None:
    """Set the line, and accept what is above it."""
    page.locator("#line").fill(str(line))
    page.locator("#accept-sure").click()
    page.locator(".undo", has_text=re.compile(r"Moved \d+ image")).wait_for()


def accept_all(page) -> None:
    """Accept every guess, of images that look like none of the classes too."""
    too = page.get_by_role("checkbox", name=re.compile("none of these classes"))
    print(f"{page.locator('.guesses').get_by_text('none of these').count()} look like no class")
    if too.count():
        too.click()
    accept(page, 0)
    page.locator("li.tray").wait_for(state="detached", timeout=MINUTE)


def right_ones(app_folder: Path, name: str) -> tuple[int, int]:
    """Count the images in their own class, and all, of those whose file has a class's name."""
    (project,) = {path.parents[3] for path in app_folder.glob(f"*/images/*/*/*-{name}")}
    images = [p for p in project.glob("images/*/*/*") if p.name.split("-")[1] in DRAWN]
    return sum(p.name.split("-")[1] == p.parent.name for p in images), len(images)


@needs_chromium
def test_loose_photos_into_classes_by_their_names(app, browser, colors, tmp_path):
    """Dropped, named, accepted by keyboard; one moved elsewhere; undone, on a phone in the dark."""
    page = open_page(browser, app, width=390, color_scheme="dark")
    for path, name in files(colors, "blue", "red", images=slice(4)):
        shutil.copy(path, tmp_path / name)
    drop(page, sorted(tmp_path.iterdir()))
    page.get_by_text("8 images without a class").wait_for()
    for name in ("blue", "red"):
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
    wait_for_guesses(page, 8, "By the names of the classes alone")
    assert not low_contrasts(page) and not overflows(page)
    page.get_by_role("button", name=re.compile("^Accept red for red-")).first.press("Enter")
    page.locator(".undo", has_text="Moved 1 image to red.").wait_for()
    page.wait_for_function(
        "document.querySelectorAll('.guesses .tile').length === 7"
        " && document.activeElement.matches('.taken')"  # the next one, as the first has gone
    )
    page.get_by_role("slider", name="How sure").press("Home")
    page.get_by_role("button", name="Accept 7 of 7").press("Enter")
    page.locator(".undo", has_text="Moved 7 images to 2 classes.").wait_for()
    page.locator("li.tray").wait_for(state="detached")
    for name in ("blue", "red"):
        card(page, name).locator(".count", has_text="4 images").wait_for()
    page.get_by_role("button", name="Undo").press("Enter")
    page.get_by_text("7 images without a class").wait_for()
    page.locator(".guesses .tile").first.click()
    page.get_by_label("Move the marked images to").select_option("blue")
    page.locator(".undo", has_text="Moved 1 image to blue.").wait_for()
    page.get_by_text("6 images without a class").wait_for()
    blue = card(page, "blue")
    blue.get_by_role("button", name="Show all", exact=True).click()
    blue.locator(".tile").click()
    blue.get_by_label("Move the marked images to").select_option(label="Not sorted yet")
    page.get_by_text("7 images without a class").wait_for()
    page.reload()
    wait_for_guesses(page, 7, "By the names of the classes alone")
    page.context.close()


@pytest.mark.slow
@needs_chromium
def test_60_photos_into_classes_in_10_clicks(app, browser, tmp_path):
    """After a training on 12 drawings of each of 5 classes; every choice counts as a click."""
    page = open_filled(browser, app, dict.fromkeys(DRAWN, 12))
    start_training(page)
    wait_until_trained(page)
    page.evaluate(COUNT_CLICKS)
    drop(page, loose(tmp_path / "loose", "test", slice(12)))
    page.get_by_text("60 images without a class").wait_for()
    wait_for_guesses(page, 60, "Run 1 takes them for:")
    accept(page, 0.9)
    page.locator(".tray .count", has_text=re.compile("^(?!60)")).wait_for()
    accept_all(page)
    clicks = page.evaluate("window.clicks")
    right, images = right_ones(app.folder, sorted((tmp_path / "loose").iterdir())[0].name)
    print(f"60 photos into 5 classes after a training: {clicks} clicks, {right} of {images} right")
    assert clicks <= 10 and images == 60 and right >= 36
    page.context.close()


@pytest.mark.slow
@needs_chromium
def test_60_photos_into_classes_from_an_empty_page(app, browser, tmp_path):
    """The sure ones by the names of the classes, a training on them, and then the others."""
    page = open_page(browser, app)
    page.evaluate(COUNT_CLICKS)
    drop(page, loose(tmp_path / "loose", "train", slice(8, 20)))
    page.get_by_label("Name of a new class").click()
    for name in DRAWN:
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
        card(page, name).wait_for()
    wait_for_guesses(page, 60, "By the names of the classes alone")
    accept(page, 0.9)
    start_training(page)
    wait_until_trained(page)
    page.locator(".tray .whose", has_text="Run 1 takes them for:").wait_for()
    accept_all(page)
    clicks = page.evaluate("window.clicks")
    right, images = right_ones(app.folder, sorted((tmp_path / "loose").iterdir())[0].name)
    print(f"60 photos into 5 classes from nothing: {clicks} clicks, {right} of {images} right")
    assert clicks <= 10 and images == 60 and right >= 30
    page.context.close()
