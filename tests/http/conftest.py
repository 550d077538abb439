"""An appliance behind its HTTP application: real store, login and routing, intake without a network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from server.imap.render import render
from storage.store import Store
from tests.http.world import World


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory with a migrated database, copied for each test."""
    # The library's own way to print a traceback takes seconds.
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    directory = tmp_path_factory.mktemp("template") / "data"
    directory.mkdir()
    store = Store.open(
        directory=directory,
        database_url=f"sqlite:///{directory / 'mailagents.sqlite'}",
        render=render,
        segment_octets=1 << 20,
        spool_threshold_octets=256 * 1024,
    )
    store.close()
    yield directory
    structlog.reset_defaults()


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    """An appliance with two organizations, their domains and inboxes."""
    directory = tmp_path / "data"
    shutil.copytree(template, directory)
    with World(directory) as made:
        yield made
