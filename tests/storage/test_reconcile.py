"""Differences between files and database, of every kind, found, healed and reported."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert

from storage import mailboxes, schema
from storage.db import Database
from storage.mailboxes import FlagMode
from storage.maildir import Maildir, copy_name
from storage.reconcile import STALE_SECONDS, Report, as_dict, reconcile
from storage.records import Flag, Rendered
from storage.rendition import plain
from tests.storage.mailroom import CONTENT, MAILBOX, NOW, Mailroom, open_mailroom, rendition_values
from tests.storage.queued import message_values

SECOND = 1_000_000


@dataclass(frozen=True)
class Store:
    """What reconcile needs of a store."""

    database: Database
    maildir: Maildir
    spool: Path
    render: Callable[[bytes], Rendered] = plain

    def message_path(self, message_id: str) -> Path:
        return self.spool / message_id


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders, and directories for all of them."""
    room = open_mailroom(database, tmp_path)
    (tmp_path / "spool").mkdir()
    for name in room.folders:
        room.maildir.ensure(MAILBOX, name)
    return room


def heal(room: Mailroom) -> dict[str, object]:
    """Reconcile and return what is other than nothing."""
    report = reconcile(Store(room.database, room.maildir, room.directory / "spool"), at=NOW)
    facts = as_dict(report)
    assert (facts.pop("mailboxes"), facts.pop("folders") >= 0) == (1, True)
    return {name: value for name, value in facts.items() if value}


def age(path: Path, seconds: int) -> None:
    moment = NOW // SECOND - seconds
    os.utime(path, (moment, moment))


def queue(room: Mailroom, message_id: str, *, state: str, spooled: int = 1) -> Path:
    """Put a message with one delivery into the queue, and its copy into the spool."""

    def unit(connection: Connection) -> None:
        connection.execute(insert(schema.messages).values(message_values(message_id, spooled=spooled)))
        connection.execute(
            insert(schema.deliveries).values(
                id=f"dlv_{message_id}",
                organization_id="org_a",
                message_id=message_id,
                recipient="r@peer.test",
                domain="peer.test",
                state=state,
                priority=0,
                tries=0,
                created_at=NOW,
                next_attempt_at=None,
                expires_at=NOW,
                updated_at=NOW,
            )
        )

    room.write(unit)
    path = room.directory / "spool" / message_id
    path.write_bytes(CONTENT)
    return path


def test_a_store_in_order_is_left_as_it_is(room: Mailroom) -> None:
    room.add(3)
    room.add(2, folder="Archive", flags=Flag.SEEN)
    before = room.folder()
    assert heal(room) == {}
    assert room.folder() == before


def test_every_count_of_a_report_is_in_its_json(room: Mailroom) -> None:
    facts = as_dict(Report(problems=("one",)))
    assert facts["problems"] == ["one"]
    assert set(facts) == set(Report.__slots__)


def test_messages_without_files_are_expunged(room: Mailroom) -> None:
    room.add(3)
    (room.path() / room.files()[0]).unlink()
    assert heal(room) == {"messages_expunged": 1}
    assert [entry.uid for entry in room.entries()] == [2, 3]


def test_files_without_messages_are_received(room: Mailroom) -> None:
    for number in range(150):
        (room.path("Junk") / "new" / f"{number}.P.host").write_bytes(CONTENT)
    assert heal(room) == {"messages_received": 150}
    assert len(room.entries("Junk")) == 150
    assert room.used() == 150 * len(CONTENT)
    assert heal(room) == {}


def test_what_a_crash_left_of_an_expunge_is_removed(room: Mailroom) -> None:
    room.add(2)
    room.expunge([1])
    assert heal(room) == {"files_mirrored": 1}
    assert len(room.files()) == 1


def test_names_are_brought_up_to_the_flags(room: Mailroom) -> None:
    uids = room.add(300)
    folder_id = room.folders["INBOX"].id
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=folder_id, uids=uids, mode=FlagMode.ADD, flags=int(Flag.SEEN)
        )
    )
    assert heal(room) == {"files_mirrored": 300}
    assert room.is_consistent()


def test_what_a_failed_copy_left_is_removed(room: Mailroom) -> None:
    room.add(1)
    archive = room.folders["Archive"].id
    name = copy_name(at=NOW, uid=1, folder_id=archive)
    os.link(room.path() / room.files()[0], room.path("Archive") / "new" / name)
    room.add(1, folder="Archive")
    assert heal(room) == {"leftover_files_removed": 1}


@pytest.mark.parametrize(
    "left",
    [
        lambda whole: whole,
        lambda whole: bytes(len(whole)),
        lambda whole: whole[:4096] + bytes(len(whole) - 4096),
        lambda whole: bytes(4096) + whole[4096:],
        lambda whole: whole[:100],
    ],
    ids=["whole", "zeros", "first-page", "other-pages", "beginning"],
)
def test_what_a_failed_copy_left_is_removed_when_the_message_was_written_anew(room: Mailroom, left) -> None:
    # A power cut took the first name of the file, not the copy's; recovery wrote the message again.
    for number in (1, 2):
        room.add(1, content=b"Subject: %d\r\n\r\n" % number + b"line %d\r\n" % number * 2000)
    archive = room.folders["Archive"].id
    for uid, name in enumerate(room.files(), 1):
        copied = room.path("Archive") / "new" / copy_name(at=NOW, uid=uid, folder_id=archive)
        copied.write_bytes(left((room.path() / name).read_bytes()))
    other = room.path("Archive") / "new" / copy_name(at=NOW, uid=3, folder_id=archive)
    other.write_bytes(b"Subject: z\r\n\r\n")
    assert heal(room) == {"leftover_files_removed": 2, "messages_received": 1}


def test_missing_directories_of_empty_folders_are_made(room: Mailroom) -> None:
    room.write(lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="a/b", at=NOW))
    assert heal(room) == {"directories_made": 2}
    assert (room.maildir.mailbox_path(MAILBOX) / ".a.b" / "cur").is_dir()
    assert heal(room) == {}


def test_only_what_was_lost_or_done_from_outside_is_worth_a_warning(
    room: Mailroom, caplog: pytest.LogCaptureFixture
) -> None:
    room.write(lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="a/b", at=NOW))
    with caplog.at_level("INFO", "storage.reconcile"):
        heal(room)
        (room.path() / "new" / "1.P.host").write_bytes(CONTENT)
        heal(room)
        heal(room)
    assert [one.levelname for one in caplog.records] == ["INFO", "WARNING"]


def test_a_rename_without_a_commit_is_undone(room: Mailroom) -> None:
    room.add(2, folder="Archive")
    room.maildir.rename(MAILBOX, "Archive", "Attic")
    assert heal(room) == {"directories_restored": 1}
    assert room.is_consistent()
    assert len(room.entries("Archive")) == 2


def test_a_deletion_without_a_commit_is_undone(room: Mailroom) -> None:
    room.add(2, folder="Archive")
    room.maildir.put_out_of_sight(MAILBOX, "Archive", room.folders["Archive"].id)
    assert heal(room) == {"directories_restored": 1}
    assert room.is_consistent()


def test_a_committed_deletion_is_finished(room: Mailroom) -> None:
    room.add(2, folder="Archive")
    room.write(lambda c: mailboxes.delete_folder(c, mailbox_id=MAILBOX, name="Archive", maildir=room.maildir))
    del room.folders["Archive"]
    found = heal(room)
    assert set(found) == {"files_mirrored"}
    assert sorted(os.listdir(room.path()))[0] == ".Drafts"
    assert heal(room) == {}


def test_a_directory_that_another_program_made_becomes_a_folder(room: Mailroom) -> None:
    path = room.maildir.mailbox_path(MAILBOX) / ".From.Z&APw-rich"
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True)
    (path / "cur" / "1.P.host:2,S").write_bytes(CONTENT)
    assert heal(room) == {"folders_adopted": 1, "directories_made": 1, "messages_received": 1}
    assert room.folder("From/Z\u00fcrich")
    assert heal(room) == {}


@pytest.mark.parametrize("name", [".a..b", ".&broken", ".a&AGE-", "." + "a." * 40 + "a"])
def test_a_directory_that_can_be_no_folder_is_reported(room: Mailroom, name: str) -> None:
    path = room.maildir.mailbox_path(MAILBOX) / name
    (path / "cur").mkdir(parents=True)
    problems = heal(room)["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 1
    assert str(path) in problems[0]
    assert path.is_dir()


def test_a_folder_that_another_program_removed_loses_its_messages(room: Mailroom) -> None:
    room.add(2, folder="Archive")
    for path in sorted(room.path("Archive").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    room.path("Archive").rmdir()
    assert heal(room) == {"directories_made": 1, "messages_expunged": 2}


def test_nothing_is_concluded_where_the_mailbox_is_not_there(room: Mailroom) -> None:
    room.add(2)
    room.add(1, folder="Archive")
    room.maildir.mailbox_path(MAILBOX).rename(room.directory / "elsewhere")
    found = heal(room)
    assert set(found) == {"problems"}
    assert len(room.entries()) == 2
    (room.directory / "elsewhere").rename(room.maildir.mailbox_path(MAILBOX))
    assert heal(room) == {}


def test_a_directory_of_no_mailbox_is_reported_and_kept(room: Mailroom) -> None:
    stray = room.maildir.root / "inb_stray"
    (stray / "cur").mkdir(parents=True)
    assert heal(room) == {"problems": [f"{stray} belongs to no mailbox"]}
    assert stray.is_dir()


def test_only_stale_files_go_from_tmp(room: Mailroom) -> None:
    old, young = room.path() / "tmp" / "old", room.path("Archive") / "tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"")
    age(old, STALE_SECONDS + 1)
    age(young, STALE_SECONDS - 1)
    assert heal(room) == {"stale_files_removed": 1}
    assert (old.exists(), young.exists()) == (False, True)


def test_copies_of_finished_messages_leave_the_spool(room: Mailroom) -> None:
    done, waiting = queue(room, "msg_done", state="delivered"), queue(room, "msg_waits", state="deferred")
    settled = queue(room, "msg_settled", state="bounced", spooled=0)
    assert heal(room) == {"spool_files_removed": 2}
    assert (done.exists(), waiting.exists(), settled.exists()) == (False, True, False)
    assert room.rows("SELECT id FROM messages WHERE spooled = 1") == [("msg_waits",)]


def test_a_copy_that_is_not_yet_applied_stays_in_the_spool(room: Mailroom) -> None:
    young, old = (room.directory / "spool" / name for name in ("msg_young", "msg_old"))
    for path, seconds in ((young, 10), (old, STALE_SECONDS + 1)):
        path.write_bytes(CONTENT)
        age(path, seconds)
    assert heal(room) == {"spool_files_removed": 1}
    assert (young.exists(), old.exists()) == (True, False)


def test_a_copy_that_the_queue_misses_is_reported(room: Mailroom) -> None:
    queue(room, "msg_waits", state="deferred").unlink()
    assert heal(room) == {"problems": ["message msg_waits waits for delivery and its file is gone"]}


def test_sums_are_corrected(room: Mailroom) -> None:
    room.add(3)
    room.write(lambda c: c.exec_driver_sql("UPDATE mailboxes SET used_octets = 7") and None)
    assert heal(room) == {"sums_corrected": 1}
    assert room.used() == 3 * len(CONTENT)


def test_what_was_rendered_of_messages_that_are_nowhere_is_erased(room: Mailroom) -> None:
    room.add(1)
    queue(room, "msg_done", state="delivered", spooled=0).unlink()
    queue(room, "msg_waits", state="deferred")
    rows = [rendition_values("msg_done"), rendition_values("msg_waits")]
    room.write(lambda c: c.execute(insert(schema.renditions), rows) and None)
    assert heal(room) == {"renditions_erased": 1}
    assert len(room.rows("SELECT 1 FROM renditions")) == 2
