"""Transactions of write units: a savepoint per unit, and what the database abandons run again.

Owns the one connection that a writer writes on, the transaction around a batch
of units, the outcome of each and the notices they publish. A unit that fails is
undone alone and spares its batch; where the database abandons the whole
transaction (disk full, deadlock), the units are run again one by one, so a unit
may run more than once and must leave nothing behind but what it writes through
its connection or may write twice. Where other processes write too (PostgreSQL),
no transaction that holds rows of one unit waits long for those of another: what
it cannot have at once is run alone, after the commit. Not safe between threads.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from storage.errors import StorageError

T = TypeVar("T")
Unit = Callable[[Connection], T]
Outcome = tuple[Any, BaseException | None]

_ALONE_ATTEMPTS = 4
CHANNEL = "mailagents"
# A topic that stands for all, and a position that says only: look.
EVERYTHING = "*"
UNKNOWN = -1
_PAYLOAD_OCTETS = 7000  # PostgreSQL takes payloads shorter than 8000 octets
_RETRIED_STATES = frozenset({"40P01", "40001"})  # deadlock, serialization failure
_BLOCKED_STATE = "55P03"  # lock_not_available: lock_timeout ran out
# How long a unit behind others of its transaction waits for a row that another process holds. Units
# take rows in one order each, but a batch of them takes them in any: two that waited for one another
# would only be told apart by PostgreSQL's deadlock_timeout, a second of standstill.
_PATIENCE_MILLISECONDS = 20

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


class _Abandoned(Exception):
    """The database gave up the transaction with every unit in it."""


class _Blocked(Exception):
    """A unit behind others found a row held by another process; it was undone and is to run alone."""


class Transactions:
    """Runs batches of units on one connection of its own."""

    def __init__(
        self, *, connect: Callable[[], Connection], translate: Callable[[Exception], Exception], origin: str
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._origin = origin
        self._connection: Connection | None = None

    def run(self, units: Sequence[Unit[Any]]) -> tuple[list[Outcome], list[Notice]]:
        """Run units in one transaction; return the outcome of each, and what they published."""
        notices: list[Notice] = []
        try:
            outcomes = self._together(units, notices)
        except _Abandoned as error:
            outcomes = [(None, error)] * len(units)
        for index, (_, failure) in enumerate(outcomes):
            if isinstance(failure, (_Abandoned, _Blocked)):
                outcomes[index], published = self._alone(units[index])
                notices += published
        return outcomes, notices

    def _alone(self, unit: Unit[Any]) -> tuple[Outcome, list[Notice]]:
        notices: list[Notice] = []
        for _ in range(_ALONE_ATTEMPTS - 1):
            try:
                return self._together([unit], notices)[0], notices
            except _Abandoned:
                notices = []
        try:
            return self._together([unit], notices)[0], notices
        except _Abandoned as error:
            return (None, error.__cause__ or error), []

    def _together(self, units: Sequence[Unit[Any]], notices: list[Notice]) -> list[Outcome]:
        """Run a batch in one transaction; its outcomes, or _Abandoned with nothing written."""
        del notices[:]
        try:
            connection = self._begin(notices)
            if len(units) == 1:
                outcomes = [self._single(connection, units[0])]
            elif connection.dialect.name == "postgresql":
                outcomes = self._patiently(connection, units, notices)
            else:
                outcomes = [self._one(connection, unit, notices) for unit in units]
            if notices and connection.dialect.name == "postgresql":
                self._notify(connection, notices)
            connection.commit()
        except _Abandoned:
            self._roll_back()
            raise
        except _Undone as failure:
            del notices[:]
            is_lost = self._roll_back()  # the connection, before anything was committed
            error = failure.__cause__
            assert isinstance(error, Exception)
            if is_lost or _is_retried(error):
                raise _Abandoned from error
            return [(None, self._translate(error))]
        except Exception as error:
            del notices[:]
            self._roll_back()
            if _is_retried(error):
                raise _Abandoned from error
            return [(None, self._translate(error))] * len(units)
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

    def _patiently(
        self, connection: Connection, units: Sequence[Unit[Any]], notices: list[Notice]
    ) -> list[Outcome]:
        """Run units of which the first alone may wait for what other processes hold."""
        outcomes = [self._one(connection, units[0], notices)]
        cursor = connection.connection.cursor()
        cursor.execute(f"SET LOCAL lock_timeout = {_PATIENCE_MILLISECONDS}")
        outcomes += [self._one(connection, unit, notices) for unit in units[1:]]
        # The commit itself takes its turn with those of others.
        cursor.execute("SET LOCAL lock_timeout = 0")
        return outcomes

    def _single(self, connection: Connection, unit: Unit[Any]) -> Outcome:
        try:
            result = unit(connection)
        except Exception as error:
            raise _Undone from error
        _check_open(connection)
        return result, None

    def _one(self, connection: Connection, unit: Unit[Any], notices: list[Notice]) -> Outcome:
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
            if _state(error) == _BLOCKED_STATE:
                return None, _Blocked()
            return None, self._translate(error)
        cursor.execute("RELEASE SAVEPOINT unit")
        return result, None

    def _notify(self, connection: Connection, notices: list[Notice]) -> None:
        cursor = connection.connection.cursor()
        for payload in payloads(self._origin, notices):
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))

    def _roll_back(self) -> bool:
        """Undo the transaction; return whether the connection turned out to be lost."""
        connection = self._connection
        if connection is None:
            return False
        try:
            connection.rollback()
            broken = connection.invalidated or getattr(
                connection.connection.dbapi_connection, "closed", False
            )
        except Exception:  # noqa: BLE001 - a connection that cannot even roll back is thrown away
            broken = True
        if broken:
            self.drop_connection()
        return bool(broken)

    def drop_connection(self) -> None:
        """Close the connection; the next units connect anew."""
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


def _state(error: BaseException) -> str | None:
    """Return the SQLSTATE of a driver's error, whoever wrapped it."""
    found: BaseException | None = error
    while found is not None:
        state = getattr(getattr(found, "orig", found), "sqlstate", None)
        if state is not None:
            return str(state)
        found = found.__cause__
    return None


def _is_retried(error: BaseException) -> bool:
    return _state(error) in _RETRIED_STATES


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
