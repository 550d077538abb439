"""What foreign programs do in a Maildir is found and applied, and nothing of ours is mistaken for it."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from storage import mailboxes
from storage import scan as scanning
from storage.db import Database
from storage.errors import Missing
from storage.mailboxes import FlagMode
from storage.maildir import base_name, copy_name
from storage.records import Flag, Rendered
from storage.rendition import plain
from storage.scan import BATCH_FILES, scan
from tests.storage.mailroom import (
    CONTENT,
    FOREIGN,
    INSTANCE,
    NOTHING,
    NOW,
    Mailroom,
    done,
    flag,
    look,
    open_mailroom,
    put,
    read,
    render,
    settle,
    with_directories,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders, and directories for all of them."""
    return with_directories(open_mailroom(database, tmp_path))


# ---- new files ----


def test_a_file_delivered_from_outside_becomes_a_message(room: Mailroom) -> None:
    room.add(1)
    path = put(room, "new/1700000000.P1Q1.host")
    os.utime(path, ns=(0, 1_700_000_000_123_456_000))
    assert done(look(room)) == (1, 0, 0, 0)
    entry = room.entries()[1]
    assert (entry.uid, entry.flags, entry.octets, entry.prefix_octets) == (2, 0, len(FOREIGN), 0)
    assert entry.internal_date == 1_700_000_000_123_456
    assert entry.modseq == room.folder().highestmodseq
    message = room.rows("SELECT * FROM messages WHERE id = ?", entry.message_id)[0]
    assert (message.source, message.organization_id, message.octets) == ("append", "org_a", len(FOREIGN))
    assert bytes(message.digest) == hashlib.sha256(FOREIGN).digest()
    assert len(room.rows("SELECT 1 FROM renditions WHERE message_id = ?", entry.message_id)) == 1
    events = room.rows("SELECT kind, data FROM events WHERE message_id = ?", entry.message_id)
    assert [tuple(row) for row in events] == [
        ("message.received", '{"folder":"INBOX","uid":2,"found":"maildir"}')
    ]
    assert room.used() == len(CONTENT) + len(FOREIGN)
    assert {notice.topic for notice in room.notices} >= {"folder", "events"}
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_letters_of_a_delivered_file_become_flags(room: Mailroom) -> None:
    put(room, "cur/1.P1.host:2,FSa")
    look(room)
    entry = room.entries()[0]
    assert (entry.flags, entry.mirrored) == (int(Flag.SEEN | Flag.FLAGGED), "FSa")
    assert room.is_consistent()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cur/1.P1.host", "cur/1.P1.host:2,"),
        ("new/1.P1.host:2,S", "cur/1.P1.host:2,S"),
        ("new/1.P1.host:2,", "new/1.P1.host"),
        ("cur/1.P1.host:1,x", "cur/1.P1.host:1,x:2,"),
        ("cur/1.caf\udce9.host:2,S", "cur/1.caf%E9.host:2,S"),
        ("new/caf\u00e9", "new/caf\u00e9"),
    ],
)
def test_odd_names_are_made_fit(room: Mailroom, name: str, expected: str) -> None:
    put(room, name)
    assert done(look(room)) == (1, 0, 0, 0)
    assert room.files() == [expected]
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_line_ends_become_crlf_under_a_new_name(room: Mailroom) -> None:
    path = put(room, "new/1.P1.host,S=40,W=45", b"Subject: x\n\nbare\nlines\r\nand a NUL \0.\n")
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    assert done(look(room)) == (1, 0, 0, 0)
    fit = b"Subject: x\r\n\r\nbare\r\nlines\r\nand a NUL \x80.\r\n"
    assert read(room, 1) == fit
    assert room.files() == [f"new/1.P1.host,S={len(fit)}"]
    assert room.entries()[0].octets == len(fit)
    assert room.entries()[0].internal_date == 1_700_000_000_000_000
    assert done(look(room)) == NOTHING


def test_a_rewriting_that_was_cut_short_leaves_no_second_message(room: Mailroom) -> None:
    content = b"Subject: x\n\nbare\n"
    put(room, "new/1.P1.host", content)
    look(room)
    put(room, "new/1.P1.host", content)  # as if the old name had not yet been unlinked
    look(room)
    assert len(room.files()) == 1
    assert len(room.entries()) == 1


def test_what_cannot_be_rendered_is_received_all_the_same(room: Mailroom) -> None:
    def failing(content: bytes) -> Rendered:
        raise RecursionError

    put(room, "new/1.P1.host")
    assert done(look(room, renderer=failing)) == (1, 0, 0, 0)
    assert read(room, 1) == FOREIGN


def test_what_is_no_message_is_left_alone(room: Mailroom, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (room.path() / "new" / "link").symlink_to(tmp_path / "secret")
    (room.path() / "new" / "directory").mkdir()
    os.mkfifo(room.path() / "cur" / "pipe:2,")
    put(room, "new/.hidden")
    scanned = look(room)
    assert done(scanned) == NOTHING
    assert not scanned.again
    assert room.entries() == []
    assert (room.path() / "new" / "link").is_symlink()


def test_many_new_files_come_in_batches(room: Mailroom) -> None:
    for number in range(BATCH_FILES + 3):
        put(room, f"new/{number}.P.host")
    first = look(room)
    assert (first.received, first.again) == (BATCH_FILES, True)
    second = look(room)
    assert (second.received, second.again) == (3, False)
    assert room.is_consistent()


def test_a_reply_joins_the_thread_it_refers_to(room: Mailroom) -> None:
    def threaded(content: bytes) -> Rendered:
        name, _, parent = content.decode("ascii").partition(" ")
        values = {name: getattr(plain(content), name) for name in Rendered.__slots__}
        return Rendered(**{**values, "message_id": f"<{name}@x>", "references": f"<y@x> <{parent}@x>"})

    for number, text in enumerate(("one none", "two one", "three else")):
        put(room, f"new/{number}", text.encode("ascii"))
        look(room, renderer=threaded)
    threads = [row[0] for row in room.rows("SELECT thread_id FROM messages ORDER BY id")]
    assert threads[0] == threads[1] != threads[2]


# ---- our own files ----


def test_our_own_file_in_flight_is_left_alone(room: Mailroom) -> None:
    room.add(1)
    name = base_name(at=NOW, sequence=room.sequence + 1, index=0, instance=INSTANCE)
    put(room, f"new/{name}")
    assert done(look(room)) == NOTHING
    assert len(room.entries()) == 1
    put(room, "new/" + base_name(at=NOW, sequence=9, index=0, instance="otherone"))
    assert done(look(room)) == (1, 0, 0, 0)


def test_a_file_of_ours_that_came_back_is_a_message_again(room: Mailroom) -> None:
    room.add(1)
    name = room.files()[0]
    room.expunge([1])
    settle(room)
    put(room, name)
    assert done(look(room)) == (1, 0, 0, 0)
    assert [entry.uid for entry in room.entries()] == [2]


def test_the_file_of_an_expunged_message_does_not_come_back(room: Mailroom) -> None:
    room.add(2)
    room.expunge([1])
    assert done(look(room)) == NOTHING
    settle(room)
    assert done(look(room)) == NOTHING
    assert [entry.uid for entry in room.entries()] == [2]


def test_a_copy_in_flight_is_left_alone(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.add(1)
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["Archive"].id)
    os.link(room.path() / room.files()[0], room.path("Archive") / "new" / name)
    read_some = scanning._read_some

    def committing(*given: Any) -> Any:
        # The copy is committed between the comparison and the scan's own unit.
        found = {"source_id": room.folders["INBOX"].id, "target_id": room.folders["Archive"].id}
        room.write(lambda c: mailboxes.copy(c, maildir=room.maildir, uids=[1], at=NOW, **found))
        return read_some(*given)

    monkeypatch.setattr(scanning, "_read_some", committing)
    assert done(look(room, "Archive")) == NOTHING
    assert len(room.entries("Archive")) == 1
    assert room.is_consistent()


@pytest.mark.parametrize("is_uid_taken", [False, True])
def test_a_copy_that_was_undone_is_removed(room: Mailroom, is_uid_taken: bool) -> None:
    room.add(1)
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["Archive"].id)
    os.link(room.path() / room.files()[0], room.path("Archive") / "new" / name)
    if is_uid_taken:
        room.add(1, folder="Archive")
    assert done(look(room, "Archive")) == (0, 0, 0, 1)
    assert len(room.files("Archive")) == int(is_uid_taken)
    assert room.is_consistent()


def test_a_failed_copy_that_is_the_last_of_its_bytes_is_kept(room: Mailroom) -> None:
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["INBOX"].id)
    room.add(1)
    put(room, f"cur/{name}:2,S")
    assert done(look(room)) == (1, 0, 0, 0)


def test_mirroring_is_no_change_from_outside(room: Mailroom) -> None:
    uids = room.add(3)
    flag(room, uids, FlagMode.ADD, Flag.SEEN)
    assert done(look(room)) == NOTHING
    settle(room)
    assert done(look(room)) == NOTHING
    flag(room, uids, FlagMode.REMOVE, Flag.SEEN)
    settle(room)
    assert done(look(room)) == NOTHING
    assert {entry.flags for entry in room.entries()} == {0}


# ---- renames ----


def test_a_file_moved_to_cur_and_flagged_changes_flags(room: Mailroom) -> None:
    room.add(2)
    name = os.path.basename(room.files()[0])
    os.rename(room.path() / "new" / name, room.path() / "cur" / f"{name}:2,RS")
    before = room.folder().highestmodseq
    assert done(look(room)) == (0, 1, 0, 0)
    entry = room.entries()[0]
    assert (entry.flags, entry.subdirectory, entry.mirrored) == (int(Flag.ANSWERED | Flag.SEEN), "cur", "RS")
    assert entry.modseq == before + 1
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_moving_to_cur_alone_changes_no_modseq(room: Mailroom) -> None:
    room.add(2)
    names = [os.path.basename(path) for path in room.files()]
    os.rename(room.path() / "new" / names[0], room.path() / "cur" / f"{names[0]}:2,")
    os.rename(room.path() / "new" / names[1], room.path() / "cur" / names[1])
    before = room.folder()
    assert done(look(room)) == NOTHING
    assert room.folder() == before
    assert [entry.subdirectory for entry in room.entries()] == ["cur", "cur"]
    assert room.is_consistent()


def test_only_the_difference_to_what_was_mirrored_is_applied(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN)
    path = room.path() / room.files()[0]
    # One client takes \Seen and adds \Flagged; mutt, knowing neither, adds R.
    flag(room, [1], FlagMode.SET, Flag.FLAGGED)
    path.rename(path.with_name(path.name.replace(":2,S", ":2,RS")))
    assert done(look(room)) == (0, 1, 0, 0)
    assert room.entries()[0].flags == int(Flag.FLAGGED | Flag.ANSWERED)
    settle(room)
    assert room.files()[0].endswith(":2,FR")
    assert room.is_consistent()


def test_a_flag_taken_away_outside_is_taken_away(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN | Flag.FLAGGED)
    path = room.path() / room.files()[0]
    path.rename(path.with_name(path.name.replace(":2,FS", ":2,S")))
    look(room)
    assert room.entries()[0].flags == int(Flag.SEEN)
    assert settle(room) == 0


def test_keywords_survive_a_rename(room: Mailroom) -> None:
    room.add(1, keywords="work $Junk")
    name = os.path.basename(room.files()[0])
    os.rename(room.path() / "new" / name, room.path() / "cur" / f"{name}:2,S")
    look(room)
    assert room.entries()[0].keywords == ("work", "$Junk")


# ---- deletions ----


def test_a_deleted_file_becomes_an_expunge_with_a_tombstone(room: Mailroom) -> None:
    room.add(3)
    before = room.folder().highestmodseq
    (room.path() / room.files()[1]).unlink()
    assert done(look(room)) == (0, 0, 1, 0)
    changes = room.read(lambda c: mailboxes.changes(c, folder_id=room.folders["INBOX"].id, since=before))
    assert (changes.vanished, changes.highestmodseq) == ([2], before + 1)
    assert room.used() == 2 * len(CONTENT)
    assert room.is_consistent()


def test_a_file_moved_to_another_folder_is_moved(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN)
    path = room.path() / room.files()[0]
    path.rename(room.path("Archive") / "cur" / path.name)
    assert done(look(room)) == (0, 0, 1, 0)
    assert done(look(room, "Archive")) == (1, 0, 0, 0)
    assert read(room, 1, "Archive") == CONTENT
    assert room.entries("Archive")[0].flags == int(Flag.SEEN)


def test_nothing_is_concluded_from_a_directory_that_is_not_there(room: Mailroom) -> None:
    room.add(3)
    room.path().rename(room.directory / "elsewhere")
    scanned = look(room)
    assert done(scanned) == NOTHING
    assert scanned.missing
    assert len(room.entries()) == 3
    (room.directory / "elsewhere").rename(room.path())
    assert done(look(room)) == NOTHING


def test_a_deletion_is_not_believed_while_the_directory_changes(
    room: Mailroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.add(1)
    path = room.path() / room.files()[0]
    hidden = room.directory / "hidden"
    path.rename(hidden)
    stamps = scanning.stamps

    def returning(directory: Path) -> scanning.Stamps | None:
        found = stamps(directory)
        if not path.exists():
            hidden.rename(path)
        return found

    monkeypatch.setattr(
        scanning, "_confirm", lambda directory, difference: (difference, returning(directory) is not None)
    )
    scanned = look(room)
    assert (done(scanned), len(room.entries())) == (NOTHING, 1)


def test_a_scan_of_no_folder_is_missing(room: Mailroom) -> None:
    with pytest.raises(Missing):
        scan(room.database, maildir=room.maildir, folder_id=99, render=render, at=NOW)
