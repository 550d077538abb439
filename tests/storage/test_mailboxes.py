"""Folders and messages as IMAP and the API ask for them: UIDs, MODSEQs, flags, copies, expunges."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import folders as folder_rows
from storage import mailboxes
from storage.db import Database, Notice
from storage.errors import BadName, Conflict, Full, Missing
from storage.folders import DIRECTORY_OCTETS, LEVELS
from storage.mailboxes import FlagMode, Stored
from storage.mirror import mirror
from storage.records import Flag
from tests.storage.conftest import Opener
from tests.storage.mailroom import CONTENT, MAILBOX, NOW, Mailroom, open_mailroom

SECOND = 1_000_000


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders."""
    return open_mailroom(database, tmp_path)


def create(room: Mailroom, name: str, at: int = NOW) -> mailboxes.Snapshot:
    folder = room.write(lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name=name, at=at))
    room.folders[folder.name] = folder
    return room.read(lambda c: mailboxes.snapshot(c, folder_id=folder.id))


def rename(room: Mailroom, name: str, new_name: str) -> None:
    room.write(
        lambda c: mailboxes.rename_folder(
            c, mailbox_id=MAILBOX, name=name, new_name=new_name, maildir=room.maildir, at=NOW
        )
    )


def delete(room: Mailroom, name: str) -> None:
    room.write(lambda c: mailboxes.delete_folder(c, mailbox_id=MAILBOX, name=name, maildir=room.maildir))


def names(room: Mailroom) -> list[str]:
    return [folder.name for folder in room.read(lambda c: mailboxes.folders(c, mailbox_id=MAILBOX))]


def store(
    room: Mailroom,
    uids: Sequence[int],
    mode: FlagMode,
    flags: int = 0,
    *keywords: str,
    unchanged_since: int | None = None,
) -> Stored:
    return room.write(
        lambda c: mailboxes.store_flags(
            c,
            folder_id=room.folders["INBOX"].id,
            uids=uids,
            mode=mode,
            flags=flags,
            keywords=keywords,
            unchanged_since=unchanged_since,
        )
    )


def transfer(room: Mailroom, uids: Sequence[int], target: str, *, is_move: bool) -> list[tuple[int, int]]:
    act = mailboxes.move if is_move else mailboxes.copy
    source_id, target_id = room.folders["INBOX"].id, room.folders[target].id
    return room.write(
        lambda c: act(
            c, maildir=room.maildir, source_id=source_id, target_id=target_id, uids=uids, at=NOW + SECOND
        )
    )


def vanished(room: Mailroom, folder: str = "INBOX", since: int = 0) -> list[int]:
    folder_id = room.folders[folder].id
    return room.read(lambda c: mailboxes.changes(c, folder_id=folder_id, since=since)).vanished


# ---- folders ----


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


# ---- reading ----


def test_counts_agree_with_the_messages(room: Mailroom) -> None:
    room.add(3)
    room.add(2, flags=Flag.SEEN | Flag.DELETED)
    folder = room.folder()
    counts = room.read(lambda c: mailboxes.counts(c, folder_id=folder.id))
    assert (counts.messages, counts.unseen, counts.deleted, counts.recent) == (5, 3, 2, 5)
    assert counts.octets == 5 * len(CONTENT)
    assert (counts.uidnext, counts.uidvalidity) == (6, folder.uidvalidity)
    assert counts.highestmodseq == folder.highestmodseq


def test_counts_of_an_empty_folder_are_nothing(room: Mailroom) -> None:
    counts = room.read(lambda c: mailboxes.counts(c, folder_id=room.folder().id))
    assert (counts.messages, counts.unseen, counts.deleted, counts.octets, counts.recent) == (0, 0, 0, 0, 0)
    snapshot = room.read(lambda c: mailboxes.snapshot(c, folder_id=room.folder().id))
    assert (list(snapshot.uids), snapshot.keywords) == ([], {})


def test_a_snapshot_is_in_order_of_uids(room: Mailroom) -> None:
    room.add(2)
    room.add(1, flags=Flag.SEEN, keywords="$Junk work")
    snapshot = room.read(lambda c: mailboxes.snapshot(c, folder_id=room.folder().id))
    assert list(snapshot.uids) == [1, 2, 3]
    assert list(snapshot.flags) == [0, 0, int(Flag.SEEN)]
    assert snapshot.modseqs[0] == snapshot.modseqs[1] < snapshot.modseqs[2]
    assert snapshot.keywords == {3: ("$Junk", "work")}


def test_recent_is_claimed_once(room: Mailroom) -> None:
    room.add(2)
    folder_id = room.folder().id
    claim = lambda: room.write(lambda c: mailboxes.claim_recent(c, folder_id=folder_id))  # noqa: E731
    assert claim() == (1, 3)
    assert claim() == (3, 3)
    room.add(1)
    assert claim() == (3, 4)


def test_renditions_have_the_file_and_the_columns_asked_for(room: Mailroom) -> None:
    uids = room.add(3)
    folder_id = room.folder().id
    rows = room.read(
        lambda c: mailboxes.renditions(c, folder_id=folder_id, uids=uids[1:], columns=("envelope", "text"))
    )
    assert [(row.uid, row.octets, row.envelope, row.text) for row in rows] == [
        (2, len(CONTENT), b"(NIL)", "hello"),
        (3, len(CONTENT), b"(NIL)", "hello"),
    ]
    rows = room.read(lambda c: mailboxes.renditions(c, folder_id=folder_id, uids=[2], columns=()))
    assert (rows[0].subdirectory, rows[0].mirrored, rows[0].internal_date) == ("new", "", NOW + 1)


def test_a_column_that_is_none_is_refused(room: Mailroom) -> None:
    with pytest.raises(ValueError, match="no such columns"):
        room.read(
            lambda c: mailboxes.renditions(c, folder_id=1, uids=[1], columns=("text FROM settings; --",))
        )


@pytest.mark.parametrize("uids", [[], [1, 3], range(2, 4), range(3, 1, -1), range(1, 6, 2), [3, 1, 3], [99]])
def test_any_sequence_of_uids_selects_just_those(room: Mailroom, uids: Sequence[int]) -> None:
    room.add(5)
    found = room.read(lambda c: mailboxes.entries(c, folder_id=room.folder().id, uids=uids))
    assert [entry.uid for entry in found] == sorted(set(uids) & {1, 2, 3, 4, 5})


# ---- flags ----


def test_flags_are_added_removed_and_set_under_one_modseq(room: Mailroom) -> None:
    uids = room.add(3)
    for mode, flags, expected in (
        (FlagMode.ADD, Flag.SEEN | Flag.FLAGGED, Flag.SEEN | Flag.FLAGGED),
        (FlagMode.REMOVE, Flag.FLAGGED | Flag.DRAFT, Flag.SEEN),
        (FlagMode.SET, Flag.DELETED, Flag.DELETED),
    ):
        before = room.folder().highestmodseq
        done = store(room, uids, mode, flags)
        assert done == Stored([(uid, before + 1, int(expected), ()) for uid in uids], [])
        assert room.folder().highestmodseq == before + 1
        assert [entry.flags for entry in room.entries()] == [int(expected)] * 3
        assert room.notices[-1] == Notice("folder", str(room.folder().id), before + 1)


def test_what_changes_nothing_gives_out_no_modseq(room: Mailroom) -> None:
    uids = room.add(2, flags=Flag.SEEN, keywords="a")
    before, heard = room.folder(), len(room.notices)
    assert store(room, uids, FlagMode.ADD, Flag.SEEN) == Stored()
    assert store(room, uids, FlagMode.ADD, 0, "A") == Stored()
    assert store(room, uids, FlagMode.REMOVE, Flag.DRAFT, "b") == Stored()
    assert store(room, uids, FlagMode.SET, Flag.SEEN, "a") == Stored()
    assert store(room, [], FlagMode.ADD, Flag.DRAFT) == Stored()
    assert store(room, [77], FlagMode.ADD, Flag.DRAFT) == Stored()
    assert room.folder() == before
    assert len(room.notices) == heard


def test_keywords_keep_their_case_and_meet_without_it(room: Mailroom) -> None:
    uids = room.add(2)
    assert store(room, uids, FlagMode.ADD, 0, "Work", "$Junk").changed[0][3] == ("Work", "$Junk")
    assert store(room, uids[:1], FlagMode.ADD, Flag.SEEN, "WORK", "x").changed == [
        (1, room.folder().highestmodseq, int(Flag.SEEN), ("Work", "$Junk", "x"))
    ]
    store(room, uids, FlagMode.REMOVE, 0, "work")
    assert [entry.keywords for entry in room.entries()] == [("$Junk", "x"), ("$Junk",)]
    store(room, uids, FlagMode.SET, 0)
    assert [entry.keywords for entry in room.entries()] == [(), ()]
    assert [entry.flags for entry in room.entries()] == [0, 0]


@pytest.mark.parametrize("keyword", ["", "a b", "a\n", "\u00e9", "x" * 129])
def test_an_impossible_keyword_is_refused(room: Mailroom, keyword: str) -> None:
    uids = room.add(1)
    with pytest.raises(BadName):
        store(room, uids, FlagMode.ADD, 0, keyword)


def test_a_message_has_a_bounded_number_of_keywords(room: Mailroom) -> None:
    uids = room.add(1)
    store(room, uids, FlagMode.ADD, 0, *(f"k{number}" for number in range(64)))
    with pytest.raises(Full):
        store(room, uids, FlagMode.ADD, 0, "more")
    with pytest.raises(Full):
        store(room, uids, FlagMode.SET, 0, *(f"k{number}" for number in range(65)))


def test_unchanged_since_spares_what_changed_meanwhile(room: Mailroom) -> None:
    uids = room.add(3)
    known = room.folder().highestmodseq
    store(room, [2], FlagMode.ADD, Flag.FLAGGED)
    done = store(room, uids, FlagMode.ADD, Flag.SEEN, unchanged_since=known)
    assert [change[0] for change in done.changed] == [1, 3]
    assert done.failed == [2]
    assert store(room, uids, FlagMode.SET, Flag.SEEN, unchanged_since=0) == Stored([], uids)


def test_flags_of_a_folder_that_is_gone_are_missing(room: Mailroom) -> None:
    with pytest.raises(Missing):
        room.write(lambda c: mailboxes.store_flags(c, folder_id=99, uids=[1], mode=FlagMode.ADD, flags=1))


def test_changes_tell_all_since_a_modseq(room: Mailroom) -> None:
    room.add(4)
    since = room.folder().highestmodseq
    store(room, [2], FlagMode.ADD, Flag.SEEN, "k")
    room.expunge([3])
    room.add(1)
    changes = room.read(lambda c: mailboxes.changes(c, folder_id=room.folder().id, since=since))
    assert changes.changed == [(2, since + 1, int(Flag.SEEN), ("k",)), (5, since + 3, 0, ())]
    assert changes.vanished == [3]
    assert (changes.highestmodseq, changes.uidnext) == (since + 3, 6)
    now = room.read(lambda c: mailboxes.changes(c, folder_id=room.folder().id, since=since + 3))
    assert (now.changed, now.vanished) == ([], [])


# ---- copy, move, expunge ----


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
