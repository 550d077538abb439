"""Folders of an inbox: made, renamed, deleted, named and subscribed."""

import os
from pathlib import Path

import pytest

from storage import folders as folder_rows
from storage import mailboxes
from storage.db import Database, Notice
from storage.errors import BadName, Conflict, Full, Missing
from storage.folders import DIRECTORY_OCTETS, LEVELS
from storage.mirror import mirror
from storage.records import Flag
from tests.storage.mailroom import (
    CONTENT,
    MAILBOX,
    NOW,
    SECOND,
    Mailroom,
    create,
    delete,
    names,
    open_mailroom,
    rename,
    vanished,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders."""
    return open_mailroom(database, tmp_path)


def test_a_new_inbox_has_its_special_folders_subscribed(room: Mailroom) -> None:
    found = room.read(lambda c: mailboxes.folders(c, mailbox_id=MAILBOX))
    assert [(folder.name, folder.special_use) for folder in found] == [
        ("INBOX", ""),
        ("Archive", "\\Archive"),
        ("Drafts", "\\Drafts"),
        ("Junk", "\\Junk"),
        ("Sent", "\\Sent"),
        ("Trash", "\\Trash"),
    ]
    assert all(folder.subscribed for folder in found)
    assert len({folder.uidvalidity for folder in found}) == len(found)
    assert all((folder.uidnext, folder.highestmodseq) == (1, 1) for folder in found)


def test_parents_are_made_with_a_folder(room: Mailroom) -> None:
    create(room, "Projects/2027/March")
    assert {"Projects", "Projects/2027", "Projects/2027/March"} <= set(names(room))
    assert not room.folder("Projects").subscribed


def test_a_folder_that_exists_is_a_conflict(room: Mailroom) -> None:
    for name in ("Sent", "INBOX", "inbox"):
        with pytest.raises(Conflict):
            create(room, name)


def test_a_special_use_is_given_once(room: Mailroom) -> None:
    with pytest.raises(Conflict):
        room.write(
            lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="Out", at=NOW, special_use="\\Sent")
        )
    with pytest.raises(BadName):
        room.write(
            lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="Out", at=NOW, special_use="\\X")
        )


def test_names_are_normal_forms(room: Mailroom) -> None:
    create(room, "Cafe\u0301")
    assert "Caf\u00e9" in names(room)
    create(room, "iNbOx/Bills")
    assert "INBOX/Bills" in names(room)
    assert room.folder("inbox").name == "INBOX"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a//b",
        "/a",
        "a/",
        "a\x00b",
        "a\r\nb",
        "a\x7f",
        "a\u0085b",
        "a\u2028b",
        "\ud800",
        "x" * (DIRECTORY_OCTETS + 1),
        "\u00e9" * 100,
        "/".join("a" * (LEVELS + 1)),
    ],
)
def test_impossible_names_are_refused(room: Mailroom, name: str) -> None:
    with pytest.raises(BadName):
        create(room, name)
    assert room.read(lambda c: mailboxes.find_folder(c, mailbox_id=MAILBOX, name=name)) is None


def test_an_inbox_has_a_bounded_number_of_folders(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_rows, "FOLDERS", len(room.folders) + 2)
    with pytest.raises(Full):
        create(room, "a/b/c")
    create(room, "a/b")
    assert set(names(room)) - set(room.folders) == {"a"}


def test_a_folder_of_no_inbox_is_missing(room: Mailroom) -> None:
    with pytest.raises(Missing):
        room.write(lambda c: mailboxes.create_folder(c, mailbox_id="inb_none", name="a", at=NOW))


def test_making_a_folder_tells_of_the_mailbox(room: Mailroom) -> None:
    create(room, "a")
    assert Notice("mailbox", MAILBOX) in room.notices


def test_subscription_is_kept(room: Mailroom) -> None:
    for subscribed in (False, True):
        room.write(
            lambda c, subscribed=subscribed: mailboxes.set_subscribed(
                c, mailbox_id=MAILBOX, name="Sent", subscribed=subscribed
            )
        )
        assert room.folder("Sent").subscribed is subscribed
    for name in ("none", "a//b"):
        with pytest.raises(Missing):
            room.write(
                lambda c, name=name: mailboxes.set_subscribed(
                    c, mailbox_id=MAILBOX, name=name, subscribed=True
                )
            )


def test_a_folder_made_again_has_another_uidvalidity(room: Mailroom) -> None:
    seen = set()
    for at in (NOW, NOW, NOW - 3600 * SECOND, NOW + 3600 * SECOND):
        folder = create(room, "a", at).folder
        assert folder.uidvalidity not in seen
        assert not seen or folder.uidvalidity > max(seen)
        seen.add(folder.uidvalidity)
        delete(room, "a")


def test_deleting_a_folder_takes_its_messages_and_leaves_its_children(room: Mailroom) -> None:
    create(room, "a/b")
    room.folders["a"] = room.folder("a")
    room.add(3, folder="a")
    room.add(1, folder="a/b")
    gone = room.folders.pop("a")
    delete(room, "a")
    assert "a" not in names(room)
    assert "a/b" in names(room)
    assert room.used() == len(CONTENT)
    assert not room.path("a").exists()
    assert room.is_consistent()
    for reading in (mailboxes.snapshot, mailboxes.counts):
        with pytest.raises(Missing):
            room.read(lambda c, reading=reading: reading(c, folder_id=gone.id))
    assert any(notice.topic == "folder" and notice.key == str(gone.id) for notice in room.notices)


def test_the_files_of_a_deleted_folder_go_with_the_mirror(room: Mailroom) -> None:
    create(room, "a")
    room.add(5, folder="a")
    delete(room, "a")
    create(room, "a")
    uids = room.add(1, folder="a")
    for _ in range(5):
        mirror(room.database, maildir=room.maildir, limit=2)
    assert sorted(os.listdir(room.maildir.mailbox_path(MAILBOX))) == [".a", "cur", "new", "tmp"]
    assert room.rows("SELECT * FROM removals") == []
    assert [entry.uid for entry in room.entries("a")] == uids
    assert room.is_consistent()


def test_inbox_is_not_deleted(room: Mailroom) -> None:
    with pytest.raises(Conflict):
        delete(room, "inbox")
    with pytest.raises(Missing):
        delete(room, "none")


def test_a_renamed_folder_keeps_its_uids_and_takes_its_children_along(room: Mailroom) -> None:
    create(room, "a/b")
    create(room, "ab")
    room.folders["a"] = room.folder("a")
    uids = room.add(2, folder="a", flags=Flag.SEEN)
    room.add(1, folder="a/b")
    before = room.folder("a")
    rename(room, "a", "x.y/Z\u00fcrich")
    assert set(names(room)) >= {"x.y", "x.y/Z\u00fcrich", "x.y/Z\u00fcrich/b", "ab"}
    assert "a" not in names(room)
    after = room.folder("x.y/Z\u00fcrich")
    assert (after.id, after.uidvalidity, after.uidnext) == (before.id, before.uidvalidity, before.uidnext)
    assert [entry.uid for entry in room.entries("x.y/Z\u00fcrich")] == uids
    assert (room.maildir.mailbox_path(MAILBOX) / ".x&AC4-y.Z&APw-rich.b" / "new").is_dir()
    room.folders = {name: room.folder(name) for name in names(room)}
    assert room.is_consistent()


@pytest.mark.parametrize(
    ("name", "new_name"), [("a", "Sent"), ("a", "a"), ("a", "a/c"), ("a", "inbox"), ("Sent", "a")]
)
def test_a_rename_onto_a_folder_is_a_conflict(room: Mailroom, name: str, new_name: str) -> None:
    create(room, "a")
    before = names(room)
    with pytest.raises(Conflict):
        rename(room, name, new_name)
    assert names(room) == before


def test_a_rename_of_nothing_is_missing(room: Mailroom) -> None:
    with pytest.raises(Missing):
        rename(room, "none", "other")


def test_a_rename_onto_a_foreign_directory_changes_nothing(room: Mailroom) -> None:
    for name in ("a", "a/b"):
        create(room, name)
        room.add(1, folder=name)
    (room.maildir.mailbox_path(MAILBOX) / ".x.b" / "cur").mkdir(parents=True)
    with pytest.raises(Conflict):
        rename(room, "a", "x")
    assert room.is_consistent()


def test_renaming_inbox_moves_its_messages(room: Mailroom) -> None:
    room.add(3, keywords="one")
    create(room, "INBOX/Child")
    rename(room, "INBOX", "Old/Mail")
    assert room.entries() == []
    assert room.folder("INBOX/Child")
    room.folders = {name: room.folder(name) for name in names(room)}
    moved = room.entries("Old/Mail")
    assert [entry.uid for entry in moved] == [1, 2, 3]
    assert {entry.keywords for entry in moved} == {("one",)}
    assert vanished(room) == [1, 2, 3]
    assert room.is_consistent()
