"""The database: one writer thread that group-commits, and readers with snapshots.

Owns the connections and who may use them when. Units are plain functions of a
SQLAlchemy connection; they never commit. Callbacks and notices go out after
the commit only, in one call a batch, so that an event loop wakes once. Holds
no SQL of the appliance's own: that is in the modules named after the tables.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage import engine
from storage.errors import StorageError
from storage.hearing import Hearing
from storage.transactions import Notice, Outcome, Transactions, Unit, latest, publish
from storage.writer import Done, Item, Writer

__all__ = ["Database", "Notice", "Unit", "publish"]

T = TypeVar("T")
Listener = Callable[[Sequence[Notice]], None]
READ_WAIT_SECONDS = 60

_log = logging.getLogger(__name__)


def run_here(callbacks: Sequence[Callable[[], None]]) -> None:
    """Run callbacks one after the other; one that raises is logged and spares the others."""
    for callback in callbacks:
        try:
            callback()
        except Exception:  # noqa: BLE001 - a caller's fault must not stop the thread all others wait for
            _log.exception("a callback of storage failed")


class Database:
    """One database, SQLite or PostgreSQL, for all threads of a process.

    complete: how the callbacks of a committed batch are run; in the writer
    thread unless an event loop puts its own wake-up here.
    """

    def __init__(self, url: URL, *, readers: int) -> None:
        self.url = url
        self.place = engine.describe(url)
        self.dialect = url.get_backend_name()
        self.origin = secrets.token_hex(8)
        self.complete: Callable[[list[Callable[[], None]]], None] = run_here
        self._listeners: tuple[Listener, ...] = ()
        self._own_listeners: tuple[Listener, ...] = ()
        self._hearing: Hearing | None = None
        self._reading = engine.make_engine(url, engine.Access.READ)
        self._writing = engine.make_engine(url, engine.Access.WRITE)
        self._readers = readers
        self._slots = threading.BoundedSemaphore(readers)
        self._idle: list[Connection] = []
        self._writer = Writer(
            transactions=Transactions(
                connect=self._writing.connect,
                translate=partial(engine.translate, place=self.place),
                origin=self.origin,
            ),
            finish=self._finish,
        )

    @classmethod
    def open(cls, url: str, *, readers: int = 4) -> "Database":
        """Return the database at `sqlite:////…` or `postgresql+psycopg://…`, checked but not changed.

        Corrupt or StorageError, with a sentence for the operator, where it cannot be used.
        """
        parsed = engine.parse_url(url)
        engine.check(parsed)
        return cls(parsed, readers=readers)

    def migrate(self) -> None:
        """Bring the schema to the newest revision, making the database if there is none."""
        from storage.migrations.upgrade import upgrade  # alembic is slow to import and seldom needed

        upgrade(self.url)

    def submit(self, unit: Unit[T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Queue a unit for the writer; done gets its result or its error after the commit.

        StorageError after close, Full where too many units wait.
        """
        self._writer.submit(Item(unit, done, direct=False))

    def post(self, unit: Unit[T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Queue a unit as submit does; done runs in the writer thread itself, whatever the hook."""
        self._writer.submit(Item(unit, done, direct=True))

    def write(self, unit: Unit[T]) -> T:
        """Run a unit in the writer and wait until it is committed; raises what it raised."""
        if self._writer.inside():
            raise StorageError("a write unit cannot wait for another one")
        future: Future[T] = Future()
        self._writer.submit(Item(unit, _settle(future), direct=True))
        return future.result()

    @contextmanager
    def lend(self) -> Iterator[Callable[[Sequence[Notice]], None]]:
        """Let another process of ours write: the writer begins nothing until the block ends.

        Yields what takes the notices of that process's commit.
        """
        with self._writer.lend():
            yield self._announce

    def read(self, unit: Unit[T]) -> T:
        """Run a unit on a snapshot of its own and return its result; it is always rolled back.

        StorageError where all readers stay busy for READ_WAIT_SECONDS.
        """
        if not self._slots.acquire(timeout=READ_WAIT_SECONDS):
            raise StorageError(f"all {self._readers} readers of the database are busy")
        try:
            while self._idle:
                connection = self._idle.pop()
                try:
                    return self._read_on(connection, unit)
                except DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                finally:
                    self._put_back(connection)
                # The server went away since it was used last; nothing else tells.
            connection = self._reading.connect()
            try:
                return self._read_on(connection, unit)
            finally:
                self._put_back(connection)
        except Exception as error:
            translated = engine.translate(error, self.place)
            if translated is error:
                raise
            raise translated from error
        finally:
            self._slots.release()

    def listen(self, listener: Listener) -> None:
        """Have a listener called with each committed batch's notices, in whichever thread saw the commit.

        On PostgreSQL with those of other processes too, once hear is called.
        """
        self._listeners = (*self._listeners, listener)

    def listen_here(self, listener: Listener) -> None:
        """Have a listener called with the notices of this process's own commits alone."""
        self._own_listeners = (*self._own_listeners, listener)

    def hear(self) -> None:
        """Begin to tell listeners what other processes commit; PostgreSQL alone. StorageError."""
        hearing = Hearing(url=self.url, origin=self.origin, tell=self._tell_of_others)
        try:
            hearing.start()
        except SQLAlchemyError as error:
            hearing.close()
            raise engine.explain(error, self.place) from error
        self._hearing = hearing

    def close(self) -> None:
        """Commit what is queued, wait for running readers, close every connection."""
        if self._hearing is not None:
            self._hearing.close()
            self._hearing = None
        self._writer.close()
        held = [self._slots.acquire(timeout=READ_WAIT_SECONDS) for _ in range(self._readers)]
        while self._idle:
            self._idle.pop().close()
        for _ in filter(None, held):
            self._slots.release()
        self._reading.dispose()
        self._writing.dispose()

    def _read_on(self, connection: Connection, unit: Unit[T]) -> T:
        # Said outright: a unit may use the driver's own cursor, which begins nothing that
        # could be rolled back.
        connection.begin()
        if self.dialect == "sqlite":
            connection.connection.cursor().execute("BEGIN")
        return unit(connection)

    def _put_back(self, connection: Connection) -> None:
        try:
            connection.rollback()
            broken = connection.invalidated
        except Exception:  # noqa: BLE001 - a connection that cannot roll back is not used again
            broken = True
        if broken:
            connection.invalidate()
            connection.close()
        else:
            self._idle.append(connection)

    def _announce(self, notices: Sequence[Notice]) -> None:
        if notices:
            news = latest(notices)
            listeners = (*self._listeners, *self._own_listeners)
            run_here([partial(listener, news) for listener in listeners])

    def _tell_of_others(self, notices: Sequence[Notice]) -> None:
        run_here([partial(listener, notices) for listener in self._listeners])

    def _finish(self, batch: Sequence[Item], outcomes: Sequence[Outcome], notices: Sequence[Notice]) -> None:
        self._announce(notices)
        direct: list[Callable[[], None]] = []
        hooked: list[Callable[[], None]] = []
        for item, outcome in zip(batch, outcomes, strict=True):
            (direct if item.direct else hooked).append(partial(item.done, *outcome))
        run_here(direct)
        if hooked:
            run_here([partial(self.complete, hooked)])


def _settle(future: "Future[T]") -> Done:
    def done(result: T, error: BaseException | None) -> None:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    return done
