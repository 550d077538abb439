"""The database's promises: group commit, savepoints, snapshots, notices, refusals."""

import sqlite3
import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError

from storage import engine, schema
from storage.db import Database, Notice, publish
from storage.errors import Corrupt, Full, StorageError
from storage.transactions import payloads
from tests.storage.conftest import Opener


def put(name: str, value: str = "x"):
    def unit(conn: Connection) -> str:
        conn.execute(insert(schema.settings).values(name=name, value=value))
        publish(conn, Notice("settings", name, 1))
        return name

    return unit


def names(conn: Connection) -> list[str]:
    return list(conn.execute(select(schema.settings.c.name).order_by(schema.settings.c.name)).scalars())


class Batch:
    """Units submitted while the writer is busy, so that they land in one batch."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.outcomes: list[tuple[object, BaseException | None]] = []
        self.finished = threading.Event()

    def run(self, *units) -> list[tuple[object, BaseException | None]]:
        holding, release = threading.Event(), threading.Event()

        def hold(_conn: Connection) -> None:
            holding.set()
            release.wait(30)

        def done(result: object, error: BaseException | None) -> None:
            self.outcomes.append((result, error))
            if len(self.outcomes) == len(units):
                self.finished.set()

        self.database.submit(hold, lambda _result, _error: None)
        holding.wait(30)
        for unit in units:
            self.database.submit(unit, done)
        release.set()
        assert self.finished.wait(30)
        return self.outcomes


def test_write_is_committed_when_it_returns(database: Database) -> None:
    assert database.write(put("a")) == "a"
    assert database.read(names) == ["a"]


def test_failing_unit_spares_its_batch(database: Database) -> None:
    outcomes = Batch(database).run(put("a"), put("b"), put("a"), put("c"))
    assert [result for result, _ in outcomes] == ["a", "b", None, "c"]
    assert isinstance(outcomes[2][1], IntegrityError)
    assert database.read(names) == ["a", "b", "c"]


def test_failing_unit_alone_leaves_nothing(database: Database) -> None:
    def half(conn: Connection) -> None:
        put("half")(conn)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.write(half)
    assert database.read(names) == []
    assert database.write(put("next")) == "next"


def test_unit_that_ends_the_transaction_fails_and_others_are_kept(database: Database) -> None:
    def bad(conn: Connection) -> None:
        conn.commit()

    outcomes = Batch(database).run(put("a"), bad, put("b"))
    assert isinstance(outcomes[1][1], StorageError)
    assert database.read(names) == ["a", "b"]


def test_batch_completes_in_one_call(database: Database) -> None:
    calls: list[int] = []

    def complete(callbacks) -> None:
        calls.append(len(callbacks))
        for callback in callbacks:
            callback()

    database.complete = complete
    Batch(database).run(put("a"), put("b"), put("c"))
    assert calls == [1, 3]


def test_callback_that_raises_spares_the_others(database: Database) -> None:
    heard = threading.Event()

    def bad(_result: object, _error: object) -> None:
        raise RuntimeError("callback")

    database.submit(put("a"), bad)
    database.submit(put("b"), lambda _result, _error: heard.set())
    assert heard.wait(30)
    assert database.read(names) == ["a", "b"]


def test_listeners_hear_of_committed_notices_only_and_of_the_latest(database: Database) -> None:
    heard: list[Notice] = []
    database.listen(heard.extend)

    def twice(conn: Connection) -> None:
        publish(conn, Notice("folder", "1", 5))
        publish(conn, Notice("folder", "1", 7))
        publish(conn, Notice("folder", "2", 1))

    Batch(database).run(put("a"), put("a"), twice)
    assert heard == [Notice("settings", "a", 1), Notice("folder", "1", 7), Notice("folder", "2", 1)]


def test_notice_of_a_failed_unit_is_not_heard(database: Database) -> None:
    heard: list[Notice] = []
    database.listen(heard.extend)

    def bad(conn: Connection) -> None:
        publish(conn, Notice("folder", "1", 5))
        raise ValueError("no")

    outcomes = Batch(database).run(bad, put("a"))
    assert isinstance(outcomes[0][1], ValueError)
    assert heard == [Notice("settings", "a", 1)]


def test_publish_outside_a_write_unit_is_refused(database: Database) -> None:
    with pytest.raises(StorageError, match="write units"):
        database.read(lambda conn: publish(conn, Notice("x")))


def test_reader_sees_one_snapshot(database: Database) -> None:
    database.write(put("a"))

    def unit(conn: Connection) -> tuple[list[str], list[str]]:
        before = names(conn)
        database.write(put("b"))
        return before, names(conn)

    assert database.read(unit) == (["a"], ["a"])
    assert database.read(names) == ["a", "b"]


def test_reader_cannot_write(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)read.?only"):
        database.read(put("a"))
    assert database.read(names) == []


def test_more_readers_than_connections_take_turns(database: Database) -> None:
    database.write(put("a"))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(database.read(names))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["a"]] * 20


def test_write_from_inside_a_unit_is_refused(database: Database) -> None:
    with pytest.raises(StorageError, match="cannot wait"):
        database.write(lambda _conn: database.write(put("a")))


def test_submit_after_close_is_refused(database: Database) -> None:
    database.close()
    with pytest.raises(StorageError, match="closed"):
        database.submit(put("a"), lambda _result, _error: None)


def test_close_commits_what_is_queued(database: Database, reopen: Opener) -> None:
    for number in range(100):
        database.submit(put(f"{number:03}"), lambda _result, _error: None)
    database.close()
    assert len(reopen().read(names)) == 100


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError):
        database.write(
            lambda conn: conn.execute(
                insert(schema.domains).values(
                    id="dom_1", organization_id="org_none", name="a.example", state="active", created_at=1
                )
            )
        )


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.write(put("a"))
    database.migrate()
    assert database.read(names) == ["a"]


def test_newer_schema_is_refused_with_a_sentence(database: Database, reopen: Opener) -> None:
    database.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    with pytest.raises(Corrupt, match="9999 is newer than this program knows"):
        reopen()


def test_foreign_tables_are_refused(empty_url: str) -> None:
    url = engine.parse_url(empty_url)
    connecting = engine.make_engine(url, engine.Access.WRITE)
    with connecting.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE organizations (x INTEGER)")
    with pytest.raises(Corrupt, match="did not make"):
        Database.open(empty_url)


def test_url_of_another_kind_is_refused() -> None:
    for url in ("mysql://x/y", "sqlite://", "sqlite:///relative.sqlite", "nonsense"):
        with pytest.raises(StorageError):
            Database.open(url)


class TestSqliteFile:
    """What only a file can be: damaged, missing, full."""

    def test_settings_of_connections(self, sqlite_path: Path) -> None:
        database = Database.open(f"sqlite:///{sqlite_path}")

        def pragmas(conn: Connection) -> dict[str, object]:
            asked = ("auto_vacuum", "journal_mode", "synchronous", "secure_delete", "foreign_keys")
            return {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in asked}

        expected = {
            "auto_vacuum": 2,
            "journal_mode": "wal",
            "synchronous": 2,
            "secure_delete": 1,
            "foreign_keys": 1,
        }
        assert database.write(pragmas) == expected
        assert database.read(pragmas) == expected
        database.close()

    def test_migration_keeps_the_file_private(self, tmp_path: Path) -> None:
        path = tmp_path / "new.sqlite"
        database = Database.open(f"sqlite:///{path}")
        database.migrate()
        database.close()
        assert path.stat().st_mode & 0o777 == 0o600

    def test_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mailagents.sqlite"
        path.write_bytes(b"This is a letter to nobody.\n" * 200)
        with pytest.raises(Corrupt, match=r"mailagents\.sqlite.* not an SQLite database"):
            Database.open(f"sqlite:///{path}")

    def test_truncated_database_is_refused(self, sqlite_path: Path) -> None:
        whole = sqlite_path.read_bytes()
        sqlite_path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(Corrupt, match="damaged"):
            Database.open(f"sqlite:///{sqlite_path}")

    def test_overwritten_page_is_refused(self, sqlite_path: Path) -> None:
        whole = bytearray(sqlite_path.read_bytes())
        whole[4096 * 3 : 4096 * 4] = b"\xa5" * 4096
        sqlite_path.write_bytes(whole)
        with pytest.raises(Corrupt, match="damaged"):
            Database.open(f"sqlite:///{sqlite_path}")

    def test_directory_in_place_of_the_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Corrupt, match="not a file"):
            Database.open(f"sqlite:///{tmp_path}")

    def test_missing_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="not a directory"):
            Database.open(f"sqlite:///{tmp_path / 'nowhere' / 'mailagents.sqlite'}")

    def test_full_disk_fails_its_unit_with_full_and_spares_the_others(self, sqlite_path: Path) -> None:
        database = Database.open(f"sqlite:///{sqlite_path}")

        def limit(conn: Connection) -> None:
            pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
            conn.exec_driver_sql(f"PRAGMA max_page_count = {pages + 4}")

        database.write(limit)
        outcomes = Batch(database).run(put("a"), put("big", "x" * 200_000), put("b"))
        assert [result for result, _ in outcomes] == ["a", None, "b"]
        assert isinstance(outcomes[1][1], Full)
        assert database.read(names) == ["a", "b"]
        database.close()

    def test_writer_waits_for_another_process(self, sqlite_path: Path) -> None:
        database = Database.open(f"sqlite:///{sqlite_path}")
        other = sqlite3.connect(sqlite_path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO settings VALUES ('other', 'x')")
        finished = threading.Event()
        database.submit(put("ours"), lambda _result, _error: finished.set())
        other.execute("COMMIT")
        assert finished.wait(30)
        assert database.read(names) == ["other", "ours"]
        other.close()
        database.close()

    @pytest.fixture
    def sqlite_path(self, tmp_path: Path, sqlite_template: Path) -> Path:
        path = tmp_path / "mailagents.sqlite"
        path.write_bytes(sqlite_template.read_bytes())
        return path


@pytest.mark.postgresql
class TestPostgresql:
    """What only a server does: notify others, break a deadlock, go away."""

    @pytest.fixture
    def dialect(self) -> str:
        return "postgresql"

    def test_commit_notifies_other_processes(self, database: Database, database_url: str) -> None:
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as listening:
            listening.execute("LISTEN mailagents")
            database.write(put("a"))
            notification = next(listening.notifies(timeout=30))
            assert notification.payload == f'["{database.origin}",["settings","a",1]]'

    def test_deadlocked_units_are_run_again_alone(self, database: Database, database_url: str) -> None:
        database.write(put("a"))
        database.write(put("b"))
        first, second = threading.Event(), threading.Event()
        with psycopg.connect(database_url.replace("+psycopg", "")) as other:

            def slow(conn: Connection) -> None:
                conn.exec_driver_sql("UPDATE settings SET value = 'ours' WHERE name = 'a'")
                first.set()
                second.wait(30)
                conn.exec_driver_sql("UPDATE settings SET value = 'ours' WHERE name = 'b'")

            finished: list[BaseException | None] = []
            ended = threading.Event()
            database.submit(slow, lambda _result, error: (finished.append(error), ended.set()))
            first.wait(30)
            other.execute("UPDATE settings SET value = 'theirs' WHERE name = 'b'")
            second.set()
            # Whichever side the server chose to break, ours ends committed.
            try:
                other.execute("UPDATE settings SET value = 'theirs' WHERE name = 'a'")
                other.commit()
            except psycopg.errors.DeadlockDetected:
                other.rollback()
            assert ended.wait(30)
        assert finished == [None]
        assert set(
            database.read(lambda conn: conn.execute(select(schema.settings.c.value)).scalars().all())
        ) == {"ours"}

    def test_lost_connection_fails_its_batch_and_the_next_one_connects_anew(self, database: Database) -> None:
        with pytest.raises(Exception, match=r"(?i)terminat|closed|lost"):
            database.write(lambda conn: conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert database.write(put("a")) == "a"
        assert database.read(names) == ["a"]

    def test_lost_reader_is_replaced(self, database: Database) -> None:
        for _ in range(6):
            with pytest.raises(Exception, match=r"(?i)terminat|closed|lost"):
                database.read(
                    lambda conn: conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
                )
        assert database.read(names) == []

    def test_server_that_is_not_there_is_said_so_without_the_password(self) -> None:
        with pytest.raises(StorageError, match="cannot be opened") as caught:
            Database.open("postgresql+psycopg://mail:secret@127.0.0.1:1/mail")
        assert "secret" not in str(caught.value)


def test_long_batches_are_notified_in_payloads_the_server_takes() -> None:
    notices = [Notice("folder", str(number), number) for number in range(3000)]
    texts = payloads("origin", notices)
    assert max(map(len, texts)) < 8000
    assert sum(text.count("folder") for text in texts) == 3000


def test_writer_begins_nothing_while_it_is_lent(database: Database) -> None:
    ran = threading.Event()
    with database.lend():
        database.submit(lambda _connection: ran.set(), lambda _result, _error: None)
        assert not ran.wait(0.05)
    assert ran.wait(30)


def test_lender_waits_for_the_transaction_that_runs(database: Database) -> None:
    begun, release, order = threading.Event(), threading.Event(), []

    def unit(_connection: Connection) -> None:
        begun.set()
        release.wait(30)
        order.append("unit")

    database.submit(unit, lambda _result, _error: None)
    assert begun.wait(30)
    threading.Timer(0.05, release.set).start()
    with database.lend():
        order.append("lent")
    assert order == ["unit", "lent"]
