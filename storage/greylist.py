"""Who came for the first time, and who came back as mail servers do: rows behind greylisting.

Owns the rows of `greylist`. A row's first sight stays until it is over, however often it is written
again; prune keeps ROWS_LIMIT rows, the latest. Clients, senders and recipients come as digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from storage.schema import greylist as table
from storage.selection import run

ROWS_LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class Sight:
    """When something was first seen, and until when that counts; microseconds.

    known: the client has come back for it, else it is waited for.
    """

    digest: bytes
    known: bool
    since: int
    until: int


# A row that is over begins anew; of one that holds, only who is known is prolonged.
_ADD = """
INSERT INTO greylist (digest, known, since, until, changed_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET
  since = CASE WHEN greylist.until < excluded.since THEN excluded.since ELSE greylist.since END,
  until = CASE
    WHEN greylist.until < excluded.since THEN excluded.until
    WHEN excluded.known = 1 AND excluded.until > greylist.until THEN excluded.until
    ELSE greylist.until END,
  changed_at = excluded.changed_at
"""


def add(connection: Connection, seen: Iterable[Sight], *, at: int) -> None:
    """Write what was seen."""
    for one in sorted(seen, key=lambda one: one.digest):
        run(connection, _ADD, (one.digest, int(one.known), one.since, one.until, at))


def changed(connection: Connection, *, since: int, limit: int) -> list[Sight]:
    """Return the rows that changed after a time, the latest first."""
    query = select(table).where(table.c.changed_at > since).order_by(table.c.changed_at.desc()).limit(limit)
    return [
        Sight(bytes(row.digest), bool(row.known), row.since, row.until) for row in connection.execute(query)
    ]


def prune(connection: Connection, *, at: int) -> None:
    """Forget what is over, and the oldest rows beyond ROWS_LIMIT."""
    beyond = select(table.c.changed_at).order_by(table.c.changed_at.desc()).offset(ROWS_LIMIT).limit(1)
    last = connection.execute(beyond).scalar()
    connection.execute(delete(table).where(table.c.until < at))
    if last is not None:
        connection.execute(delete(table).where(table.c.changed_at <= last))
