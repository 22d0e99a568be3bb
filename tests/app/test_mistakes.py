"""Things that people do wrong: one sentence beside the cause, and nothing else changes."""

import io
import re
import zipfile

import pytest
from helpers.app import (
    CLIPART,
    UPLOAD_LIMIT_MB,
    App,
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
    zip_of,
)
from helpers.cases import slow_cases
from PIL import Image
from playwright.sync_api import Error as PlaywrightError

pytestmark = needs_chromium

SECRETS = re.compile(
    r"/tmp/|/home/|/root/|/usr/|site-packages|Traceback|File \"|\w+Error\b|Exception|"
    r"PIL\.|torch|gradio\.|starlette|safetensors_rust|errno",
    re.IGNORECASE,
)


@pytest.fixture
def page(app, browser):
    page = open_filled(browser, app, {"bird": 3, "fruit": 3})
    page.app_answers = []
    page.on("response", lambda answer: page.app_answers.append(answer))
    yield page
    check_nothing_leaks(page)
    page.context.close()


def check_nothing_leaks(page) -> None:
    """No path of the server and no exception in the page, or in what the endpoints answered."""
    found = SECRETS.search(page.locator("#clip-randlora").inner_html())
    assert not found, f"the page says {found[0]!r}"
    for answer in page.app_answers:
        if "/gradio_api/run/" in answer.url:
            try:
                said = answer.text()
            except PlaywrightError:  # of a page that was left before
                continue
            found = SECRETS.search(said)
            assert not found, f"{answer.url} says {found[0]!r}"


def state(page) -> list[str]:
    return page.locator(".cards .count").all_inner_texts()


def add_class(page, name: str) -> None:
    page.get_by_label("Name of a new class").fill(name)
    page.keyboard.press("Enter")


def says(page, place, text: str) -> None:
    """Wait for a sentence at a place, which is the only one on the page."""
    place.locator(".message.error", has_text=text).wait_for()
    assert page.locator(".message.error").count() == 1


def named(cases: dict, *quick: str) -> list:
    """Return the cases of a table under their names; all but some are slow."""
    return [
        pytest.param(*case, id=name, marks=[] if name in quick else pytest.mark.slow)
        for name, case in cases.items()
    ]


NAMES = {
    "empty": ("", "A class needs a name."),
    "only spaces": ("   ", "A class needs a name."),
    "there already": ("bird", "There is a class bird already."),
    "there already, in capitals": ("BIRD", "There is a class BIRD already."),
    "a path": ("../x", "leave out /"),
    "too long": ("x" * 100, "at most 80 characters"),
    "HTML": ("<b>x</b>", "leave out /"),
    "a leading dot": (".hidden", "a leading dot"),
}


@pytest.mark.parametrize(("name", "sentence"), named(NAMES, "empty", "there already"))
def test_names_of_classes(page, name, sentence):
    before = state(page)
    add_class(page, name)
    says(page, page.locator("li.card.add"), sentence)
    assert state(page) == before
    add_class(page, "tool")
    card(page, "tool").wait_for()
    assert page.locator(".message.error").count() == 0, "a mistake that was mended is forgotten"


@pytest.mark.parametrize("name", slow_cases(["🦊🐻", "x" * 60, "Ärmel", "日本"], "Ärmel", "日本"))
def test_unusual_names_are_fine(page, name):
    add_class(page, name)
    page.get_by_role("heading", name=name).wait_for()
    assert page.locator(".message.error").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def text_called_jpg() -> dict:
    return {"name": "text.jpg", "mimeType": "image/jpeg", "buffer": b"this is no image"}


def cut_jpg() -> dict:
    out = io.BytesIO()
    Image.effect_noise((300, 300), 60).convert("RGB").save(out, "JPEG")
    return {"name": "cut.jpg", "mimeType": "image/jpeg", "buffer": out.getvalue()[:40]}


def bmp_bomb() -> dict:
    head = bytearray(Image.new("RGB", (1, 1)).tobytes() + bytes(51))
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "BMP")
    head = bytearray(out.getvalue())
    head[18:26] = (60000).to_bytes(4, "little") + (60000).to_bytes(4, "little")
    return {"name": "huge.bmp", "mimeType": "image/bmp", "buffer": bytes(head)}


FILES = {
    "a text called .jpg": (text_called_jpg, "text.jpg: not an image that can be read"),
    "a JPEG that was cut off": (cut_jpg, "cut.jpg: broken or truncated image"),
    "an image of 3,600 million pixels": (bmp_bomb, "huge.bmp:"),
    "an empty file": (
        lambda: {"name": "empty.png", "mimeType": "image/png", "buffer": b""},
        "empty.png:",
    ),
    "a PDF": (
        lambda: {"name": "paper.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 x"},
        "paper.pdf: not an image that can be read",
    ),
}


@pytest.mark.parametrize(("file", "sentence"), named(FILES, "a text called .jpg"))
def test_a_wrong_file_and_then_a_right_one(page, file, sentence):
    before = state(page)
    bird = card(page, "bird")
    upload(page, bird.get_by_role("button", name="Upload"), [file()])
    says(page, bird, sentence)
    assert state(page) == before
    upload(page, bird.get_by_role("button", name="Upload"), [drawing("bird", 1)])
    bird.get_by_text("Added 1 image.").wait_for()
    bird.locator(".count", has_text="4 images").wait_for()
    assert page.locator(".message.error").count() == 0


def test_a_file_that_is_too_large(page, tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate((UPLOAD_LIMIT_MB + 1) * 2**20)
    bird = card(page, "bird")
    upload(page, bird.get_by_role("button", name="Upload"), [tmp_path / "large.png"])
    says(page, bird, f"large.png: larger than {UPLOAD_LIMIT_MB} MB")


def test_an_image_twice(page):
    bird = card(page, "bird")
    same = sorted((CLIPART / "train/bird").iterdir())[0]
    upload(page, bird.get_by_role("button", name="Upload"), [same])
    bird.get_by_text("1 image was here already.").wait_for()
    bird.locator(".count", has_text="3 images").wait_for()


@pytest.mark.slow
def test_the_same_image_in_two_classes(page):
    same = sorted((CLIPART / "train/bird").iterdir())[0]
    upload(page, card(page, "fruit").get_by_role("button", name="Upload"), [same])
    page.get_by_text("The same image is in bird").wait_for()


ZIPS = {
    "no zip": (lambda path: path.write_bytes(b"no archive"), "not a zip archive that can be read"),
    "an empty zip": (lambda path: zipfile.ZipFile(path, "w").close(), "no images found"),
    "a zip of texts": (
        lambda path: write_zip(path, {"a/1.txt": b"x", "b/1.txt": b"x"}),
        "no images found",
    ),
    "a zip bomb": (
        lambda path: write_zip(path, {f"{c}/{i}.bmp": bytes(2**28) for c in "ab" for i in "123"}),
        "more than 100 times its size",
    ),
    "a project of a later version": (
        lambda path: write_zip(path, {"project.json": b'{"version": 99}'}),
        "not a project of this version",
    ),
}


def write_zip(path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)


@pytest.mark.parametrize(("make", "sentence"), named(ZIPS, "no zip"))
def test_wrong_zips(page, tmp_path, make, sentence):
    before = state(page)
    make(tmp_path / "mine.zip")
    drop(page, [tmp_path / "mine.zip"])
    dialog = page.get_by_role("button", name="Replace it")
    if "project" in sentence:
        dialog.click()
    says(page, page.locator("#gather > .said"), sentence)
    assert state(page) == before


@pytest.mark.slow
def test_a_zip_that_climbs_out_of_its_folder(page, app, tmp_path):
    write_zip(
        tmp_path / "climbing.zip",
        {"../../outside/1.webp": b"x"}
        | {f"tool/{i}.webp": drawing("tool", i).read_bytes() for i in range(2)}
        | {f"house/{i}.webp": drawing("house", i).read_bytes() for i in range(2)},
    )
    drop(page, [tmp_path / "climbing.zip"])
    page.get_by_text("../../outside/1.webp: unsafe path").wait_for()
    card(page, "tool").locator(".count", has_text="2 images").wait_for()
    assert not (app.folder.parent / "outside").exists()


def test_a_drop_beside_everything_never_leaves_the_page(page):
    before = page.url
    drop(page, [drawing("tool", 1), drawing("tool", 2)])
    page.get_by_role("heading", name="Not sorted yet").wait_for()
    page.get_by_text("2 images without a class").wait_for()
    drop(page, [drawing("bird", 2)], onto=card(page, "bird"))
    card(page, "bird").locator(".count", has_text="4 images").wait_for()
    assert page.url == before and len(page.context.pages) == 1


def test_one_class_alone_says_what_is_missing(app, browser):
    page = open_page(browser, app)
    give(page, "bird", [drawing("bird", 1)])
    assert page.get_by_role("button", name="Train", exact=True).is_disabled()
    page.get_by_text("Needs two classes with images; bird is one.").wait_for()
    page.context.close()


def test_an_empty_class_is_left_out_with_a_warning(page):
    add_class(page, "nothing in it")
    page.get_by_text("nothing in it has no images yet and will be left out.").wait_for()
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()


def test_a_click_without_a_selection_has_nothing_to_click(page):
    card(page, "bird").get_by_role("button", name="Show all", exact=True).click()
    card(page, "bird").get_by_text("Click images to mark them.").wait_for()
    assert page.get_by_role("button", name="Remove", exact=True).count() == 0
    assert page.locator("#move-to").count() == 0


SETTINGS = {
    "steps": ("-3", "Steps"),
    "learning_rate": ("much", "Learning_rate"),
    "rank": ("0", "Rank"),
    "seed": ("1.5", "Seed"),
}


@pytest.mark.parametrize("name", slow_cases([*SETTINGS], "learning_rate", "rank", "seed"))
def test_wrong_settings(page, name):
    value, said = SETTINGS[name]
    page.get_by_text("More options").click()
    page.locator(f"#more-{name}").fill(value)
    page.locator(f"#more-{name}").blur()
    page.get_by_role("button", name="Train", exact=True).click()
    says(page, page.locator("#train"), said)
    assert page.locator("#progress").count() == 0


def test_a_class_removed_in_another_tab(page):
    other = page.context.new_page()
    other.goto(page.url)
    wait_until_drawn(other)
    card(other, "fruit").get_by_role("button", name="More for fruit").click()
    other.get_by_role("button", name="Remove the class").click()
    upload(page, card(page, "fruit").get_by_role("button", name="Upload"), [drawing("fruit", 1)])
    card(page, "fruit").locator(
        ".count", has_text="1 image"
    ).first.wait_for()  # it is there again, with one image
    other.close()


@pytest.mark.slow
def test_renaming_a_class_that_another_tab_removed(page):
    card(page, "fruit").get_by_role("button", name="fruit", exact=True).click()
    other = page.context.new_page()
    other.goto(page.url)
    wait_until_drawn(other)
    card(other, "fruit").get_by_role("button", name="More for fruit").click()
    other.get_by_role("button", name="Remove the class").click()
    card(other, "fruit").wait_for(state="detached")
    other.close()
    card(page, "fruit").wait_for(state="detached")


@pytest.mark.slow
def test_the_back_button_and_a_reload_lose_nothing(page):
    before = state(page)
    page.reload()
    wait_until_drawn(page)
    card(page, "bird").wait_for()
    assert state(page) == before
    page.goto("about:blank")
    page.go_back()
    wait_until_drawn(page)
    card(page, "bird").wait_for()
    assert state(page) == before


@pytest.mark.slow
def test_a_thousand_and_one_classes(app, browser, tmp_path):
    page = open_page(browser, app)
    image = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as zipped:
        for number in range(1001):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(image, "PNG")
            zipped.writestr(f"class {number}/1.png", image.getvalue())
    drop(page, [tmp_path / "many.zip"])
    says(page, page.locator("#gather > .said"), "At most 1,000 classes here.")
    page.context.close()


@pytest.mark.slow
def test_mistakes_beside_a_training_and_after_it(app, browser, tmp_path):
    """Remove, train again and reload during a training; broken images and gone ones in Try."""
    page = open_filled(browser, app, {"bird": 8, "fruit": 8})
    page.app_answers = []
    page.on("response", lambda answer: page.app_answers.append(answer))
    start_training(page)
    page.get_by_role("button", name="Stop").wait_for()
    assert page.get_by_role("button", name="Train", exact=True).count() == 0
    card(page, "bird").get_by_role("button", name="More for bird").click()
    page.get_by_role("button", name="Remove the class").click()
    page.reload()
    wait_until_drawn(page)
    page.get_by_text(re.compile("RandLoRA, fast, lite0")).wait_for()
    wait_until_trained(page)
    page.get_by_text("Needs two classes with images; fruit is one.").wait_for()
    page.get_by_role("button", name="Try it").wait_for()

    for wrong, sentence in ((text_called_jpg(), "not an image"), (cut_jpg(), "truncated image")):
        upload(page, page.get_by_role("button", name="Choose an image"), [wrong])
        says(page, page.locator("#try"), sentence)
    upload(page, page.get_by_role("button", name="Choose an image"), [drawing("fruit", 1)])
    answered = wait_for_new_answers(page)
    assert set(answered["tuned"]) == {"bird", "fruit"}, "the run knows the classes that it learned"
    assert page.locator(".message.error").count() == 0

    page.get_by_role("button", name="Run 1").click()
    upload(page, page.get_by_role("button", name="Load a run or an adapter"), [text_called_jpg()])
    page.locator(".runs .message.error").wait_for()
    check_nothing_leaks(page)
    page.context.close()


@pytest.mark.slow
def test_the_app_ends_and_starts_again(browser, tmp_path):
    """The page says that the app is gone, and goes on when it is back; a training is not."""
    app = App(tmp_path)
    port = int(app.url.rsplit(":", 1)[1])
    page = open_filled(browser, app, {"bird": 8, "fruit": 8})
    start_training(page, "Thorough")
    page.get_by_text(re.compile(r"step \d+ of")).wait_for()
    app.close()
    page.get_by_text("The app does not answer. Is it still running?").first.wait_for()
    app = App(tmp_path, port=port)
    try:
        page.get_by_text("The app was restarted while it trained. Train again.").wait_for()
        card(page, "bird").locator(".count", has_text="8 images, 2 of them").wait_for()
    finally:
        app.close()
        page.context.close()


def test_zips_of_classes_still_come_in_by_drop(page, tmp_path):
    archive = zip_of(tmp_path / "two.zip", {"tool": "tool", "house": "house"}, images=2)
    drop(page, [archive])
    page.get_by_text("Added 4 images.").wait_for()
