"""The world of delivery tests."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.db import Database
from tests.delivery.world import World


@pytest.fixture(scope="session")
def queue_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests copy."""
    path = tmp_path_factory.mktemp("template") / "queue.sqlite"
    database = Database.open(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def make_world(queue_template: Path, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes the test's world with the settings it needs."""
    path = tmp_path / "queue.sqlite"
    shutil.copyfile(queue_template, path)
    database = Database.open(f"sqlite:///{path}")

    def make(**settings: Any) -> World:
        return World(database, tmp_path, **settings)

    yield make
    database.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world with the default settings."""
    return make_world()
