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
from helpers.app import App, drawing, train, zip_of


def served(app: App, path: str | Path, cookies: dict | None = None) -> httpx.Response:
    return httpx.get(f"{app.url}/gradio_api/file={urllib.parse.quote(str(path))}", cookies=cookies)


def test_no_file_of_the_server_is_served(app):
    here = Path(__file__).resolve()
    for path in (
        "/etc/passwd", here, here.parents[2] / "pyproject.toml", "pyproject.toml", app.folder,
        f"{app.folder}/../../../../etc/passwd", "../../../../etc/passwd", "file:///etc/passwd",
    ):  # fmt: skip
        for cookies in ({}, app.client().cookies):
            answer = served(app, path, cookies)
            assert answer.status_code in (400, 403, 404), f"{path}: {answer.status_code}"


def test_a_sessions_folder_has_a_secret_name_and_is_not_listed(app, tmp_path):
    client, stranger = app.client(), app.client()
    archive = zip_of(tmp_path / "m.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    folders = [path for path in app.folder.iterdir() if (path / "images").is_dir()]
    assert folders and all(re.fullmatch("[0-9a-f]{32}", path.name) for path in folders)
    for path in (app.folder, folders[0], folders[0] / "images", folders[0] / "images/train/bird"):
        for cookies in ({}, client.cookies):
            assert served(app, path, cookies).status_code in (403, 404), "a folder is listed"
    call = f"{app.url}/gradio_api/call/load_archive"
    event = httpx.post(call, json={"data": [file_data(archive)]}).json()["event_id"]
    said = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in said and "complete" not in said, "a path on the server is no upload"
    summary = stranger.predict("digits", api_name="/load_sample")
    assert not {"bird", "car"} & set(summary["classes"])


def file_data(path: str | Path) -> dict:
    """What a client of Gradio's sends to name a file of the server."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_a_file_is_served_to_its_owner_alone(app, tmp_path):
    owner, stranger = app.client(), app.client()
    archive = zip_of(tmp_path / "own.zip", {"tool": "tool", "house": "house"}, images=3)
    with open(archive, "rb") as file:
        answer = httpx.post(
            f"{app.url}/gradio_api/upload", files={"files": file}, cookies=owner.cookies
        )
    (upload,) = answer.json()
    before = set(app.folder.iterdir())
    owner.predict(handle_file(str(archive)), api_name="/load_archive")
    (mine,) = (path for path in set(app.folder.iterdir()) - before if (path / "images").is_dir())
    for path in (upload, *sorted((mine / "images/train/tool").iterdir())):
        assert served(app, path, owner.cookies).content == Path(path).read_bytes()
        # an old spelling of the address, and detours in it, lead to the same file
        for spelling in (str(path), f"{app.folder}/x/../{Path(path).relative_to(app.folder)}"):
            for cookies in (stranger.cookies, {}, {next(iter(owner.cookies)): "x" * 43}):
                assert served(app, spelling, cookies).status_code == 403, spelling
                quoted = urllib.parse.quote(spelling)
                old = httpx.get(f"{app.url}/gradio_api/file/{quoted}", cookies=cookies)
                assert old.status_code == 403, spelling
        # nor may it be named as a stranger's input
        for where in ("call/load_archive", "queue/join", "run/predict", "call/v2/load_archive"):
            body = {"data": [file_data(path)], "fn_index": 1, "session_hash": "s", "file": {}}
            sent = f"{app.url}/gradio_api/{where}"
            answer = httpx.post(sent, json=body, cookies=stranger.cookies)
            assert answer.status_code == 403, where
    event = httpx.post(
        f"{app.url}/gradio_api/call/load_archive",
        json={"data": [file_data(upload)]},
        cookies=owner.cookies,
    )
    assert event.status_code == 200


def test_the_cookie_is_for_this_server_and_not_for_scripts(app):
    cookies = httpx.get(app.url).headers.get_list("set-cookie")
    (cookie,) = [cookie for cookie in cookies if cookie.startswith("clip-randlora-visitor=")]
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Domain" not in cookie


BEFORE_LOGIN = {
    "/", "/login", "/login/", "/svelte/{path:path}", "/static/{path:path}", "/assets/{path:path}",
    "/favicon.ico", "/robots.txt", "/manifest.json", "/pwa_icon", "/pwa_icon/{size}", "/theme.css",
    "/gradio_api/theme.css", "/gradio_api/startup-events",
}  # fmt: skip
"""The routes that anybody gets: the login page, how it looks, and what starts the queue again."""


@pytest.fixture(scope="module")
def routes(tmp_path_factory) -> list[tuple[str, str]]:
    """Every route of the app that Gradio makes, ``(method, path)``."""
    from gradio.routes import App as GradioApp

    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.page import build
    from clip_randlora.app.service import Service

    blocks = build(Service(Settings(folder=tmp_path_factory.mktemp("routes"))))
    found, left = [], [*GradioApp.create_app(blocks).routes]
    while left:
        route = left.pop()
        inner = getattr(route, "original_router", route)  # as FastAPI nests those of a router
        if not hasattr(route, "path") or hasattr(inner, "routes"):
            left += inner.routes
        else:
            found += [(method, route.path) for method in route.methods]
    return sorted(found)


@pytest.mark.slow
def test_every_route_asks_for_the_password(locked_app, routes):
    assert len(routes) > 80 and ("POST", "/gradio_api/cancel") in routes
    assert {path for _, path in routes} >= BEFORE_LOGIN
    open_to_all, login_check = [], "/gradio_api/login_check"
    for method, path in routes:
        address = locked_app.url + re.sub(r"\{[^}]*\}", "x", path)
        body = {"json": {"data": ["clipart"]}} if method == "POST" else {}
        with httpx.stream(method, address, timeout=20, **body) as answer:
            if answer.status_code != 401:
                open_to_all.append(path)
    assert set(open_to_all) == BEFORE_LOGIN
    print(f"{len(routes)} routes: {len(routes) - len(open_to_all)} answer 401 without the password")
    for path in ("gradio_api/file=/etc/x", "gradio_api/queue/data?session_hash=x", "x", "docs"):
        assert httpx.get(f"{locked_app.url}/{path}").status_code == 401, path
    assert httpx.get(locked_app.url + login_check).status_code == 401
    page = httpx.get(locked_app.url).text
    assert '"auth_required":true' in page and '"components":[]' in page


@pytest.mark.slow
def test_the_password_opens_it(locked_app):
    with pytest.raises(Exception, match=r"(?i)auth|login|401"):
        Client(locked_app.url, verbose=False)
    client = Client(locked_app.url, auth=("ada", "secret"), verbose=False)
    assert client.predict("clipart", api_name="/load_sample")["added"] > 0
    wrong = httpx.post(f"{locked_app.url}/login", data={"username": "ada", "password": "x"})
    assert wrong.status_code == 400


def test_errors_are_sentences_without_html_and_without_details_of_ours(capsys):
    import clip_randlora as cr
    from clip_randlora.app.calls import errors_told

    with pytest.raises(Exception, match="onerror") as caught, errors_told():
        raise cr.UserError("<img src=x onerror=alert(1)>.png: broken")
    assert "<" not in str(caught.value)
    with pytest.raises(Exception, match="a fault of the app") as caught, errors_told():
        raise ValueError("/tmp/secret")
    assert "secret" not in str(caught.value) and "/tmp/secret" in capsys.readouterr().err


@pytest.mark.slow
def test_our_own_routes_ask_for_the_password_and_serve_owners_alone(app, locked_app, tmp_path):
    for path in ("page/main.js", "picture/1-x", "download/downloads/answers.csv"):
        assert httpx.get(f"{locked_app.url}/{path}").status_code == 401, path
    owner, stranger = app.client(), app.client()
    archive = zip_of(tmp_path / "own.zip", {"tool": "tool", "house": "house"}, images=3)
    owner.predict(handle_file(str(archive)), api_name="/load_archive")
    (first, *_) = owner.predict("tool", api_name="/images")
    address = f"{app.url}/{first['address']}"
    assert httpx.get(address, cookies=owner.cookies).headers["content-type"] == "image/jpeg"
    for cookies in (stranger.cookies, {}):
        assert httpx.get(address, cookies=cookies).status_code == 404
    saved = owner.predict(api_name="/save_project")["address"]
    assert httpx.get(f"{app.url}/{saved}", cookies=owner.cookies).status_code == 200
    assert httpx.get(f"{app.url}/{saved}", cookies=stranger.cookies).status_code == 404
    for path in (
        "download/downloads/..%2f..%2fproject.json", "download/../project.json",
        "download/images/adapter.safetensors", "page/..%2fpage.py", "picture/-1-x",
    ):  # fmt: skip
        assert httpx.get(f"{app.url}/{path}", cookies=owner.cookies).status_code == 404, path


def test_another_site_may_not_call_the_app(app):
    call = f"{app.url}/gradio_api/run/add_class"
    for headers, status in (
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": app.url}, 200),
        ({}, 200),
    ):
        answer = httpx.post(call, json={"data": ["x"]}, headers=headers)
        assert answer.status_code == status, headers


def test_a_file_that_was_not_uploaded_is_no_input(app, tmp_path):
    client = app.client()
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "", "x"):
        for endpoint, data in (
            ("answer", [file_data(path), 1.0, "", "x"]),
            ("add_images", ["a", [file_data(path)], ["a.jpg"]]),
            ("add_files", [[file_data(path)], ["a/1.jpg"]]),
            ("load_run", [file_data(path), "x"]),
            ("open_project", [file_data(path), "x"]),
        ):
            answer = httpx.post(
                f"{app.url}/gradio_api/run/{endpoint}",
                json={"data": data},
                cookies=client.cookies,
            )
            assert answer.status_code == 500, (endpoint, path)
            assert re.search("did not arrive|not uploaded", answer.json()["error"])


@pytest.mark.slow
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
