"""Whatever ends the mirror between two of its steps, the database's word about flags wins."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from storage import mailboxes
from storage import mirror as mirroring
from storage.db import Database
from storage.mailboxes import FlagMode
from storage.mirror import mirror
from storage.reconcile import reconcile
from storage.records import Flag
from storage.rendition import plain
from storage.scan import scan
from tests.storage.mailroom import MAILBOX, NOW, Mailroom, open_mailroom
from tests.storage.test_reconcile import Store


class Ended(Exception):
    """The process ended here."""


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    room = open_mailroom(database, tmp_path)
    (tmp_path / "spool").mkdir()
    for name in room.folders:
        room.maildir.ensure(MAILBOX, name)
    room.add(1)
    return room


def put(room: Mailroom, flags: int) -> None:
    folder_id = room.folders["INBOX"].id
    room.write(
        lambda c: mailboxes.store_flags(c, folder_id=folder_id, uids=[1], mode=FlagMode.SET, flags=flags)
    )


def announce(room: Mailroom) -> dict[tuple[int, int], bool]:
    return room.write(lambda c: mirroring._announce(c, 256))


def carry_out(room: Mailroom, due: dict[tuple[int, int], bool], *, ends: bool = False) -> None:
    def unit(connection: Connection) -> None:
        mirroring._carry_out(connection, room.maildir, due, 256)
        if ends:
            raise Ended

    room.write(unit)


def after_announcing(room: Mailroom) -> None:
    announce(room)


def before_the_commit(room: Mailroom) -> None:
    with pytest.raises(Ended):
        carry_out(room, announce(room), ends=True)


def before_the_sync(room: Mailroom) -> None:
    carry_out(room, announce(room))


def by_a_power_cut(room: Mailroom) -> None:
    """The row has the new name, the disk lost it."""
    (before,) = room.files()
    carry_out(room, announce(room))
    (after,) = room.files()
    os.rename(room.path() / after, room.path() / before)


def not_at_all(room: Mailroom) -> None:
    mirror(room.database, maildir=room.maildir)


def look(room: Mailroom) -> None:
    scan(room.database, maildir=room.maildir, folder_id=room.folders["INBOX"].id, render=plain, at=NOW)


def settle(room: Mailroom) -> None:
    while mirror(room.database, maildir=room.maildir).again:
        pass


def heal(room: Mailroom) -> None:
    reconcile(Store(room.database, room.maildir, room.directory / "spool"), at=NOW)


ENDS = [after_announcing, before_the_commit, before_the_sync, by_a_power_cut, not_at_all]
ORDERS: list[tuple[Callable[[Mailroom], Any], ...]] = [(look, settle), (settle, look), (heal,)]


@pytest.mark.parametrize("order", ORDERS, ids=["scan first", "mirror first", "reconcile"])
@pytest.mark.parametrize(
    "marks",
    [(0, int(Flag.SEEN), 0), (int(Flag.SEEN), 0, int(Flag.SEEN)), (0, int(Flag.SEEN), int(Flag.FLAGGED)),
     (int(Flag.SEEN), int(Flag.SEEN | Flag.FLAGGED), None)],
)  # fmt: skip
@pytest.mark.parametrize("end", ENDS)
def test_a_flag_is_what_the_database_says(
    room: Mailroom,
    end: Callable[[Mailroom], None],
    marks: tuple[int, int, int | None],
    order: tuple[Callable[[Mailroom], Any], ...],
) -> None:
    first, then, last = marks
    put(room, first)
    settle(room)
    put(room, then)
    end(room)
    if last is not None:
        put(room, last)
    modseq = room.folder().highestmodseq
    for act in order:
        act(room)
    (entry,) = room.entries()
    assert entry.flags == (then if last is None else last)
    assert room.folder().highestmodseq == modseq
    settle(room)
    assert room.is_consistent()
    assert room.files()[0].partition(":2,")[2] == mirroring.info(entry.flags)


@pytest.mark.parametrize("end", ENDS)
def test_what_another_program_did_meanwhile_counts(room: Mailroom, end: Callable[[Mailroom], None]) -> None:
    put(room, int(Flag.SEEN))
    end(room)
    (name,) = room.files()
    base, _, letters = name.partition("/")[2].partition(":2,")
    os.rename(room.path() / name, room.path() / "cur" / f"{base}:2,{''.join(sorted(letters + 'R'))}")
    look(room)
    settle(room)
    look(room)
    (entry,) = room.entries()
    assert entry.flags == int(Flag.SEEN | Flag.ANSWERED)
    assert room.is_consistent()


def test_an_expunged_message_is_forgotten_only_when_its_file_is_gone_for_good(
    room: Mailroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = room.files()
    content = (room.path() / name).read_bytes()
    room.expunge([1])
    with monkeypatch.context() as patch:
        patch.setattr(mirroring, "sync_directory", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(OSError, match="broken"):
            mirror(room.database, maildir=room.maildir)
    assert room.files() == []
    (room.path() / name).write_bytes(content)  # the power cut undid the removal
    heal(room)
    assert room.files() == []
    assert room.entries() == []
    assert room.rows("SELECT * FROM removals") == []
