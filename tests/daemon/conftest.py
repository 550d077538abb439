import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.ensemble import Ensemble
from tests.daemon.partner import Partner, serving
from tests.daemon.running import Daemon, Inbox
from tests.postgres import Cluster, run_cluster


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of one run see."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provisioned daemon that never ran; made once, by the command line, and copied by the tests."""
    place = shared_directory(tmp_path_factory) / "provisioned"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "accounts.json").exists():
            with Daemon(place) as daemon:
                daemon.provision()
    return place


@pytest.fixture(scope="session")
def partner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partner]:
    """A second server, to which the shared daemon sends all mail for its domain."""
    with serving(tmp_path_factory.mktemp("partner")) as running:
        yield running


@pytest.fixture(scope="session")
def daemon(template: Path, partner: Partner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon for all tests that leave no trace beyond their own inboxes."""
    directory = tmp_path_factory.mktemp("daemon")
    with Daemon(directory, template=template, delivery={"routes": partner.route}) as running:
        yield running.start()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for this worker."""
    with run_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def shared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble that was provisioned and never ran; its directory and its database are copied."""
    place = tmp_path_factory.mktemp("shared")
    with Ensemble(place, cluster=cluster, database=cluster.new_database()) as ensemble:
        ensemble.provision()
    return ensemble


@pytest.fixture
def inbox(daemon: Daemon) -> Inbox:
    return daemon.new_inbox()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts daemons."""
    for item in items:
        if "tests/daemon/" in item.path.as_posix():
            item.add_marker(pytest.mark.whole)
