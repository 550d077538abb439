"""One send per key: what a client's retry of a request gets.

Owns the rows of `idempotency_keys`: a key of an organization, the hash of the
request it came with, and the message it became. A row without a message is a
request in progress; one that stays so for longer than any request may take
belongs to a process that is gone, and the next retry takes it over.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage.errors import Conflict
from storage.schema import idempotency_keys as table

KEPT_SECONDS = 7 * 24 * 3600
IN_PROGRESS_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Fresh:
    """The key is new: do the work, then `finish` or `release`."""


@dataclass(frozen=True, slots=True)
class Done:
    """The same request was carried out before and became this message."""

    message_id: str


@dataclass(frozen=True, slots=True)
class Different:
    """The key was used for another request."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request is being carried out now."""


Begun = Fresh | Done | Different | InProgress


def begin(connection: Connection, *, organization_id: str, key: str, request_hash: bytes, at: int) -> Begun:
    """Claim a key for a request, or say what became of it; at: microseconds.

    Conflict if another process claimed it in the same moment: the same as InProgress.
    """
    columns = (table.c.request_hash, table.c.message_id, table.c.created_at)
    row = connection.execute(select(*columns).where(_named(organization_id, key)).with_for_update()).first()
    if row is not None and row.created_at > at - KEPT_SECONDS * 1_000_000:
        if bytes(row.request_hash) != request_hash:
            return Different()
        if row.message_id is not None:
            return Done(row.message_id)
        if row.created_at > at - IN_PROGRESS_SECONDS * 1_000_000:
            return InProgress()
    values = {"request_hash": request_hash, "message_id": None, "created_at": at}
    if row is not None:
        connection.execute(update(table).where(_named(organization_id, key)).values(**values))
    else:
        try:
            connection.execute(insert(table), {"organization_id": organization_id, "key": key, **values})
        except IntegrityError as error:
            raise Conflict("idempotency key is being claimed") from error
    return Fresh()


def finish(connection: Connection, *, organization_id: str, key: str, message_id: str) -> None:
    """Bind a key to the message it became; the first message stays."""
    query = update(table).where(_named(organization_id, key), table.c.message_id.is_(None))
    connection.execute(query.values(message_id=message_id))


def release(connection: Connection, *, organization_id: str, key: str) -> None:
    """Give a claimed key back after a request that was refused; a finished one stays."""
    connection.execute(delete(table).where(_named(organization_id, key), table.c.message_id.is_(None)))


def forget(connection: Connection, *, at: int) -> int:
    """Delete keys older than KEPT_SECONDS at a time and return how many."""
    horizon = at - KEPT_SECONDS * 1_000_000
    return connection.execute(delete(table).where(table.c.created_at <= horizon)).rowcount


def _named(organization_id: str, key: str) -> ColumnElement[bool]:
    return and_(table.c.organization_id == organization_id, table.c.key == key)
