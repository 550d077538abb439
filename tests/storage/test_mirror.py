"""The mirror: file names say what the database says, later and in bounded steps."""

import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from storage import mailboxes
from storage.db import Database
from storage.mailboxes import FlagMode
from storage.mirror import mirror
from storage.mirroring import Mirroring
from storage.records import Flag
from tests.storage.mailroom import MAILBOX, NOW, Mailroom, open_mailroom


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders."""
    return open_mailroom(database, tmp_path)


def store(room: Mailroom, uids: list[int], mode: FlagMode, flags: int, *keywords: str) -> None:
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=room.folders["INBOX"].id, uids=uids, mode=mode, flags=flags, keywords=keywords
        )
    )


def step(room: Mailroom, limit: int = 256) -> int:
    return mirror(room.database, maildir=room.maildir, limit=limit).files


def letters(room: Mailroom) -> list[str]:
    return [name.partition(":2,")[2] for name in sorted(os.listdir(room.path() / "cur"))]


def test_flags_become_letters_and_files_leave_new(room: Mailroom) -> None:
    uids = room.add(2)
    store(room, uids[:1], FlagMode.ADD, Flag.SEEN | Flag.ANSWERED | Flag.FLAGGED)
    assert len(os.listdir(room.path() / "new")) == 2
    assert step(room) == 1
    assert letters(room) == ["FRS"]
    assert len(os.listdir(room.path() / "new")) == 1
    assert room.is_consistent()
    assert step(room) == 0


def test_flags_taken_away_leave_the_file_in_cur(room: Mailroom) -> None:
    uids = room.add(1, flags=Flag.SEEN)
    store(room, uids, FlagMode.SET, 0)
    step(room)
    assert letters(room) == [""]
    assert room.is_consistent()


def test_a_step_renames_no_more_than_its_limit(room: Mailroom) -> None:
    uids = room.add(5)
    store(room, uids, FlagMode.ADD, Flag.SEEN)
    assert [step(room, limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert letters(room) == ["S"] * 5
    assert room.is_consistent()


def test_mirroring_gives_out_no_modseq_and_tells_nobody(room: Mailroom) -> None:
    uids = room.add(1)
    store(room, uids, FlagMode.ADD, Flag.SEEN)
    before, heard = room.folder(), len(room.notices)
    step(room)
    assert room.folder() == before
    assert len(room.notices) == heard


def test_keywords_alone_rename_nothing(room: Mailroom) -> None:
    uids = room.add(1)
    store(room, uids, FlagMode.ADD, 0, "work")
    assert step(room) == 0


def test_letters_of_other_programs_are_kept(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN)
    path = room.path() / room.files()[0]
    path.rename(path.with_name(path.name + "ab"))
    room.write(lambda c: c.exec_driver_sql("UPDATE entries SET mirrored = 'Sab'") and None)
    store(room, [1], FlagMode.ADD, Flag.FLAGGED)
    step(room)
    assert letters(room) == ["FSab"]
    assert room.is_consistent()


def test_a_file_that_is_not_there_is_left_to_the_scan(room: Mailroom) -> None:
    uids = room.add(2)
    (room.path() / room.files()[0]).unlink()
    store(room, uids, FlagMode.ADD, Flag.SEEN)
    assert step(room) == 1
    assert step(room) == 0
    states = [(entry.subdirectory, entry.mirrored) for entry in room.entries()]
    assert states == [("new", ""), ("cur", "S")]


def test_a_large_deleted_folder_goes_step_by_step(room: Mailroom) -> None:
    room.folders["a"] = room.write(lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="a", at=NOW))
    room.add(10, folder="a")
    room.write(lambda c: mailboxes.delete_folder(c, mailbox_id=MAILBOX, name="a", maildir=room.maildir))
    left = []
    while True:
        done = step(room, limit=4)
        left.append(sum(len(files) for _, _, files in os.walk(room.maildir.mailbox_path(MAILBOX))))
        if done < 4:
            break
    assert len(left) >= 3
    assert left[-1] == 0
    assert all(before - after <= 4 for before, after in pairwise(left))


def test_the_thread_mirrors_soon_after_a_change(room: Mailroom) -> None:
    uids = room.add(300)
    mirroring = Mirroring(room.database, room.maildir, pause_seconds=0.01)
    mirroring.start()
    store(room, uids, FlagMode.ADD, Flag.SEEN)
    settled = threading.Event()
    for _ in range(500):
        if not room.rows("SELECT 1 FROM entries WHERE mirror_due = 1 LIMIT 1"):
            break
        settled.wait(0.02)
    mirroring.close()
    assert letters(room) == ["S"] * 300


def test_closing_the_thread_mirrors_what_is_due(room: Mailroom) -> None:
    mirroring = Mirroring(room.database, room.maildir, pause_seconds=3600)
    mirroring.start()
    uids = room.add(1)
    store(room, uids, FlagMode.ADD, Flag.SEEN)
    mirroring.close()
    assert letters(room) == ["S"]
