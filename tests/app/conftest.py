"""An app that is open, and one that asks for a password."""

from collections.abc import Iterator

import pytest
from helpers.app import App


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
