"""What a folder shows: counts, snapshots, renditions, and flags as they change."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from storage import mailboxes
from storage.db import Database, Notice
from storage.errors import BadName, Full, Missing
from storage.mailboxes import FlagMode, Stored
from storage.records import Flag
from tests.storage.mailroom import (
    CONTENT,
    NOW,
    Mailroom,
    open_mailroom,
    store,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders."""
    return open_mailroom(database, tmp_path)


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
