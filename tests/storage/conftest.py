"""Databases for storage tests: the same tests on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.db import Database
from storage.store import Store
from tests.postgres import Cluster, run_cluster
from tests.storage.samples import fill, opened

DIALECTS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgresql", id="postgresql", marks=pytest.mark.postgresql),
]


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for the whole session of this worker."""
    with run_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests copy."""
    path = tmp_path_factory.mktemp("template") / "mailagents.sqlite"
    database = Database.open(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables; on SQLite there is no file yet."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'mailagents.sqlite'}"
        return
    cluster: Cluster = request.getfixturevalue("postgresql_cluster")
    name = cluster.new_database()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database with all tables."""
    if dialect == "sqlite":
        path = tmp_path / "mailagents.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    cluster: Cluster = request.getfixturevalue("postgresql_cluster")
    name = cluster.migrated_database()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database with all tables."""
    opened = Database.open(database_url)
    yield opened
    opened.close()


Opener = Callable[[], Database]


@pytest.fixture
def reopen(database_url: str) -> Iterator[Opener]:
    """Opens further connections to the same database, as another process would."""
    opened: list[Database] = []

    def open_again() -> Database:
        opened.append(Database.open(database_url))
        return opened[-1]

    yield open_again
    for database in opened:
        database.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a store's data goes; nothing is there yet."""
    return tmp_path / "data"


@pytest.fixture
def store(directory: Path, database_url: str) -> Iterator[Store]:
    """A store with the organizations and inboxes of the samples."""
    with opened(directory, database_url) as found:
        fill(found.database)
        yield found
