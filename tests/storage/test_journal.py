"""What the journal does with failing disks, damage and torn ends."""

import errno
import os
import struct
import zlib
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update

from storage import codec, schema, segments
from storage.errors import Corrupt, Full, StorageError
from storage.maildir import copy_name, file_name
from storage.reconcile import reconcile
from tests.storage.faults import Failing
from tests.storage.samples import (
    AT,
    accept,
    add_organization,
    content,
    deliver,
    file_octets,
    fill,
    local,
    mail_files,
    open_store,
    opened,
    record,
    remote,
    rows,
)

DIALECTS = ["sqlite"]  # the journal is the same whatever the database; test_store runs on both


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Journal:
    """A journal's directory as a crash would leave it: records written by hand."""

    def __init__(self, directory: Path, instance: str) -> None:
        self.path = directory / "journal" / instance
        self.instance = instance.encode()

    def encode(self, item, sequence: int) -> bytes:
        encoded = codec.encode(item)
        front = codec.header(encoded, instance=self.instance, sequence=sequence)
        return front + encoded.head + encoded.content

    def write(self, first: int, octets: bytes, *, padding: int = 0) -> Path:
        path = segments.segment_path(self.path, first)
        path.write_bytes(octets + bytes(padding))
        return path


@pytest.fixture
def journal(directory: Path, database_url: str) -> Journal:
    """A store that was closed, nothing in its journal."""
    with opened(directory, database_url) as store:
        fill(store.database)
    return Journal(directory, (directory / "instance").read_text().strip())


def test_failed_fdatasync_ends_accepting_and_is_never_a_success(directory: Path, database_url: str) -> None:
    files = Failing("fdatasync")
    with opened(directory, database_url, files=files) as store:
        fill(store.database)
        deliver(store, record())
        files.armed = True
        with pytest.raises(StorageError, match="until a restart"):
            deliver(store, record())
        files.armed = False
        with pytest.raises(StorageError, match="until a restart"):
            deliver(store, record())
        assert store.backlog_octets == 0
    with opened(directory, database_url) as store:
        assert len(mail_files(directory)) == 1
        deliver(store, record())
        assert len(mail_files(directory)) == 2


def test_failed_write_ends_accepting(directory: Path, database_url: str) -> None:
    files = Failing("pwritev")
    with opened(directory, database_url, files=files) as store:
        fill(store.database)
        files.armed = True
        for _ in range(2):
            with pytest.raises(StorageError, match="until a restart"):
                deliver(store, record())
        files.armed = False


def test_full_disk_refuses_and_accepting_goes_on_when_there_is_room(
    directory: Path, database_url: str
) -> None:
    files = Failing("pwritev", number=errno.ENOSPC)
    with opened(directory, database_url, files=files) as store:
        fill(store.database)
        deliver(store, record())
        files.armed = True
        for _ in range(3):
            with pytest.raises(Full):
                deliver(store, record())
        files.armed = False
        deliver(store, record())
        assert len(mail_files(directory)) == 2
        assert store.backlog_octets == 0


def test_segment_that_finds_no_room_refuses_and_is_made_later(directory: Path, database_url: str) -> None:
    files = Failing("open", "rename", number=errno.ENOSPC)
    with opened(directory, database_url, files=files) as store:
        fill(store.database)
        deliver(store, record(b"x" * 60_000, local=(), remote=()))
        files.armed = True
        with pytest.raises(Full):
            deliver(store, record(b"x" * 60_000, local=(), remote=()))
        files.armed = False
        deliver(store, record(b"x" * 60_000))
        assert len(mail_files(directory)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["open", "writev", "link", "rename"])
def test_failing_maildir_is_tried_again_until_it_works(
    directory: Path, database_url: str, call: str, number: int
) -> None:
    files = Failing(call, number=number, times=2)
    with opened(directory, database_url, files=files) as store:
        fill(store.database)
        same = b"X: y\r\n"
        files.armed = True
        item = record(local=(local(prefix=same), local("inb_1", prefix=same)))
        placed = deliver(store, item)
        assert files.seen == 2
        assert [place.uid for place in placed] == [1, 1]
        for target in item.local:
            assert list(mail_files(directory, target.mailbox_id).values()) == [file_octets(item, target)]


def test_closing_while_mail_cannot_be_applied_leaves_it_to_the_next_start(
    directory: Path, database_url: str
) -> None:
    files = Failing("rename")
    store = open_store(directory, database_url, files=files)
    fill(store.database)
    files.armed = True
    promises = [accept(store, record()) for _ in range(5)]
    assert all(promise.durable.wait(30) and promise.durable_error is None for promise in promises)
    store.close()
    assert all(isinstance(promise.applied_error, StorageError) for promise in promises)
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 5
        assert len(rows(store.database, schema.entries)) == len(mail_files(directory)) == 5


def test_unapplied_records_are_replayed_at_start(
    directory: Path, database_url: str, journal: Journal
) -> None:
    items = [record(), record(local=(local("inb_1"),), remote=(remote(),)), record()]
    octets = b"".join(journal.encode(item, number) for number, item in enumerate(items, 1))
    journal.write(1, octets, padding=5000)
    with opened(directory, database_url) as store:
        assert (store.recovery.applied, store.recovery.cut, store.recovery.set_aside) == (3, None, [])
        assert sorted(mail_files(directory).values()) == sorted(
            file_octets(item, item.local[0]) for item in (items[0], items[2])
        )
        assert store.message_path(items[1].message_id).exists()
        assert store.applied_sequence == 3
        deliver(store, record())
        assert store.applied_sequence == 4


def test_every_truncated_prefix_of_a_segment_gives_its_whole_records(journal: Journal) -> None:
    items = [record(content(str(number))) for number in range(3)]
    parts = [journal.encode(item, number) for number, item in enumerate(items, 1)]
    whole = b"".join(parts)
    ends = [sum(map(len, parts[: number + 1])) for number in range(3)]
    for length in range(len(whole) + 1):
        for padding in (0, 4096):
            path = journal.write(1, whole[:length], padding=padding)
            found = list(segments.read_segment(path, instance=journal.instance, after=0, behind=None))
            complete = sum(1 for end in ends if end <= length)
            # A cut inside trailing zeros of a record cannot be: no record ends with one here.
            assert [item.record for item in found if isinstance(item, segments.Found)] == items[:complete]
            rest = [item for item in found if not isinstance(item, segments.Found)]
            torn = length not in (0, *ends)
            assert [type(item) for item in rest] == ([segments.TornEnd] if torn else [])
            path.unlink()


@pytest.mark.parametrize("length", range(40, 1200, 97))
def test_store_opens_after_any_cut_and_delivers_whole_records_once(
    directory: Path, database_url: str, journal: Journal, length: int
) -> None:
    items = [record(content(str(number))) for number in range(3)]
    parts = [journal.encode(item, number) for number, item in enumerate(items, 1)]
    journal.write(1, b"".join(parts)[:length], padding=300)
    complete = sum(1 for number in range(3) if sum(map(len, parts[: number + 1])) <= length)
    for _ in range(2):
        with opened(directory, database_url) as store:
            assert sorted(mail_files(directory).values()) == sorted(
                file_octets(item, item.local[0]) for item in items[:complete]
            )
            assert len(rows(store.database, schema.entries)) == complete


def test_bad_record_before_valid_ones_is_set_aside_and_replay_goes_on(
    directory: Path, database_url: str, journal: Journal
) -> None:
    items = [record() for _ in range(4)]
    parts = [bytearray(journal.encode(item, number)) for number, item in enumerate(items, 1)]
    parts[1][-5] ^= 1
    journal.write(1, b"".join(parts))
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 3
        assert store.recovery.missing == [(2, 2)]
        (path,) = store.recovery.set_aside
        assert path.read_bytes() == bytes(parts[1])
        assert path.parent == directory / "aside"
        assert len(mail_files(directory)) == 3


def test_damaged_end_of_a_segment_that_is_not_the_last_is_set_aside(
    directory: Path, database_url: str, journal: Journal
) -> None:
    torn = journal.encode(record(), 2)[:-9]
    journal.write(1, journal.encode(record(), 1) + torn, padding=100)
    journal.write(3, journal.encode(record(), 3), padding=100)
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 2
        assert [path.read_bytes() for path in store.recovery.set_aside] == [torn]


def test_record_of_another_instance_or_sequence_is_no_record(journal: Journal) -> None:
    foreign = Journal(journal.path.parent.parent, "zzzzzzzz").encode(record(), 2)
    again = journal.encode(record(), 1)
    first = journal.encode(record(), 1)
    path = journal.write(1, first + foreign + again)
    found = list(segments.read_segment(path, instance=journal.instance, after=0, behind=None))
    assert [type(item) for item in found] == [segments.Found, segments.TornEnd]


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_records_of_an_earlier_segment_are_no_records_and_no_damage(
    directory: Path, database_url: str, journal: Journal, kept: int
) -> None:
    earlier = b"".join(journal.encode(record(content("old")), number) for number in range(1, 9))
    items = [record(content(str(number))) for number in range(10, 10 + kept)]
    own = b"".join(journal.encode(item, number) for number, item in enumerate(items, 10))
    journal.write(10, own + earlier[len(own) :])
    journal.write(10 + kept, earlier)
    with opened(directory, database_url) as store:
        assert store.recovery.applied == kept
        assert store.recovery.set_aside == []
        assert store.recovery.missing == []
        assert sorted(mail_files(directory).values()) == sorted(
            file_octets(item, item.local[0]) for item in items
        )


def test_a_record_lost_before_an_earlier_segments_records_is_told(
    directory: Path, database_url: str, journal: Journal
) -> None:
    earlier = b"".join(journal.encode(record(content("old")), number) for number in range(1, 9))
    own = journal.encode(record(), 10)
    lost = bytearray(journal.encode(record(), 11))
    lost[-5] ^= 1
    journal.write(10, own + lost + earlier[len(own) + len(lost) :])
    journal.write(12, journal.encode(record(), 12))
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 2
        assert store.recovery.missing == [(11, 11)]
        (path,) = store.recovery.set_aside
        assert path.read_bytes().startswith(bytes(lost))


def test_unknown_version_refuses_to_start(directory: Path, database_url: str, journal: Journal) -> None:
    octets = bytearray(journal.encode(record(), 1))
    octets[4:6] = struct.pack("<H", 9)
    size = codec.HEADER_OCTETS - 4
    octets[size : size + 4] = struct.pack("<I", zlib.crc32(octets[:size]))
    path = journal.write(1, bytes(octets))
    with pytest.raises(Corrupt, match="version 9"):
        open_store(directory, database_url)
    assert path.read_bytes() == bytes(octets)


def test_record_looking_like_content_is_not_replayed(journal: Journal) -> None:
    # A message cannot hold the zero octet of the magic; one that did would still be inside its record.
    inner = journal.encode(record(), 7)
    path = journal.write(1, journal.encode(record(b"Subject: x\r\n\r\n" + inner), 1))
    found = list(segments.read_segment(path, instance=journal.instance, after=0, behind=None))
    assert [item.sequence for item in found if isinstance(item, segments.Found)] == [1]


def applied_and_kept(directory: Path, database_url: str, *items) -> Path:
    """Apply records and leave their segment behind, as a crash before the checkpoint does."""
    store = open_store(directory, database_url)
    for item in items:
        deliver(store, item)
    (segment,) = directory.glob("journal/*/*.journal")
    kept = segment.read_bytes()
    store.close()
    segment.write_bytes(kept)
    return segment


def test_applied_record_with_right_files_changes_nothing(
    directory: Path, database_url: str, journal: Journal
) -> None:
    applied_and_kept(directory, database_url, record(), record(remote=(remote(),)))
    before = mail_files(directory)
    with opened(directory, database_url) as store:
        assert (store.recovery.applied, store.recovery.verified, store.recovery.rewritten) == (0, 2, 0)
        assert mail_files(directory) == before
        assert len(rows(store.database, schema.entries)) == 2


@pytest.mark.parametrize("octets", [0, 40])
def test_a_torn_file_is_mended_under_all_its_names(
    directory: Path, database_url: str, journal: Journal, octets: int
) -> None:
    # A copy was linked, its commit never came, and the content of both names was lost.
    applied_and_kept(directory, database_url, record())
    ((name, whole),) = mail_files(directory).items()
    path = directory / "mail/inb_0" / name
    copied = directory / "mail/inb_0/new" / copy_name(at=AT, uid=9, folder_id=1)
    os.link(path, copied)
    os.truncate(path, octets)
    with opened(directory, database_url) as store:
        assert store.recovery.rewritten == 1
        assert (path.read_bytes(), copied.read_bytes()) == (whole, whole)
        report = reconcile(store, at=AT)
        assert (report.leftover_files_removed, report.messages_received) == (1, 0)
        assert mail_files(directory) == {name: whole}


def test_an_empty_file_that_an_undone_copy_left_is_no_message(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        fill(store.database)
        deliver(store, record())
        (directory / "mail/inb_0/new" / copy_name(at=AT, uid=9, folder_id=1)).touch()
        report = reconcile(store, at=AT)
        assert (report.leftover_files_removed, report.messages_received) == (1, 0)


def test_applied_record_rewrites_a_missing_or_wrong_file(
    directory: Path, database_url: str, journal: Journal
) -> None:
    applied_and_kept(directory, database_url, *[record() for _ in range(4)])
    before = mail_files(directory)
    paths = [directory / "mail/inb_0" / name for name in before]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[::-1])
    with opened(directory, database_url) as store:
        assert store.recovery.rewritten == 3
        assert mail_files(directory) == before
        assert len(rows(store.database, schema.entries)) == 4


def test_applied_record_is_checked_under_its_present_name(
    directory: Path, database_url: str, journal: Journal
) -> None:
    applied_and_kept(directory, database_url, record(), record())
    (first, first_octets), (second, second_octets) = mail_files(directory).items()
    mailbox = directory / "mail/inb_0"
    moved = {mailbox / ("cur/" + name[4:] + ":2,S"): octets for name, octets in mail_files(directory).items()}
    for name, path in zip((first, second), moved, strict=True):
        os.rename(mailbox / name, path)
    list(moved)[1].write_bytes(b"torn")
    with opened(directory, database_url) as store:
        assert store.recovery.rewritten == 1
    assert mail_files(directory) == {str(path.relative_to(mailbox)): octets for path, octets in moved.items()}
    assert {first_octets, second_octets} == set(moved.values())


def test_applied_record_recreates_nothing_that_was_expunged_since(
    directory: Path, database_url: str, journal: Journal
) -> None:
    segment = applied_and_kept(directory, database_url, record(), record(local=(local("inb_1"),)))
    kept = segment.read_bytes()
    store = open_store(directory, database_url)
    assert store.recovery.verified == 2

    # Expunged: the entry is gone from the database, its file from the Maildir.
    def expunge(conn) -> None:
        gone = conn.execute(
            text("SELECT id FROM folders WHERE mailbox_id = 'inb_0' AND name = 'INBOX'")
        ).scalar()
        conn.execute(delete(schema.entries).where(schema.entries.c.folder_id == gone))

    store.database.write(expunge)
    for name in mail_files(directory):
        (directory / "mail/inb_0" / name).unlink()
    store.close()
    segment.write_bytes(kept)
    with opened(directory, database_url) as store:
        assert (store.recovery.verified, store.recovery.rewritten) == (2, 0)
        assert mail_files(directory) == {}
        assert len(rows(store.database, schema.entries)) == 1


def test_applied_record_follows_an_entry_that_was_moved(
    directory: Path, database_url: str, journal: Journal
) -> None:
    item = record()
    applied_and_kept(directory, database_url, item)
    store = open_store(directory, database_url)
    (segment,) = directory.glob("journal/*/*.journal")
    (entry,) = rows(store.database, schema.entries)
    store.maildir.ensure("inb_0", "Work/2026")

    def move(conn) -> None:
        (work,) = conn.execute(
            text("SELECT id FROM folders WHERE mailbox_id = 'inb_0' AND name = 'Work/2026'")
        ).scalars()
        conn.execute(update(schema.entries).values(folder_id=work, uid=9))

    store.database.write(move)
    root = directory / "mail/inb_0"
    os.rename(root / "new" / entry.name, root / ".Work.2026/new" / entry.name)
    store.close()
    octets = Journal(directory, (directory / "instance").read_text().strip()).encode(item, 1)
    segments.segment_path(segment.parent, 1).write_bytes(octets)
    (root / ".Work.2026/new" / entry.name).write_bytes(b"torn")
    with opened(directory, database_url) as store:
        assert store.recovery.rewritten == 1
        assert mail_files(directory) == {f".Work.2026/new/{entry.name}": file_octets(item, item.local[0])}


def test_applied_record_restores_the_queues_copy_only_while_it_is_needed(
    directory: Path, database_url: str, journal: Journal
) -> None:
    waiting, finished = record(remote=(remote(),)), record(remote=(remote(),))
    applied_and_kept(directory, database_url, waiting, finished)
    for item in (waiting, finished):
        (directory / "spool" / item.message_id).unlink()
    kept = {path: path.read_bytes() for path in directory.glob("journal/*/*.journal")}
    assert len(kept) == 1
    from storage.db import Database

    database = Database.open(database_url)
    database.write(
        lambda conn: conn.execute(
            update(schema.messages).where(schema.messages.c.id == finished.message_id).values(spooled=0)
        )
    )
    database.close()
    with opened(directory, database_url) as store:
        assert store.message_path(waiting.message_id).read_bytes() == waiting.trace + waiting.content
        assert not store.message_path(finished.message_id).exists()


@pytest.mark.parametrize("present", ["right", "seen", "short", "wrong"])
def test_unapplied_record_counts_an_existing_file_only_if_it_is_right(
    directory: Path, database_url: str, journal: Journal, present: str
) -> None:
    item = record()
    journal.write(1, journal.encode(item, 1))
    octets = file_octets(item, item.local[0])
    base = f"{item.accepted_at // 1_000_000}.M{item.accepted_at % 1_000_000}J1_0.{journal.instance.decode()}"
    root = directory / "mail/inb_0"
    for name in ("tmp", "new", "cur"):
        (root / name).mkdir(parents=True)
    (root / "tmp" / base).write_bytes(b"half")
    if present == "seen":
        (root / "cur" / file_name(base, "cur", "S")).write_bytes(octets)
    else:
        wrong = {"right": octets, "short": octets[:-1], "wrong": octets[::-1]}
        (root / "new" / base).write_bytes(wrong[present])
    with opened(directory, database_url) as store:
        (entry,) = rows(store.database, schema.entries)
        name = f"cur/{base}:2,S" if present == "seen" else f"new/{base}"
        found = mail_files(directory)
        found.pop(f"tmp/{base}", None)
        assert found == {name: octets}
        assert (entry.flags, entry.mirrored) == ((1, "S") if present == "seen" else (0, ""))


def test_replayed_spooled_content_is_delivered_and_then_removed(
    directory: Path, database_url: str, journal: Journal
) -> None:
    store = open_store(directory, database_url)
    writer = store.spool()
    writer.write(content("large") * 1000)
    spooled = writer.finish()
    orphan = store.spool()
    orphan.write(b"never named")
    orphan.finish()
    kept = store.read_spooled(spooled).read_bytes()
    store.close()
    journal.write(1, journal.encode(record(spooled), 1))
    with opened(directory, database_url) as store:
        (octets,) = mail_files(directory).values()
        assert octets.endswith(kept)
        assert list((journal.path / "spool").iterdir()) == []


def test_replay_of_a_full_disk_fails_the_start_and_loses_nothing(
    directory: Path, database_url: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.apply.BACKOFF_FIRST_SECONDS", 0.001)
    journal.write(1, journal.encode(record(), 1))
    files = Failing("writev", number=errno.ENOSPC)
    files.armed = True
    with pytest.raises(StorageError, match="cannot be applied"):
        open_store(directory, database_url, files=files)
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 1


def test_replay_puts_aside_what_the_database_refuses(
    directory: Path, database_url: str, journal: Journal
) -> None:
    bad = record(organization_id="org_gone", local=())
    journal.write(1, journal.encode(record(), 1) + journal.encode(bad, 2) + journal.encode(record(), 3))
    with opened(directory, database_url) as store:
        assert store.recovery.applied == 3
        assert len(rows(store.database, schema.entries)) == 2
        assert (directory / "aside" / f"{bad.message_id}.eml").exists()
        store.database.write(lambda conn: add_organization(conn, "org_gone"))
        deliver(store, record())


def test_failed_sync_fails_the_checkpoint_and_keeps_the_segments(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def syncfs(self, _fd: int) -> int:
            return -1

    store = open_store(directory, database_url)
    fill(store.database)
    deliver(store, record())
    with monkeypatch.context() as patch:
        patch.setattr("storage.ownership._libc", Broken())
        with pytest.raises(StorageError, match="could not be synced"):
            store.checkpoint()
    # A second sync would say that all is well: what the first one lost is not told twice.
    with pytest.raises(StorageError, match="could not be synced"):
        store.checkpoint()
    store.close()
    with opened(directory, database_url) as store:
        assert store.recovery.verified == 1
