"""The app on loopback, attacked: other people's files, missing passwords, HTML in names, bombs."""

from __future__ import annotations

import re
import time
import urllib.parse
import zipfile
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from test_app import App, drawing, train, zip_of


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = App(tmp_path_factory.mktemp("app"))
    yield app
    app.close()


@pytest.fixture(scope="module")
def locked_app(tmp_path_factory):
    app = App(tmp_path_factory.mktemp("locked"), "--auth", "ada:secret")
    yield app
    app.close()


def served(app: App, path: str | Path) -> httpx.Response:
    return httpx.get(f"{app.url}/gradio_api/file={urllib.parse.quote(str(path))}")


def test_no_file_of_the_server_is_served(app):
    here = Path(__file__).resolve()
    for path in (
        "/etc/passwd", here, here.parent.parent / "pyproject.toml", "pyproject.toml", app.folder,
        f"{app.folder}/../../../../etc/passwd", "../../../../etc/passwd", "file:///etc/passwd",
    ):  # fmt: skip
        answer = served(app, path)
        assert answer.status_code in (400, 403, 404), f"{path}: {answer.status_code}"


def test_a_sessions_files_are_found_by_its_secret_alone(app, tmp_path):
    """A path is the permission: its folder is named by 128 bits that only the session gets."""
    client, stranger = app.client(), app.client()
    archive = zip_of(tmp_path / "m.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    folders = [path for path in app.folder.iterdir() if (path / "train").is_dir()]
    assert folders and all(re.fullmatch("[0-9a-f]{32}", path.name) for path in folders)
    for path in (app.folder, folders[0], folders[0] / "train", folders[0] / "train" / "bird"):
        assert served(app, path).status_code in (403, 404), "a folder is listed"
    outside = {"path": str(archive), "meta": {"_type": "gradio.FileData"}}
    call = f"{app.url}/gradio_api/call/load_archive"
    event = httpx.post(call, json={"data": [outside]}).json()["event_id"]
    said = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in said and "complete" not in said, "a path on the server is no upload"
    summary = stranger.predict("digits", api_name="/load_sample")
    assert not {"bird", "car"} & set(summary["classes"])


def test_every_endpoint_asks_for_the_password(locked_app, tmp_path):
    with pytest.raises(Exception, match=r"(?i)auth|login|401"):
        Client(locked_app.url, verbose=False)
    client = Client(locked_app.url, auth=("ada", "secret"), verbose=False)
    assert client.predict("clipart", api_name="/load_sample")["added"] > 0
    for path in ("config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/file=/etc/x"):
        assert httpx.get(f"{locked_app.url}/{path}").status_code == 401, path
    for path in ("upload", "queue/join", "call/load_sample", "run/load_sample", "api/predict"):
        answer = httpx.post(f"{locked_app.url}/gradio_api/{path}", json={"data": ["clipart"]})
        assert answer.status_code == 401, path
    for path in ("queue/data?session_hash=x", "call/load_sample/1"):
        assert httpx.get(f"{locked_app.url}/gradio_api/{path}").status_code == 401, path
    wrong = httpx.post(f"{locked_app.url}/login", data={"username": "ada", "password": "x"})
    assert wrong.status_code == 400


def test_names_are_never_html():
    from clip_randlora_app import views
    from clip_randlora_app.events import as_sentences

    import clip_randlora as cr

    name = "<img src=x onerror=alert(1)>"
    for drawn in (
        views.messages([name]), views.answer({name: 1.0}, "Tuned", None),
        views.prompts({name: [name]}), *views.no_answer(name),
    ):  # fmt: skip
        assert "<img" not in drawn

    def fails():
        raise cr.UserError(f"{name}.png: broken")

    with pytest.raises(Exception, match="onerror") as caught:
        as_sentences(fails)()
    assert "<" not in str(caught.value)


def test_archives_are_judged_before_they_are_unpacked(app, tmp_path):
    client = app.client()
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("a/1.bmp", "a/2.bmp", "b/1.bmp", "b/2.bmp", "a/3.bmp", "b/3.bmp"):
            zipped.writestr(name, bytes(200 * 2**20))
    before = sum(path.stat().st_size for path in app.folder.rglob("*") if path.is_file())
    with pytest.raises(AppError, match="more than 100 times its size"):
        client.predict(handle_file(str(bomb)), api_name="/load_archive")
    after = sum(path.stat().st_size for path in app.folder.rglob("*") if path.is_file())
    assert after - before <= bomb.stat().st_size


def test_an_upload_over_the_bound_is_refused(app, tmp_path):
    with open(tmp_path / "large.zip", "wb") as file:
        file.truncate(30 * 2**20)
    with open(tmp_path / "large.zip", "rb") as file:
        answer = httpx.post(f"{app.url}/gradio_api/upload", files={"files": file}, timeout=60)
    assert answer.status_code == 413
    assert not list(app.folder.rglob("large.zip"))


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_device(app, tmp_path):
    archive = zip_of(tmp_path / "m.zip", {"bird": "bird", "car": "vehicle"}, images=8)
    leaver, other = app.client(), app.client()
    for client in (leaver, other):
        client.predict(handle_file(str(archive)), api_name="/load_archive")
    job = leaver.submit("lite0", "randlora", 8, 1, "thorough", api_name="/train")
    while not any("step" in row for row in job.outputs()):
        time.sleep(0.2)
    job.cancel()
    started = time.monotonic()
    rows = train(other, shots=2)
    print(f"the next training ended {time.monotonic() - started:.0f} s after the first left")
    assert rows[-1]["images"]["train"] == 4
    assert not job.outputs()[-1].get("per_class"), "the first training went on to its end"
    assert drawing("bird", 0).exists()
