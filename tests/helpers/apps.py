"""Fixtures for the tests of the app: one that is open, and one that asks for a password."""

import pytest


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    from helpers.app import App

    app = App(tmp_path_factory.mktemp("app"))
    yield app
    app.close()


@pytest.fixture(scope="session")
def locked_app(tmp_path_factory):
    from helpers.app import App

    app = App(tmp_path_factory.mktemp("locked"), "--auth", "ada:secret")
    yield app
    app.close()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    from helpers.app import CHROMIUM, CHROMIUM_FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
