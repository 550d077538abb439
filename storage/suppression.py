"""Addresses that a tenant's mail may not go to.

Owns the rows of `suppressions`, at most one an address and organization. Adds
none by itself: bounces, complaints and people do, through the layers above.
Addresses are in normal form when they come here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select

from storage import ids
from storage.errors import Missing
from storage.records import Suppression
from storage.schema import suppressions as table

PAGE_LIMIT = 1000
CAUSES = frozenset({"hard_bounce", "complaint", "manual", "unsubscribe"})


def find(connection: Connection, *, organization_id: str, address: str, at: int) -> Suppression | None:
    """Return what holds mail to an address back at a time, or None."""
    query = select(table).where(table.c.organization_id == organization_id, table.c.address == address)
    row = connection.execute(query.where(_in_force(at))).first()
    return None if row is None else _suppression(row)


def add(
    connection: Connection,
    *,
    organization_id: str,
    address: str,
    cause: str,
    evidence: str = "",
    expires_at: int | None = None,
    at: int,
) -> Suppression:
    """Suppress an address; one that is suppressed already gets the new cause, evidence and expiry."""
    if cause not in CAUSES:
        raise ValueError(f"suppression cause {cause!r}")
    made = Suppression(ids.new("sup"), organization_id, address, cause, evidence, at, expires_at)
    _delete(connection, organization_id, address)
    values = {name: getattr(made, name) for name in made.__slots__}
    connection.execute(insert(table), values)
    return made


def remove(connection: Connection, *, organization_id: str, address: str) -> None:
    """Let mail go to an address again; Missing if it was not suppressed."""
    if _delete(connection, organization_id, address) == 0:
        raise Missing("suppression")


def suppressions(
    connection: Connection, *, organization_id: str, at: int, after: str = "", limit: int = 100
) -> list[Suppression]:
    """Return up to `limit` suppressions in force of a tenant with ids above `after`, oldest first."""
    query = select(table).where(table.c.organization_id == organization_id, table.c.id > after, _in_force(at))
    limit = max(1, min(limit, PAGE_LIMIT))
    return [_suppression(row) for row in connection.execute(query.order_by(table.c.id).limit(limit))]


def _in_force(at: int) -> Any:
    return or_(table.c.expires_at.is_(None), table.c.expires_at > at)


def _delete(connection: Connection, organization_id: str, address: str) -> int:
    query = delete(table).where(table.c.organization_id == organization_id, table.c.address == address)
    return connection.execute(query).rowcount


def _suppression(row: Row[Any]) -> Suppression:
    return Suppression(
        row.id,
        row.organization_id,
        row.address,
        row.cause,
        row.evidence,
        row.created_at,
        row.expires_at,
    )
