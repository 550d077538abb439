"""The store's limits and its life: what it refuses, how it is opened, closed and checkpointed."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from storage.errors import Corrupt, Full, StorageError
from storage.records import Event
from storage.store import Store
from tests.storage.samples import (
    AT,
    ORGANIZATION,
    accept,
    deliver,
    fill,
    local,
    open_store,
    opened,
    record,
)


def journal_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("journal/*/*.journal"))


def inodes(directory: Path, suffix: str) -> set[int]:
    """Which files of a journal have this suffix now; the store renames them meanwhile."""
    found = set()
    for path in directory.glob(f"journal/*/*.{suffix}"):
        with suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def test_backlog_over_its_limit_refuses_with_full(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, backlog_limit_octets=60_000) as store:
        fill(store.database)
        holding, release = threading.Event(), threading.Event()

        def hold(_conn: Connection) -> None:
            holding.set()
            release.wait(30)

        store.database.submit(hold, lambda _result, _error: None)
        holding.wait(30)
        promises = [accept(store, record(b"x" * 1000)) for _ in range(50)]
        refused = [promise for promise in promises if promise.durable.is_set() and promise.durable_error]
        assert refused and all(isinstance(promise.durable_error, Full) for promise in refused)
        release.set()
        kept = [promise for promise in promises if promise not in refused]
        assert kept and all(promise.applied.wait(30) for promise in kept)
        assert store.backlog_octets == 0
        deliver(store, record())


def test_disk_at_its_reserve_refuses_with_full(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, disk_reserve_octets=1 << 60) as store:
        fill(store.database)
        with pytest.raises(Full, match="free"):
            deliver(store, record())
        with pytest.raises(Full, match="free"):
            store.spool()
        assert store.backlog_octets == 0


def test_spooled_content_that_is_refused_leaves_no_file(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, backlog_limit_octets=20_000) as store:
        fill(store.database)
        writer = store.spool()
        writer.write(b"x" * 10_000)
        spooled = writer.finish()
        item = record(spooled, local=tuple(local(f"inb_{number}") for number in range(100)))
        holding, release = threading.Event(), threading.Event()

        def hold(_conn: Connection) -> None:
            holding.set()
            release.wait(30)

        store.database.submit(hold, lambda _result, _error: None)
        holding.wait(30)
        first = accept(store, record())
        refused = accept(store, item)
        assert isinstance(refused.durable_error, Full)
        release.set()
        assert first.applied.wait(30)
        assert not store.read_spooled(spooled).exists()


def test_record_that_cannot_be_encoded_spares_its_batch(store: Store) -> None:
    bad = record(events=(Event("evt_1", "x", AT, ORGANIZATION, data={"no": object()}),))
    promises = [accept(store, item) for item in (record(), bad, record())]
    assert all(promise.durable.wait(30) for promise in promises)
    assert isinstance(promises[1].durable_error, StorageError)
    assert promises[0].durable_error is promises[2].durable_error is None


def test_callbacks_go_through_the_databases_hook(store: Store) -> None:
    batches: list[int] = []

    def complete(callbacks) -> None:
        batches.append(len(callbacks))
        for callback in callbacks:
            callback()

    store.database.complete = complete
    promises = [accept(store, record()) for _ in range(100)]
    assert all(promise.applied.wait(30) for promise in promises)
    assert sum(batches) == 200
    assert len(batches) < 150


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_second_owner_is_refused_with_a_sentence(
    store: Store, directory: Path, dialect: str, database_url: str
) -> None:
    with pytest.raises(StorageError, match=r"in use by another Mailagents process \(pid \d+\)"):
        open_store(directory, database_url)
    deliver(store, record())


def test_closing_gives_the_directory_up_and_empties_the_journal(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        fill(store.database)
        deliver(store, record())
    assert journal_files(directory) == []
    with opened(directory, database_url) as store:
        assert store.recovery.applied == store.recovery.verified == 0
        (placed,) = deliver(store, record())
        assert placed.uid == 2


def test_close_applies_what_was_accepted(directory: Path, database_url: str) -> None:
    store = open_store(directory, database_url)
    fill(store.database)
    promises = [accept(store, record()) for _ in range(300)]
    store.close()
    assert all(promise.placed for promise in promises)
    promise = accept(store, record())
    assert isinstance(promise.durable_error, StorageError)


def test_checkpoint_takes_all_content_out_of_the_journal(store: Store, directory: Path) -> None:
    secret = b"Subject: x\r\n\r\nthe secret word is xyzzy\r\n"
    for _ in range(100):
        deliver(store, record(secret))
    store.checkpoint()
    for path in directory.glob("journal/*/*"):
        assert path.is_dir() or b"xyzzy" not in path.read_bytes(), path
    deliver(store, record())


def test_files_of_full_segments_are_written_again_and_blanked_when_it_is_quiet(
    directory: Path, database_url: str
) -> None:
    secret = b"Subject: x\r\n\r\nthe secret word is xyzzy\r\n" + b"x" * 3000
    with opened(directory, database_url, checkpoint_seconds=3600) as store:
        fill(store.database)
        waiting: set[int] = set()
        for _ in range(500):
            promises = [accept(store, record(secret)) for _ in range(40)]
            assert all(promise.applied.wait(30) for promise in promises)
            if waiting & inodes(directory, "journal"):
                break
            waiting |= inodes(directory, "stale")
        assert waiting & inodes(directory, "journal"), "no segment is made of an earlier one's file"
        store.checkpoint()
        for path in directory.glob("journal/*/*"):
            assert path.is_dir() or b"xyzzy" not in path.read_bytes(), path
    assert not list(directory.glob("journal/*/*.stale"))


def test_segments_rotate_and_go_once_applied(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        fill(store.database)
        for _ in range(4):
            promises = [accept(store, record(b"x" * 3000)) for _ in range(40)]
            assert all(promise.applied.wait(30) for promise in promises)
        store.checkpoint()
        (current,) = journal_files(directory)
        assert int(current.stem) > 100


def test_periodic_checkpoint_runs_by_itself(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, checkpoint_seconds=0.01) as store:
        fill(store.database)
        deliver(store, record())
        first = journal_files(directory)
        pause = threading.Event()
        for _ in range(1000):
            if journal_files(directory) != first:
                break
            pause.wait(0.01)
        assert journal_files(directory) != first


def test_data_directory_of_another_database_is_refused(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        dialect = store.database.dialect
    if dialect == "sqlite":
        (directory / "instance").write_text("0" * 8 + "\n")
        with pytest.raises(Corrupt, match="do not belong together"):
            open_store(directory, database_url)
    (directory / "instance").write_text("../../etc\n")
    with pytest.raises(Corrupt, match="instance"):
        open_store(directory, database_url)


def test_refused_start_leaves_the_lock_free(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        store.database.write(
            lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        )
    for _ in range(2):
        with pytest.raises(Corrupt, match="newer"):
            open_store(directory, database_url)


def test_lost_database_does_not_give_sequences_out_again(
    directory: Path, database_url: str, tmp_path: Path, sqlite_template: Path
) -> None:
    with opened(directory, database_url) as store:
        fill(store.database)
        for _ in range(3):
            deliver(store, record())
        before = store.applied_sequence
    fresh = tmp_path / "fresh.sqlite"
    fresh.write_bytes(sqlite_template.read_bytes())
    with opened(directory, f"sqlite:///{fresh}") as store:
        fill(store.database)
        deliver(store, record())
        assert store.applied_sequence > before


def test_path_that_is_a_file_is_refused_with_a_sentence(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "data").write_text("no directory")
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(tmp_path / "data", database_url)
