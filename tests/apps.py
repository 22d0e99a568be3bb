"""Fixtures for the tests of the app: one that is open, and one that asks for a password."""

import pytest


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    from test_app import App  # which imports what only these tests need

    app = App(tmp_path_factory.mktemp("app"))
    yield app
    app.close()


@pytest.fixture(scope="session")
def locked_app(tmp_path_factory):
    from test_app import App

    app = App(tmp_path_factory.mktemp("locked"), "--auth", "ada:secret")
    yield app
    app.close()
