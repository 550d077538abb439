"""The one thread that writes to the database: group commit with a savepoint per unit.

Owns the queue of units, the transaction around a batch of them and the notices
they publish. A unit that fails is undone alone and spares its batch; where the
database abandons the whole transaction (disk full, deadlock), the units are run
again one by one, so a unit may run more than once and must leave nothing behind
but what it writes through its connection or may write twice. Retries nothing
else, and never calls back before the commit.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from storage.errors import Full, StorageError

T = TypeVar("T")
Unit = Callable[[Connection], T]
Done = Callable[[Any, BaseException | None], None]
Outcome = tuple[Any, BaseException | None]

BATCH_UNITS = 512
QUEUE_UNITS = 100_000
_ALONE_ATTEMPTS = 4
_CHANNEL = "mailagents"
_PAYLOAD_OCTETS = 7000  # PostgreSQL takes payloads shorter than 8000 octets
_RETRIED_STATES = frozenset({"40P01", "40001"})  # deadlock, serialization failure

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something committed that others may wait for; position grows with each change of its key."""

    topic: str
    key: str = ""
    position: int = 0


def publish(connection: Connection, notice: Notice) -> None:
    """Send a notice to the listeners when the running write unit is committed, never before."""
    notices = connection.info.get("notices")
    if notices is None:
        raise StorageError("notices are published inside write units only")
    notices.append(notice)


@dataclass(frozen=True, slots=True)
class Item:
    """One queued unit; direct: its callback runs in the writer thread, whatever the hook."""

    unit: Unit[Any]
    done: Done
    direct: bool


class _Abandoned(Exception):
    """The database gave up the transaction with every unit in it."""


class Writer:
    """Runs units in batches on one connection of its own."""

    def __init__(
        self,
        *,
        connect: Callable[[], Connection],
        translate: Callable[[Exception], Exception],
        finish: Callable[[Sequence[Item], Sequence[Outcome], Sequence[Notice]], None],
        origin: str,
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._finish = finish
        self._origin = origin
        self._items: deque[Item] = deque()
        self._ready = threading.Condition()
        self._closing = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._loop, name="database-writer", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Queue a unit; StorageError after close, Full where QUEUE_UNITS wait already."""
        with self._ready:
            if self._closing:
                raise StorageError("the database is closed")
            if len(self._items) >= QUEUE_UNITS:
                raise Full(f"{QUEUE_UNITS} units wait for the database")
            self._items.append(item)
            self._ready.notify()

    def inside(self) -> bool:
        """Return whether the caller runs in the writer's own thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Run what is queued, then stop the thread and close its connection."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        if not self.inside():
            self._thread.join()

    def _loop(self) -> None:
        while batch := self._take():
            outcomes, notices = self._run(batch)
            self._finish(batch, outcomes, notices)
            del batch, outcomes, notices  # hold no results while idle
        self._drop_connection()

    def _take(self) -> list[Item]:
        items = self._items
        with self._ready:
            while not items and not self._closing:
                self._ready.wait()
            return [items.popleft() for _ in range(min(len(items), BATCH_UNITS))]

    def _run(self, batch: list[Item]) -> tuple[list[Outcome], list[Notice]]:
        notices: list[Notice] = []
        try:
            return self._together(batch, notices), notices
        except _Abandoned:
            outcomes = []
            for item in batch:
                outcome, published = self._alone(item)
                outcomes.append(outcome)
                notices += published
            return outcomes, notices

    def _alone(self, item: Item) -> tuple[Outcome, list[Notice]]:
        notices: list[Notice] = []
        for _ in range(_ALONE_ATTEMPTS - 1):
            try:
                return self._together([item], notices)[0], notices
            except _Abandoned:
                notices = []
        try:
            return self._together([item], notices)[0], notices
        except _Abandoned as error:
            return (None, error.__cause__ or error), []

    def _together(self, batch: list[Item], notices: list[Notice]) -> list[Outcome]:
        """Run a batch in one transaction; its outcomes, or _Abandoned with nothing written."""
        del notices[:]
        try:
            connection = self._begin(notices)
            outcomes = [self._one(connection, item.unit, notices, len(batch)) for item in batch]
            if notices and connection.dialect.name == "postgresql":
                self._notify(connection, notices)
            connection.commit()
        except _Abandoned:
            self._roll_back()
            raise
        except _Undone as failure:
            del notices[:]
            self._roll_back()
            error = failure.__cause__
            assert isinstance(error, Exception)
            if len(batch) == 1 and _is_retried(error):
                raise _Abandoned from error
            return [(None, self._translate(error))]
        except Exception as error:
            del notices[:]
            self._roll_back()
            if _is_retried(error):
                raise _Abandoned from error
            return [(None, self._translate(error))] * len(batch)
        return outcomes

    def _begin(self, notices: list[Notice]) -> Connection:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        connection.begin()
        raw = connection.connection
        if connection.dialect.name == "sqlite":
            raw.cursor().execute("BEGIN IMMEDIATE")
        connection.info["notices"] = notices
        return connection

    def _one(self, connection: Connection, unit: Unit[Any], notices: list[Notice], size: int) -> Outcome:
        if size == 1:
            try:
                result = unit(connection)
            except Exception as error:
                raise _Undone from error
            _check_open(connection)
            return result, None
        cursor = connection.connection.cursor()
        cursor.execute("SAVEPOINT unit")
        mark = len(notices)
        try:
            result = unit(connection)
            _check_open(connection)
        except Exception as error:
            del notices[mark:]
            if _is_retried(error) or not _in_transaction(connection):
                raise _Abandoned from error
            cursor.execute("ROLLBACK TO SAVEPOINT unit")
            cursor.execute("RELEASE SAVEPOINT unit")
            return None, self._translate(error)
        cursor.execute("RELEASE SAVEPOINT unit")
        return result, None

    def _notify(self, connection: Connection, notices: list[Notice]) -> None:
        cursor = connection.connection.cursor()
        for payload in payloads(self._origin, notices):
            cursor.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, payload))

    def _roll_back(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.rollback()
            broken = connection.invalidated or getattr(
                connection.connection.dbapi_connection, "closed", False
            )
        except Exception:  # noqa: BLE001 - a connection that cannot even roll back is thrown away
            broken = True
        if broken:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate() if connection.invalidated else connection.close()
        except Exception:  # noqa: BLE001 - it is gone either way, the next batch connects anew
            _log.debug("closing the writer's connection failed", exc_info=True)


class _Undone(Exception):
    """The only unit of a batch failed; its cause says why."""


def _check_open(connection: Connection) -> None:
    if not connection.in_transaction():
        raise _Abandoned from StorageError("a unit ended the transaction it was run in")


def _in_transaction(connection: Connection) -> bool:
    if connection.invalidated or not connection.in_transaction():
        return False
    raw = connection.connection.dbapi_connection
    return bool(getattr(raw, "in_transaction", not getattr(raw, "closed", False)))


def _is_retried(error: BaseException) -> bool:
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None) in _RETRIED_STATES


def latest(notices: Sequence[Notice]) -> list[Notice]:
    """Return one notice a topic and key, with its highest position, in order of first mention."""
    found: dict[tuple[str, str], Notice] = {}
    for notice in notices:
        known = found.get((notice.topic, notice.key))
        if known is None or known.position < notice.position:
            found[notice.topic, notice.key] = notice
    return list(found.values())


def payloads(origin: str, notices: Sequence[Notice]) -> list[str]:
    """Return NOTIFY payloads for a batch: JSON `[origin, [topic, key, position], …]`, each short enough."""
    texts: list[str] = []
    head = json.dumps(origin)
    parts, octets = [head], len(head)
    for notice in latest(notices):
        part = json.dumps([notice.topic, notice.key, notice.position], separators=(",", ":"))
        if octets + len(part) > _PAYLOAD_OCTETS and len(parts) > 1:
            texts.append("[" + ",".join(parts) + "]")
            parts, octets = [head], len(head)
        parts.append(part)
        octets += len(part) + 1
    texts.append("[" + ",".join(parts) + "]")
    return texts
