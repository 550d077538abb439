"""A PostgreSQL of the tests' own, from Debian's package: one cluster a test session, gone with it.

Runs as the user `postgres` where the tests run as root, on a Unix socket in a
temporary directory, without fsync. Databases are copied from a migrated
template, so that each test has a fresh one in milliseconds.
"""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from storage.db import Database

START_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_numbers = itertools.count(1)


def require_all() -> bool:
    """Whether a missing package is a failure."""
    return os.environ.get("MAILAGENTS_REQUIRE_ALL") == "1"


def binaries() -> Path:
    """The directory of PostgreSQL's programs; skips or fails the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    reason = "PostgreSQL is not installed: apt-get install postgresql"
    if require_all():
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Cluster:
    """A running server: its socket directory, and what makes databases in it."""

    directory: Path
    template: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self.directory}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(
            f"host={self.directory} user=postgres dbname=postgres", autocommit=True
        ) as connection:
            connection.execute(statement)

    def new_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def migrated_database(self) -> str:
        """Make a database with all tables and return its name."""
        with self.lock:
            if not self.template:
                template = self.new_database()
                database = Database.open(self.url(template))
                database.migrate()
                database.close()
                self.template = template
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _end_with_parent() -> None:
    # Fast shutdown when the tests are killed: no server is left behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """Make a cluster, serve it, and remove it."""
    programs = binaries()
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(directory, account.pw_uid, account.pw_gid)
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = directory / "data"
    try:
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **as_user,
        )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(directory),
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "60",
            "shared_buffers": "32MB",
            "deadlock_timeout": "100ms",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(directory / "log", "wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=directory,
                preexec_fn=_end_with_parent,
                **as_user,
            )
        try:
            _wait(directory, server)
            yield Cluster(directory)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(START_SECONDS)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait(directory: Path, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server takes connections; fails with its log where it ends instead."""
    pause = threading.Event()
    for _ in range(START_SECONDS * 50):
        try:
            psycopg.connect(f"host={directory} user=postgres dbname=postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None:
                break
            pause.wait(0.02)
    raise AssertionError("PostgreSQL did not start: " + (directory / "log").read_text())
