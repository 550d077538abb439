"""Which directories are worth a scan, and how often."""

import os
from pathlib import Path

import pytest

from storage.db import Database
from storage.records import Rendered
from storage.rendition import plain
from storage.watch import RACY_NS, Watch
from tests.storage.mailroom import (
    NOW,
    Mailroom,
    open_mailroom,
    put,
    render,
    with_directories,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders, and directories for all of them."""
    return with_directories(open_mailroom(database, tmp_path))


class Clocks:
    """Time as a test has it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wall_ns = 0

    def watch(self, room: Mailroom) -> Watch:
        return Watch(
            database=room.database,
            maildir=room.maildir,
            render=render,
            monotonic=lambda: self.seconds,
            wall_ns=lambda: self.wall_ns,
        )

    def settle(self, room: Mailroom) -> None:
        times = [os.stat(room.path() / name).st_mtime_ns for name in ("new", "cur")]
        self.wall_ns = max(times) + RACY_NS


def test_an_unchanged_directory_is_not_scanned_again(room: Mailroom) -> None:
    clocks = Clocks()
    watch, folder = clocks.watch(room), room.folders["INBOX"]
    clocks.settle(room)
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is None
    put(room, "new/1.P1.host")
    found = watch.look(folder, at=NOW)
    assert found is not None
    assert found.received == 1


def test_a_directory_changed_just_now_is_looked_at_again(room: Mailroom) -> None:
    clocks = Clocks()
    watch, folder = clocks.watch(room), room.folders["INBOX"]
    clocks.settle(room)
    clocks.wall_ns -= 1
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is not None
    clocks.wall_ns += 1
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is None


def test_a_slow_scan_is_followed_by_a_rest(room: Mailroom) -> None:
    clocks = Clocks()
    folder = room.folders["INBOX"]

    def slow(content: bytes) -> Rendered:
        clocks.seconds += 1.0
        return plain(content)

    watch = Watch(
        database=room.database,
        maildir=room.maildir,
        render=slow,
        monotonic=lambda: clocks.seconds,
        wall_ns=lambda: clocks.wall_ns,
    )
    put(room, "new/1.P1.host")
    assert watch.look(folder, at=NOW) is not None
    put(room, "new/2.P1.host")
    assert watch.look(folder, at=NOW) is None
    clocks.seconds += 20.0
    found = watch.look(folder, at=NOW)
    assert found is not None
    assert found.received == 1
