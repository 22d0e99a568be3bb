"""An app that is open, one that asks for a password, and a browser."""

from collections.abc import Iterator

import pytest
from helpers.app import CHROMIUM, CHROMIUM_FLAGS, App


@pytest.fixture(scope="session")
def app(tmp_path_factory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("app"))
    yield app
    app.close()


@pytest.fixture(scope="session")
def locked_app(tmp_path_factory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("locked"), "--auth", "ada:secret")
    yield app
    app.close()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
