"""Messages copied, moved and expunged, rows and files together, and many at once."""

import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import mailboxes
from storage.db import Database
from storage.errors import Full
from storage.mailboxes import FlagMode
from storage.mirror import mirror
from storage.records import Flag
from tests.storage.conftest import Opener
from tests.storage.mailroom import (
    CONTENT,
    MAILBOX,
    NOW,
    Mailroom,
    open_mailroom,
    store,
    transfer,
    vanished,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders."""
    return open_mailroom(database, tmp_path)


@pytest.mark.parametrize("is_move", [False, True])
def test_copies_keep_all_but_uid_and_modseq(room: Mailroom, is_move: bool) -> None:
    room.add(1, folder="Archive")
    room.add(2, flags=Flag.SEEN | Flag.FLAGGED, keywords="work")
    room.add(1)
    before = {entry.uid: entry for entry in room.entries()}
    pairs = transfer(room, [3, 1], "Archive", is_move=is_move)
    assert pairs == [(1, 2), (3, 3)]
    made = {entry.uid: entry for entry in room.entries("Archive")}
    for uid, new in pairs:
        for name in ("message_id", "flags", "keywords", "internal_date", "octets", "prefix_octets"):
            assert getattr(made[new], name) == getattr(before[uid], name)
    assert {made[2].modseq, made[3].modseq} == {room.folder("Archive").highestmodseq}
    assert room.is_consistent()
    for new in (2, 3):
        path = room.maildir.entry_path(MAILBOX, "Archive", made[new])
        assert path.read_bytes() == CONTENT
    assert [entry.uid for entry in room.entries()] == ([2] if is_move else [1, 2, 3])
    assert vanished(room) == ([1, 3] if is_move else [])
    assert room.used() == len(CONTENT) * (4 if is_move else 6)


def test_a_copy_shares_the_file(room: Mailroom) -> None:
    room.add(1)
    transfer(room, [1], "Archive", is_move=False)
    first, second = room.entries()[0], room.entries("Archive")[0]
    paths = [
        room.maildir.entry_path(MAILBOX, "INBOX", first),
        room.maildir.entry_path(MAILBOX, "Archive", second),
    ]
    assert os.path.samefile(*paths)


def test_a_copy_into_the_same_folder_is_another_message(room: Mailroom) -> None:
    room.add(2)
    assert transfer(room, range(1, 3), "INBOX", is_move=False) == [(1, 3), (2, 4)]
    assert transfer(room, [1], "INBOX", is_move=True) == [(1, 5)]
    assert [entry.uid for entry in room.entries()] == [2, 3, 4, 5]
    mirror(room.database, maildir=room.maildir)
    assert len(room.files()) == 4
    assert room.is_consistent()


def test_a_file_that_was_renamed_from_outside_is_copied_all_the_same(room: Mailroom) -> None:
    room.add(1)
    path = room.path() / room.files()[0]
    path.rename(room.path() / "cur" / (path.name + ":2,FS"))
    assert transfer(room, [1], "Archive", is_move=False) == [(1, 1)]
    assert (room.maildir.entry_path(MAILBOX, "Archive", room.entries("Archive")[0])).is_file()


@pytest.mark.parametrize("is_move", [False, True])
def test_a_message_whose_file_is_gone_is_left_out(room: Mailroom, is_move: bool) -> None:
    room.add(3)
    (room.path() / room.files()[1]).unlink()
    assert transfer(room, [1, 2, 3], "Archive", is_move=is_move) == [(1, 1), (3, 2)]
    assert room.folder("Archive").uidnext == 3
    assert [entry.uid for entry in room.entries()] == ([2] if is_move else [1, 2, 3])


def test_a_copy_of_nothing_changes_nothing(room: Mailroom) -> None:
    room.add(1)
    before = room.folder("Archive")
    assert transfer(room, [77], "Archive", is_move=False) == []
    assert transfer(room, [], "Archive", is_move=True) == []
    assert room.folder("Archive") == before


def test_a_copy_over_the_quota_is_refused_and_a_move_within_is_not(room: Mailroom) -> None:
    room.add(2)
    room.write(
        lambda c: c.exec_driver_sql(f"UPDATE mailboxes SET quota_octets = {2 * len(CONTENT)}") and None
    )
    with pytest.raises(Full):
        transfer(room, [1], "Archive", is_move=False)
    assert transfer(room, [1], "Archive", is_move=True) == [(1, 1)]


def test_a_copy_that_fails_leaves_no_file(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.add(3)
    link, made = os.link, []

    def failing(source: str, target: str) -> None:
        if len(made) == 2:
            raise OSError(5, "no link today")
        made.append(target)
        link(source, target)

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(OSError, match="no link today"):
        transfer(room, [1, 2, 3], "Archive", is_move=False)
    assert room.files("Archive") == []
    assert room.entries("Archive") == []


def test_a_file_system_without_links_gets_copies(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.add(1, flags=Flag.SEEN)

    def unlinked(source: str, target: str) -> None:
        raise OSError(31, "too many links")

    monkeypatch.setattr(os, "link", unlinked)
    transfer(room, [1], "Archive", is_move=False)
    copied = room.maildir.entry_path(MAILBOX, "Archive", room.entries("Archive")[0])
    assert copied.read_bytes() == CONTENT
    assert copied.stat().st_nlink == 1


def test_a_unit_that_runs_twice_makes_one_copy(room: Mailroom) -> None:
    room.add(1)
    runs: list[int] = []

    def unit(connection: Connection) -> list[tuple[int, int]]:
        pairs = mailboxes.copy(
            connection,
            maildir=room.maildir,
            source_id=room.folders["INBOX"].id,
            target_id=room.folders["Archive"].id,
            uids=[1],
            at=NOW,
        )
        runs.append(1)
        if len(runs) == 1:
            raise ZeroDivisionError
        return pairs

    with pytest.raises(ZeroDivisionError):
        room.write(unit)
    assert room.write(unit) == [(1, 1)]
    assert len(room.files("Archive")) == 1
    assert room.is_consistent()


def test_expunge_takes_what_is_deleted_and_leaves_tombstones(room: Mailroom) -> None:
    room.add(4)
    store(room, [2, 4], FlagMode.ADD, Flag.DELETED)
    before = room.folder().highestmodseq
    assert room.expunge(None) == [2, 4]
    assert [entry.uid for entry in room.entries()] == [1, 3]
    assert vanished(room, since=before) == [2, 4]
    assert vanished(room, since=before + 1) == []
    assert room.used() == 2 * len(CONTENT)
    assert room.expunge(None) == []
    assert room.folder().highestmodseq == before + 1


def test_uid_expunge_takes_only_what_bears_the_flag(room: Mailroom) -> None:
    room.add(3)
    store(room, [1, 2], FlagMode.ADD, Flag.DELETED)
    folder_id = room.folder().id
    gone = room.write(
        lambda c: mailboxes.expunge(
            c,
            maildir=room.maildir,
            folder_id=folder_id,
            uids=[2, 3],
            at=NOW,
            bearing=Flag.DELETED,
        )
    )
    assert gone == [2]
    assert room.expunge([3]) == [3]


def test_no_uid_is_given_twice(room: Mailroom) -> None:
    room.add(3)
    room.expunge([1, 2, 3])
    assert room.add(1) == [4]
    transfer(room, [4], "Archive", is_move=True)
    assert transfer(room, [], "Archive", is_move=True) == []
    assert room.add(1) == [5]


def test_files_of_expunged_messages_go_with_the_mirror(room: Mailroom) -> None:
    room.add(3)
    path = room.path() / room.files()[1]
    path.rename(room.path() / "cur" / (path.name + ":2,S"))  # whatever it is called meanwhile
    room.expunge([1, 2])
    assert len(room.files()) == 3
    assert mirror(room.database, maildir=room.maildir).files == 2
    assert len(room.files()) == 1
    assert room.rows("SELECT * FROM removals") == []
    assert room.is_consistent()


def test_what_was_rendered_goes_with_the_last_entry(room: Mailroom) -> None:
    room.add(2)
    transfer(room, [1], "Archive", is_move=False)
    room.expunge([1, 2])
    kept = room.entries("Archive")[0].message_id
    assert room.rows("SELECT message_id FROM renditions") == [(kept,)]
    room.expunge([1], "Archive")
    assert room.rows("SELECT message_id FROM renditions") == []
    assert len(room.rows("SELECT id FROM messages")) == 2


def test_what_was_rendered_stays_while_the_queue_needs_the_message(room: Mailroom) -> None:
    room.add(1)
    room.write(lambda c: c.exec_driver_sql("UPDATE messages SET spooled = 1") and None)
    room.expunge([1])
    assert len(room.rows("SELECT message_id FROM renditions")) == 1


def test_copy_move_and_expunge_are_on_the_timeline(room: Mailroom) -> None:
    room.add(1)
    transfer(room, [1], "Archive", is_move=False)
    transfer(room, [1], "Trash", is_move=True)
    room.expunge([1], "Trash")
    rows = room.rows("SELECT kind, data, organization_id, mailbox_id FROM events ORDER BY seq")
    assert [row[0] for row in rows] == ["message.copied", "message.moved", "message.expunged"]
    assert rows[1][1] == '{"folder":"Trash","uid":1,"source":"INBOX"}'
    assert {row[2:] for row in rows} == {("org_a", MAILBOX)}
    assert any(notice.topic == "events" for notice in room.notices)


# ---- many at once ----


@pytest.mark.whole
def test_ten_thousand_messages_take_few_statements(room: Mailroom) -> None:
    uids = room.add(10_000, files=False)
    store(room, uids[::2], FlagMode.ADD, Flag.SEEN, "even")
    store(room, uids, FlagMode.ADD, Flag.FLAGGED)
    counts = room.read(lambda c: mailboxes.counts(c, folder_id=room.folder().id))
    assert (counts.messages, counts.unseen) == (10_000, 5_000)
    statements = []

    def unit(connection: Connection) -> None:
        raw = connection.connection.dbapi_connection
        if hasattr(raw, "set_trace_callback"):
            raw.set_trace_callback(statements.append)
        try:
            mailboxes.store_flags(
                connection,
                folder_id=room.folders["INBOX"].id,
                uids=uids[1::3],
                mode=FlagMode.REMOVE,
                flags=0,
                keywords=("even",),
            )
        finally:
            if hasattr(raw, "set_trace_callback"):
                raw.set_trace_callback(None)

    room.write(unit)
    assert len(statements) < 10
    assert len(room.expunge(uids[::3])) == 3334


def test_two_writers_never_give_out_the_same_number(room: Mailroom, reopen: Opener) -> None:
    databases = [room.database, reopen()]
    room.add(1)
    room.add(1, folder="Archive")
    pairs: list[list[tuple[int, int]]] = [[], []]

    def run(index: int) -> None:
        ends = ["INBOX", "Archive"] if index else ["Archive", "INBOX"]
        source_id, target_id = (room.folders[name].id for name in ends)
        for number in range(20):
            pairs[index] += databases[index].write(
                lambda c, number=number: mailboxes.copy(
                    c,
                    maildir=room.maildir,
                    source_id=source_id,
                    target_id=target_id,
                    uids=[1],
                    at=NOW + number,
                )
            )

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert [pair[1] for pair in pairs[index]] == list(range(2, 22))
    assert room.is_consistent()
