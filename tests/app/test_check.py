"""Check your images: what is found, moved from the page, removed, called fine, and undone."""

import re
import shutil
import time
from pathlib import Path

import pytest
from helpers.app import CLIPART, card, drop, needs_chromium, open_filled, open_page
from helpers.images import write_colors
from helpers.looks import low_contrasts, overflows
from PIL import Image

import clip_randlora as cr
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.describe import describe
from clip_randlora.app.findings_left import call_fine, describe_findings
from clip_randlora.app.project_archive import open_project, save_project
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import Upload
from clip_randlora.app.workspace import Workspace

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
DRAWN = ("bird", "fruit", "mammal", "tool", "vehicle")


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"": 9}, COLORS)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Service:
    return Service(Settings(folder=tmp_path_factory.mktemp("all")))


@pytest.fixture
def workspace(service, colors, request) -> Workspace:
    """Eight images of each colour; the ninth red one is in blue."""
    workspace = service.workspaces.of(request.node.name)
    for name in COLORS:
        files = sorted((colors / name).iterdir())[:8]
        workspace.add_images(name, [Upload(path, f"{name}-{path.name}") for path in files])
    stray = sorted((colors / "red").iterdir())[8]
    workspace.add_images("blue", [Upload(stray, "stray.png")])
    return workspace


def finish(workspace: Workspace) -> None:
    """Wait until the check has ended, and what it found is kept."""
    deadline = time.monotonic() + 60
    while workspace.check is not None:
        assert time.monotonic() < deadline, workspace.check.state
        time.sleep(0.02)


def found(workspace: Workspace, kind: str) -> list[tuple[list[str], str]]:
    """The names of the images of each finding of a kind, and the suggested class."""
    return [
        ([image["name"] for image in row["images"]], row["suggested"])
        for row in describe_findings(workspace)
        if row["kind"] == kind
    ]


def test_a_wrong_class_is_found_moved_and_stays_settled(service, workspace):
    job = service.start_check(workspace)
    with pytest.raises(cr.UserError, match="your images are being checked already"):
        service.start_check(workspace)
    with pytest.raises(cr.UserError, match="a training, search or check is under way"):
        workspace.replace_project(workspace.folder)
    finish(workspace)
    assert job.state == "done", job.error
    assert found(workspace, "label") == [(["stray.png"], "red")]
    shown = describe(service, workspace)["check"]
    assert (shown["images"], shown["left"], shown["is_changed"]) == (25, {"label": 1}, False)
    assert not job.folder.exists(), "the copy of the images is gone"
    assert not any(picture.is_test for picture in workspace.pictures()), "none is set apart for it"

    (row,) = describe_findings(workspace)
    noted = call_fine(workspace, [row["key"]])
    assert (noted.done, found(workspace, "label")) == ("Called 1 finding fine", [])
    with pytest.raises(cr.UserError, match="settled already"):
        call_fine(workspace, [row["key"]])
    service.start_check(workspace)
    finish(workspace)
    assert found(workspace, "label") == [], "remembered in later checks"
    saved = save_project(workspace)
    workspace.undo(noted.token)
    assert len(found(workspace, "label")) == 1

    moved = workspace.sort_images({"red": [row["images"][0]["number"]]})
    assert found(workspace, "label") == [] and describe(service, workspace)["check"]["is_changed"]
    workspace.undo(moved.token)
    assert len(found(workspace, "label")) == 1, "it is where it was"
    again = Workspace(workspace.folder, workspace.settings)
    assert len(found(again, "label")) == 1, "it is there after a restart"
    open_project(again, saved, "mine.zip")
    assert again.project.fine == [row["key"]] and found(again, "label") == []


def test_duplicates_and_useless_files_are_found(service, workspace, colors, tmp_path):
    drawing = CLIPART / "train" / "tool" / sorted((CLIPART / "train/tool").iterdir())[0].name
    with Image.open(drawing) as image:
        image.convert("RGB").save(tmp_path / "one.png")
        image.convert("RGB").save(tmp_path / "two.jpg", quality=95)
    whole = (tmp_path / "one.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (64, 64), "white").save(tmp_path / "blank.png")
    for class_name, name in (
        ("blue", "one.png"), ("green", "two.jpg"), ("red", "cut.png"), ("red", "blank.png"),
    ):  # fmt: skip
        workspace.add_images(class_name, [Upload(tmp_path / name, name)])
    service.start_check(workspace)
    finish(workspace)
    (pair,) = found(workspace, "duplicate")
    assert sorted(pair[0]) == ["one.png", "two.jpg"]
    assert found(workspace, "unreadable") == [(["cut.png"], "")]
    assert found(workspace, "blank") == [(["blank.png"], "")]
    (row,) = [row for row in describe_findings(workspace) if row["kind"] == "duplicate"]
    numbers = {image["name"]: image["number"] for image in row["images"]}
    workspace.sort_images({"blue": [numbers["two.jpg"]]})
    assert found(workspace, "duplicate") == [], "in one class they do no harm"


def test_a_stopped_check_leaves_the_result_of_before(service, workspace):
    service.start_check(workspace)
    finish(workspace)
    before = workspace.project.check
    job = service.start_check(workspace)
    assert describe(service, workspace)["check"]["is_running"]
    service.queue.stop(job)
    finish(workspace)
    assert job.state == "stopped" and workspace.check is None
    assert workspace.project.check == before and not job.folder.exists()
    workspace.remove_class("blue")
    workspace.remove_class("green")
    with pytest.raises(cr.UserError, match="Needs two classes with images"):
        service.start_check(workspace)


@needs_chromium
def test_a_finding_is_settled_by_keyboard(app, browser, colors, tmp_path):
    page = open_page(browser, app, width=390, color_scheme="dark")
    shutil.copytree(colors, tmp_path / "mine")
    shutil.move(tmp_path / "mine" / "red" / "8.png", tmp_path / "mine" / "blue" / "stray.png")
    drop(page, sorted((tmp_path / "mine").iterdir()))
    page.get_by_role("button", name="Check 27 images").press("Enter")
    panel = page.locator("#check")
    panel.get_by_text("Checked 27 images: 1 perhaps in the wrong class.").wait_for()
    assert not low_contrasts(page) and not overflows(page)
    panel.get_by_role("button", name="It is fine").press("Enter")
    panel.get_by_text("nothing left to look at").wait_for()
    page.wait_for_function("document.activeElement.id === 'start-check'")
    page.locator(".undo", has_text="Called 1 finding fine.").wait_for()
    page.get_by_role("button", name="Undo").press("Enter")
    panel.get_by_role("button", name=re.compile("^Move .*stray.png to red")).press("Enter")
    card(page, "red").locator(".count", has_text="9 images").wait_for()
    panel.get_by_text("images changed since").wait_for()
    page.context.close()


@pytest.mark.slow
@needs_chromium
def test_three_exchanged_images_are_found_and_moved_from_the_page(app, browser, tmp_path):
    """Among 60 drawings of 5 classes."""
    page = open_filled(browser, app, dict.fromkeys(DRAWN, 12))
    strays = {"bird": "tool", "fruit": "vehicle", "tool": "bird"}
    for number, (name, of) in enumerate(strays.items()):
        shutil.copy(sorted((CLIPART / "test" / of).iterdir())[12], tmp_path / f"stray{number}.webp")
        with page.expect_file_chooser() as chooser:
            card(page, name).get_by_role("button", name="Upload").click()
        chooser.value.set_files([tmp_path / f"stray{number}.webp"])
        card(page, name).locator(".count", has_text="13 images").wait_for()
    page.get_by_role("button", name="Check 63 images").click()
    panel = page.locator("#check")
    panel.get_by_text("Checked 63 images").wait_for()
    rows = panel.locator(".group").first.locator(".cases li")
    listed = rows.all_inner_texts()
    places = [i for i, text in enumerate(listed) if "stray" in text]
    print(f"{len(places)} of 3 exchanged images among the first {max(places) + 1} of {len(listed)}")
    assert len(places) == 3
    for number, of in enumerate(strays.values()):
        row = rows.filter(has_text=f"stray{number}")
        button = row.get_by_role("button", name=re.compile(f"^Move .* to {of}$"))
        if button.count():
            button.click()
        else:
            row.get_by_role("combobox").select_option(of)
        row.wait_for(state="detached")
    page.get_by_role("button", name="Check again").click()
    panel.get_by_text("Checked 63 images").wait_for()
    assert "stray" not in " ".join(rows.all_inner_texts())
    page.context.close()
