"""Lists beside the mail say what the database says, a moment later and at little cost."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import listing, lists, mailboxes
from storage.db import Database
from storage.listing import Listing
from storage.lists import FOLDER_FILE, INBOX_FILE, FolderList
from storage.mailboxes import FlagMode
from storage.mirroring import Mirroring
from storage.records import Flag
from storage.tombstones import prune
from tests.storage.mailroom import MAILBOX, NOW, Mailroom, open_mailroom


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    return open_mailroom(database, tmp_path)


@pytest.fixture
def listed(room: Mailroom) -> Listing:
    made = Listing(room.database, room.maildir)
    room.database.listen(made.heard)
    made.run()
    return made


def found(room: Mailroom, folder: str = "INBOX") -> FolderList:
    """A folder's list, held against its rows."""
    octets = (room.path(folder) / FOLDER_FILE).read_bytes()
    read = lists.read(octets)
    assert read is not None
    assert read.is_sound
    row = room.folder(folder)
    entries = {entry.name: (entry.uid, " ".join(entry.keywords)) for entry in room.entries(folder)}
    assert {name: (one.uid, one.keywords) for name, one in read.live.items()} == entries
    seal = read.seal
    assert (seal.uidvalidity, seal.uidnext, seal.modseq) == (row.uidvalidity, row.uidnext, row.highestmodseq)
    assert (seal.special_use, seal.subscribed) == (row.special_use, row.subscribed)
    assert seal.live == len(entries)
    return read


def mark(room: Mailroom, uids: list[int], *words: str, flags: int = 0) -> None:
    folder_id = room.folders["INBOX"].id
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=folder_id, uids=uids, mode=FlagMode.SET, flags=flags, keywords=words
        )
    )


def test_a_new_inbox_is_described_and_all_its_folders_are_listed(room: Mailroom, listed: Listing) -> None:
    for name in room.folders:
        assert found(room, name).live == {}
    facts = lists.read_line((room.path() / INBOX_FILE).read_bytes().rstrip(b"\n"))
    assert facts is not None
    assert (facts["id"], facts["address"], facts["organization"]["id"]) == (MAILBOX, "a@ours.test", "org_a")
    assert not listed.is_due


def test_what_arrives_changes_and_goes_is_appended(room: Mailroom, listed: Listing) -> None:
    room.add(3)
    listed.run()
    before = (room.path() / FOLDER_FILE).read_bytes()
    mark(room, [1, 2], "blue", "green")
    room.add(2, keywords="new")
    room.expunge([3])
    listed.run()
    assert len(found(room).live) == 4
    mark(room, [1])
    room.expunge([4])
    listed.run()
    read = found(room)
    assert read.live[room.entries()[0].name].keywords == ""
    assert len(read.gone) == 2
    assert (room.path() / FOLDER_FILE).read_bytes().startswith(before)


def test_names_of_any_kind_are_listed(room: Mailroom, listed: Listing) -> None:
    room.add(2)
    room.write(lambda c: c.exec_driver_sql("UPDATE entries SET name = name || ',\"\\ ü\n'") and None)
    mark(room, [1, 2], "x")
    listed.run()
    found(room)


def test_another_process_goes_on_where_one_ended(room: Mailroom, listed: Listing) -> None:
    room.add(2)
    listed.run()
    room.add(1)
    before = (room.path() / FOLDER_FILE).read_bytes()
    fresh = Listing(room.database, room.maildir)
    fresh.run()
    assert len(found(room).live) == 3
    after = (room.path() / FOLDER_FILE).read_bytes()
    assert after.startswith(before)
    Listing(room.database, room.maildir).run()
    assert (room.path() / FOLDER_FILE).read_bytes() == after


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * 200, b'{"new": []}\n'])
def test_a_damaged_end_is_written_anew(room: Mailroom, listed: Listing, damage: bytes) -> None:
    room.add(2)
    listed.run()
    path = room.path() / FOLDER_FILE
    path.write_bytes(path.read_bytes()[:-7] + damage)
    Listing(room.database, room.maildir).run()
    found(room)


def test_a_list_half_out_of_date_is_written_anew(
    room: Mailroom, listed: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LEAST_DEAD", 10)
    room.add(5)
    for number in range(20):
        mark(room, [1, 2], f"k{number}")
        listed.run()
        assert found(room).seal.dead <= 12
    assert (room.path() / FOLDER_FILE).stat().st_size < 3000


def test_many_messages_take_several_lines(
    room: Mailroom, listed: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LINE_MESSAGES", 7)
    monkeypatch.setattr(listing, "CHANGES", 7)
    room.add(21)
    listed.run()
    assert len(found(room).live) == 21
    mark(room, list(range(1, 20)), "blue")
    listed.run()
    assert found(room).seal.dead == 0


def test_forgotten_expunges_make_a_list_anew(room: Mailroom, listed: Listing) -> None:
    room.add(4)
    listed.run()
    room.expunge([1, 2])
    prune(room.database, at=NOW, keep=0)
    fresh = Listing(room.database, room.maildir)
    fresh.run()
    assert found(room).gone == set()


def test_a_renamed_folder_takes_its_list_along(room: Mailroom, listed: Listing) -> None:
    room.add(2, folder="Archive")
    listed.run()

    def unit(connection: Connection) -> None:
        mailboxes.rename_folder(
            connection, mailbox_id=MAILBOX, name="Archive", new_name="Attic", maildir=room.maildir
        )
        mailboxes.create_folder(connection, mailbox_id=MAILBOX, name="Archive", at=NOW)

    room.write(unit)
    listed.run()
    assert len(found(room, "Attic").live) == 2
    assert found(room, "Archive").live == {}


def test_subscription_is_in_the_list(room: Mailroom, listed: Listing) -> None:
    room.write(lambda c: mailboxes.set_subscribed(c, mailbox_id=MAILBOX, name="Sent", subscribed=False))
    listed.run()
    assert not found(room, "Sent").seal.subscribed


def test_no_directory_is_made_where_the_mail_is_missing(room: Mailroom, listed: Listing) -> None:
    room.add(2)
    listed.run()
    room.maildir.mailbox_path(MAILBOX).rename(room.directory / "elsewhere")
    mark(room, [1], "blue")
    listed.run()
    Listing(room.database, room.maildir).run()
    assert not room.maildir.mailbox_path(MAILBOX).exists()
    (room.directory / "elsewhere").rename(room.maildir.mailbox_path(MAILBOX))
    mark(room, [1], "green")
    listed.run()
    found(room)


def test_a_deleted_folder_gets_no_directory_again(room: Mailroom, listed: Listing) -> None:
    room.add(1, folder="Archive")
    room.write(lambda c: mailboxes.delete_folder(c, mailbox_id=MAILBOX, name="Archive", maildir=room.maildir))
    listed.run()
    assert not room.path("Archive").exists()


def test_a_step_costs_the_same_in_a_large_folder(room: Mailroom, listed: Listing) -> None:
    room.add(3000, files=False)
    listed.run()
    size = (room.path() / FOLDER_FILE).stat().st_size
    mark(room, [1500], "blue", flags=int(Flag.SEEN))
    room.add(1)
    listed.run()
    assert (room.path() / FOLDER_FILE).stat().st_size - size < 500


def test_the_thread_lists_soon_and_at_its_end(room: Mailroom) -> None:
    mirroring = Mirroring(room.database, room.maildir, pause_seconds=0.01)
    mirroring.start()
    room.add(3)
    pause = threading.Event()
    for _ in range(500):
        path = room.path() / FOLDER_FILE
        if path.exists() and (read := lists.read(path.read_bytes())) is not None and len(read.live) == 3:
            break
        pause.wait(0.02)
    mark(room, [1], "blue")
    mirroring.close()
    found(room)
