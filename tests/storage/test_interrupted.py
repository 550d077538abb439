"""Units on folders that stop anywhere: once healed, every message is there once, with bytes and flags."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from storage import mailboxes
from storage import mirror as mirroring
from storage.db import Database
from storage.mailboxes import FlagMode
from storage.reconcile import reconcile
from storage.records import Flag
from tests.storage.mailroom import MAILBOX, NOW, Mailroom, open_mailroom
from tests.storage.test_reconcile import Store

CALLS = ("link", "unlink", "rename", "fsync")
STEPS = 9


class Crash(Exception):
    """The process ended here, for all that the store can know."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[list[str]]:
    """Stop at the call of that number, before it is made; yields the calls that were made."""
    made: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **more: Any) -> Any:
            if len(made) == step:
                raise Crash(name)
            made.append(name)
            return call(*given, **more)

        return wrapped

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield made


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """Three flagged messages of different content in the inbox, one in the archive, none mirrored yet."""
    room = open_mailroom(database, tmp_path)
    (tmp_path / "spool").mkdir()
    for name in room.folders:
        room.maildir.ensure(MAILBOX, name)
    for number in range(3):
        room.add(1, content=f"Subject: {number}\r\n\r\n".encode("ascii"))
    room.add(1, folder="Archive", content=b"Subject: archived\r\n\r\n")
    inbox = room.folders["INBOX"].id
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=inbox, uids=[1, 2, 3], mode=FlagMode.SET, flags=int(Flag.SEEN), keywords=("work",)
        )
    )
    return room


def move(room: Mailroom, connection: Connection) -> None:
    source_id, target_id = room.folders["INBOX"].id, room.folders["Archive"].id
    mailboxes.move(
        connection, maildir=room.maildir, source_id=source_id, target_id=target_id, uids=[1, 3], at=NOW
    )


def step(room: Mailroom, connection: Connection) -> None:
    """The two units of the mirror that write before it is durable, in one."""
    due = mirroring._announce(connection, 256)
    mirroring._carry_out(connection, room.maildir, due, 256)


def rename(room: Mailroom, connection: Connection) -> None:
    mailboxes.rename_folder(
        connection, mailbox_id=MAILBOX, name="Archive", new_name="Attic/Old", maildir=room.maildir, at=NOW
    )


def rename_inbox(room: Mailroom, connection: Connection) -> None:
    mailboxes.rename_folder(
        connection, mailbox_id=MAILBOX, name="INBOX", new_name="Attic", maildir=room.maildir, at=NOW
    )


def delete_then_fail(room: Mailroom, connection: Connection) -> None:
    mailboxes.delete_folder(connection, mailbox_id=MAILBOX, name="Archive", maildir=room.maildir)
    raise Crash("before the commit")


def rename_then_fail(room: Mailroom, connection: Connection) -> None:
    rename(room, connection)
    raise Crash("before the commit")


def move_then_fail(room: Mailroom, connection: Connection) -> None:
    move(room, connection)
    raise Crash("before the commit")


def step_then_fail(room: Mailroom, connection: Connection) -> None:
    step(room, connection)
    raise Crash("before the commit")


ACTS = [move, step, rename, rename_inbox, delete_then_fail, rename_then_fail, move_then_fail, step_then_fail]


def messages(room: Mailroom) -> list[tuple[bytes, int, tuple[str, ...]]]:
    """All messages of the inbox with content, flags and keywords, held against the files there are."""
    found = []
    names = room.read(lambda c: mailboxes.folders(c, mailbox_id=MAILBOX))
    room.folders = {folder.name: folder for folder in names}
    files = 0
    for name in room.folders:
        for entry in room.entries(name):
            content = room.maildir.entry_path(MAILBOX, name, entry).read_bytes()
            assert len(content) == entry.octets
            found.append((content, entry.flags, entry.keywords))
        files += len(room.files(name))
    assert files == len(found)
    return sorted(found)


@pytest.mark.parametrize("stop", range(STEPS))
@pytest.mark.parametrize("act", ACTS)
def test_an_interrupted_unit_loses_and_doubles_nothing(
    room: Mailroom,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Mailroom, Connection], None],
    stop: int,
) -> None:
    before = messages(room)
    with crashing(monkeypatch, stop), suppress(Crash):
        room.write(lambda c: act(room, c))
    report = reconcile(Store(room.database, room.maildir, room.directory / "spool"), at=NOW)
    assert report.problems == ()
    assert messages(room) == before
    again = reconcile(Store(room.database, room.maildir, room.directory / "spool"), at=NOW)
    assert (again.messages_received, again.messages_expunged, again.problems) == (0, 0, ())
    assert messages(room) == before


@pytest.mark.parametrize("stop", range(4))
def test_an_interrupted_removal_is_finished(
    room: Mailroom, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    before = messages(room)
    gone = room.expunge([1, 2])
    with crashing(monkeypatch, stop), suppress(Crash):
        room.write(lambda c: step(room, c))
    reconcile(Store(room.database, room.maildir, room.directory / "spool"), at=NOW)
    left = messages(room)
    assert len(left) == len(before) - len(gone)
    assert {content for content, _, _ in left} < {content for content, _, _ in before}
