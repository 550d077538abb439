"""Tombstones go by age and number, and a folder knows how far it has forgotten."""

from pathlib import Path

import pytest

from storage import mailboxes
from storage.db import Database
from storage.tombstones import prune
from tests.storage.mailroom import NOW, Mailroom, open_mailroom

DAY = 86_400_000_000


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    return open_mailroom(database, tmp_path)


def expunge(room: Mailroom, uids: list[int], *, days_ago: int = 0, folder: str = "INBOX") -> int:
    """Expunge; the folder's MODSEQ afterwards."""
    folder_id = room.folders[folder].id
    at = NOW - days_ago * DAY
    room.write(lambda c: mailboxes.expunge(c, maildir=room.maildir, folder_id=folder_id, uids=uids, at=at))
    return room.folder(folder).highestmodseq


def changes(room: Mailroom, since: int, folder: str = "INBOX") -> mailboxes.Changes:
    return room.read(lambda c: mailboxes.changes(c, folder_id=room.folders[folder].id, since=since))


def left(room: Mailroom) -> int:
    return int(room.rows("SELECT count(*) FROM tombstones")[0][0])


def test_old_tombstones_go_and_young_ones_stay(room: Mailroom) -> None:
    room.add(6)
    old = expunge(room, [1, 2], days_ago=100)
    expunge(room, [4], days_ago=10)
    assert prune(room.database, at=NOW) == 2
    assert left(room) == 1
    assert (changes(room, old).vanished, changes(room, old).present) == ([4], None)
    forgotten = changes(room, old - 1)
    assert forgotten.vanished == []
    assert list(forgotten.present or ()) == [3, 5, 6]
    assert prune(room.database, at=NOW) == 0


def test_a_folder_keeps_a_bounded_number(room: Mailroom) -> None:
    room.add(10)
    room.add(3, folder="Archive")
    first = expunge(room, [1, 2, 3])
    for uid in (4, 5, 6):
        expunge(room, [uid])
    expunge(room, [1, 2], folder="Archive")
    assert prune(room.database, at=NOW, keep=3) == 3
    assert changes(room, first).vanished == [4, 5, 6]
    assert changes(room, first - 1).present is not None
    assert changes(room, 0, "Archive").vanished == [1, 2]


def test_many_of_one_modseq_go_in_small_steps(room: Mailroom) -> None:
    room.add(50)
    expunge(room, list(range(1, 41)), days_ago=100)
    assert prune(room.database, at=NOW, step=7) == 40
    assert left(room) == 0


def test_the_word_on_what_is_forgotten_comes_before_the_forgetting(
    room: Mailroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.add(30)
    modseq = expunge(room, list(range(1, 21)), days_ago=100)
    write, count = Database.write, 0

    def once(self: Database, unit: object) -> object:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        return write(self, unit)  # type: ignore[arg-type]  # as it came

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", once)
        with pytest.raises(KeyboardInterrupt):
            prune(room.database, at=NOW, step=5)
    assert left(room) == 15
    assert changes(room, modseq - 1).present is not None
    assert changes(room, modseq).present is None


def test_a_folder_that_is_gone_stops_nobody(room: Mailroom) -> None:
    room.add(2)
    expunge(room, [1], days_ago=100)
    room.write(lambda c: c.exec_driver_sql("DELETE FROM tombstones") and None)
    assert prune(room.database, at=NOW) == 0
