"""Several processes on one data directory and one PostgreSQL, here as several stores in one process."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, select, text

from storage import events, ids, queue, schema, sending
from storage.db import Database, Notice, publish
from storage.errors import StorageError
from storage.hearing import read
from storage.ownership import Sole
from storage.records import Event
from storage.recover import Recoverer
from storage.store import Store
from storage.transactions import EVERYTHING
from tests.storage.conftest import Opener
from tests.storage.samples import (
    ORGANIZATION,
    accept,
    content,
    deliver,
    file_octets,
    fill,
    mail_files,
    open_store,
    record,
    remote,
    rows,
)

pytestmark = pytest.mark.postgresql


@pytest.fixture
def dialect() -> str:
    return "postgresql"


@pytest.fixture
def stores(directory: Path, database_url: str) -> Iterator[tuple[Store, Store]]:
    """Two, as two processes have them."""
    opened = [open_store(directory, database_url), open_store(directory, database_url)]
    fill(opened[0].database)
    yield opened[0], opened[1]
    for store in opened:
        store.close()


def until(check: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end, what
        threading.Event().wait(0.01)


def die(store: Store) -> None:
    """Give up a store's journal as the kernel does for a dead process."""
    os.close(store._locks.pop())


def journaled_only(store: Store) -> None:
    """Let nothing be applied any more of what is accepted from now on."""
    store._journal._deliver = lambda batch: None  # type: ignore[method-assign]


# Journals.


def test_each_process_has_a_journal_and_uids_are_given_out_once(stores: tuple[Store, Store]) -> None:
    assert stores[0].instance != stores[1].instance
    promises = [accept(stores[number % 2], record()) for number in range(200)]
    assert all(one.applied.wait(30) for one in promises)
    places = [one.placed[0] for one in promises if one.placed]
    assert sorted(place.uid for place in places) == list(range(1, 201))
    # In order of MODSEQ too: what was given out later is seen later.
    assert [one.uid for one in sorted(places, key=lambda place: (place.modseq, place.uid))] == list(
        range(1, 201)
    )


def test_what_a_dead_process_had_not_applied_is_applied_by_another(
    stores: tuple[Store, Store], directory: Path
) -> None:
    dead, alive = stores
    deliver(dead, record(content("before")))
    journaled_only(dead)
    items = [record(), record(content("large" * 2000)), record(remote=(remote(),))]
    promises = [accept(dead, item) for item in items]
    assert all(one.durable.wait(30) and one.durable_error is None for one in promises)
    assert len(rows(alive.database, schema.entries)) == 1
    die(dead)
    until(lambda: len(rows(alive.database, schema.entries)) == 4, "nobody takes the journal over")
    octets = sorted(mail_files(directory).values())
    assert sorted(file_octets(item, item.local[0]) for item in items) == sorted(
        one for one in octets if b"before" not in one
    )
    assert (directory / "spool" / items[2].message_id).exists()
    journal = directory / "journal" / dead.instance
    until(lambda: not list(journal.glob("*.journal")), "the journal stays")
    # What it had applied itself was not applied again.
    found = rows(alive.database, schema.events, schema.events.c.kind == "message.received")
    assert len(found) == 4


def test_the_living_are_not_inherited(stores: tuple[Store, Store]) -> None:
    first, second = stores
    journaled_only(first)
    assert accept(first, record()).durable.wait(30)
    assert second._estate.inherit(first.instance) is None
    assert rows(second.database, schema.entries) == []


def test_only_lost_files_of_entries_that_are_still_there_come_back(
    stores: tuple[Store, Store], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, alive = stores
    items = [record() for _ in range(3)]
    for item in items:
        deliver(dead, item)
    journal = directory / "journal" / dead.instance
    kept = directory.parent / "kept"
    shutil.copytree(journal, kept)
    names = {row.message_id: row.name for row in rows(alive.database, schema.entries)}
    paths = [directory / "mail/inb_0/new" / names[item.message_id] for item in items]
    expunge = schema.entries.delete().where(schema.entries.c.message_id == items[1].message_id)
    looked_at = []
    is_wrong = Recoverer._is_wrong

    def expunged_meanwhile(self: Recoverer, row: Any, *more: Any) -> bool:
        if row.message_id == items[1].message_id:
            looked_at.append(row)
            alive.database.write(lambda c: c.execute(expunge).rowcount)
            paths[1].unlink()
        return is_wrong(self, row, *more)

    monkeypatch.setattr(Recoverer, "_is_wrong", expunged_meanwhile)
    # One file was lost with the power, one message goes while the journal is being compared.
    paths[0].unlink()
    journaled_only(dead)
    for path in kept.glob("*.journal"):
        shutil.copyfile(path, journal / path.name)
    die(dead)
    until(paths[0].exists, "the lost file does not come back")
    until(lambda: not list(journal.glob("*.journal")), "the journal stays")
    assert len(looked_at) == 1
    assert [path.exists() for path in paths] == [True, False, True]
    assert paths[0].read_bytes() == file_octets(items[0], items[0].local[0])


def test_what_a_dead_process_had_leased_is_due_at_once(stores: tuple[Store, Store]) -> None:
    dead, alive = stores
    for _ in range(2):
        deliver(dead, record(local=(), remote=(remote(),)))
    pick = queue.Pick(ORGANIZATION, "c.example", 0, 1)
    far = 1 << 60
    for store in stores:
        lease = partial(queue.lease, picks=[pick], token=queue.token(store.instance), now=far, until=far)
        assert len(store.database.write(lease)) == 1
    die(dead)

    def holders() -> list[str]:
        found = alive.database.read(lambda c: c.execute(select(schema.deliveries.c.lease)).scalars().all())
        return [lease.partition("/")[0] for lease in found if lease is not None]

    until(lambda: holders() == [alive.instance], "the lease stays, or that of the living went too")


def test_a_daemon_on_sqlite_takes_no_directory_that_others_share(
    stores: tuple[Store, Store], directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=r"in use by another Mailagents process \(one on PostgreSQL\)"):
        open_store(directory, f"sqlite:///{tmp_path}/mailagents.sqlite")


def test_nobody_shares_a_directory_of_a_daemon_on_sqlite(
    directory: Path, tmp_path: Path, database_url: str
) -> None:
    store = open_store(directory, f"sqlite:///{tmp_path}/mailagents.sqlite")
    with pytest.raises(StorageError, match=r"in use by another Mailagents process \(pid \d+\)"):
        open_store(directory, database_url)
    store.close()


def test_a_task_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    first, second = Sole(tmp_path, "task"), Sole(tmp_path, "task")
    assert first.take() and first.take()
    assert not second.take()
    first.release()
    assert second.take() and not first.take()
    second.release()


# News.


def test_news_of_others_are_heard_and_one_s_own_once(stores: tuple[Store, Store]) -> None:
    first, second = stores
    heard: dict[Store, list[Notice]] = {first: [], second: []}
    here: list[Notice] = []
    for store, notices in heard.items():
        store.database.listen(notices.extend)
    second.database.listen_here(here.extend)
    (placed,) = deliver(first, record())
    told = Notice("folder", str(placed.folder_id), placed.modseq)
    until(lambda: told in heard[second], "the other process does not hear of it")
    assert heard[first].count(told) == heard[second].count(told) == 1
    assert here == []


def test_a_lost_connection_is_made_anew_and_all_are_told_to_look(
    stores: tuple[Store, Store], database_url: str
) -> None:
    store = stores[0]
    heard: list[Notice] = []
    store.database.listen(heard.extend)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as other:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN mailagents'"
        assert len(other.execute(end).fetchall()) == 2
    until(lambda: Notice(EVERYTHING) in heard, "nobody is told that news were missed")
    del heard[:]
    stores[1].database.write(lambda c: publish(c, Notice("accounts", "org", 1)))
    until(lambda: heard == [Notice("accounts", "org", 1)], "nothing is heard any more")


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"[]", b"{}", b"7", b'["x",7]', b'["x",["a"]]', b'["x",["a","b","c"]]', b"\xff", b"[" * 9000],
)
def test_what_a_stranger_notifies_is_nothing(payload: bytes, database: Database) -> None:
    assert read(payload, "own") == []


def test_a_notification_of_somebody_else_does_not_end_the_hearing(
    stores: tuple[Store, Store], database_url: str
) -> None:
    heard: list[Notice] = []
    stores[0].database.listen(heard.extend)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("NOTIFY mailagents, 'nonsense'")
        other.execute("NOTIFY mailagents")
    stores[1].database.write(lambda c: publish(c, Notice("accounts", "org", 1)))
    until(lambda: heard == [Notice("accounts", "org", 1)], "nothing is heard any more")


# Turns of the database.


def put(name: str) -> Callable[[Connection], str]:
    def unit(connection: Connection) -> str:
        connection.execute(schema.settings.insert(), {"name": name, "value": "0"})
        return name

    return unit


def add(name: str) -> Callable[[Connection], None]:
    def unit(connection: Connection) -> None:
        connection.execute(
            text("UPDATE settings SET value = CAST(CAST(value AS integer) + 1 AS text) WHERE name = :name"),
            {"name": name},
        )

    return unit


def value(database: Database, name: str) -> str | None:
    query = select(schema.settings.c.value).where(schema.settings.c.name == name)
    return database.read(lambda c: c.execute(query).scalar())


def together(database: Database, units: list[Callable[[Connection], object]]) -> list[threading.Event]:
    """Queue units while the writer is held up, so that one transaction takes them all."""
    gate = threading.Event()
    begun = threading.Event()
    database.submit(lambda c: (begun.set(), gate.wait(30)), lambda *_: None)
    assert begun.wait(30)
    ended = []
    for unit in units:
        done = threading.Event()
        ended.append(done)
        database.submit(unit, lambda result, error, done=done: done.set() if error is None else None)
    gate.set()
    return ended


def test_a_unit_behind_others_does_not_hold_them_up_for_another_process(
    database: Database, database_url: str
) -> None:
    database.write(put("a"))
    with psycopg.connect(database_url.replace("+psycopg", "")) as other:
        other.execute("UPDATE settings SET value = '5' WHERE name = 'a'")
        ended = together(database, [put("b"), add("a"), put("c")])
        until(lambda: value(database, "b") and value(database, "c"), "they wait for the other process")
        assert not ended[1].is_set()
        other.commit()
    assert all(one.wait(30) for one in ended)
    assert value(database, "a") == "6"


def test_units_in_any_order_never_deadlock(database: Database, reopen: Opener) -> None:
    names = [f"n{number}" for number in range(6)]
    for name in names:
        database.write(put(name))
    databases = [database, reopen(), reopen()]
    ended = []
    for turn in range(15):
        for number, one in enumerate(databases):
            order = names[number:] + names[:number] if turn % 2 else list(reversed(names))
            ended += together(one, [add(name) for name in order])
    assert all(one.wait(30) for one in ended)
    assert {value(database, name) for name in names} == {"45"}
    query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    database.write(lambda c: c.execute(text("SELECT pg_stat_clear_snapshot()")))
    assert database.read(lambda c: c.execute(query).scalar()) == 0


def event(kind: str = "message.bounced") -> Event:
    return Event(ids.new("evt"), kind, 7, ORGANIZATION)


def test_events_become_visible_in_the_order_of_their_seq(database: Database, reopen: Opener) -> None:
    """Who has seen an event and goes on behind it misses none, whoever wrote it."""
    other = reopen()
    inside, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(connection: Connection) -> int:
        seq = events.append(connection, [event()])
        inside.set()
        gate.wait(30)
        return seq

    first: list[int] = []
    database.submit(slow, lambda seq, error: first.append(seq))
    assert inside.wait(30)
    second: list[int] = []
    other.submit(lambda c: events.append(c, [event()]), lambda seq, error: (second.append(seq), ended.set()))
    assert not ended.wait(0.3)
    assert database.read(lambda c: events.after(c, seq=0, limit=10)) == []
    gate.set()
    assert ended.wait(30)
    assert first[0] < second[0]
    assert [one.seq for one in other.read(lambda c: events.after(c, seq=0, limit=10))] == first + second


def test_outcomes_are_tallied_once_by_however_many_processes(stores: tuple[Store, Store]) -> None:
    databases = [store.database for store in stores]
    made = [event("message.bounced") for _ in range(50)]
    databases[0].write(lambda c: events.append(c, made))
    done = []
    for _ in range(4):
        for database in databases:
            ended = threading.Event()
            done.append(ended)
            database.submit(sending.tally, lambda *_, ended=ended: ended.set())
    assert all(one.wait(30) for one in done)
    found = databases[0].read(lambda c: sending.counts(c, [("bounced", ORGANIZATION)]))
    assert sum(found["bounced", ORGANIZATION].values()) == 50
