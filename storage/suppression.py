"""Addresses that mail may not go to: rows of `suppressions`, one an address, organization and sender at most.

Owns what they cover and who may see them: a base address covers its plus tags, a tagged one itself
alone; a row of the scope 'sender' holds one sender's mail back, 'organization' a tenant's,
'appliance' everybody's. Adds none by itself: storage/suppressing.py does, and people. Addresses are
in normal form when they come here. RFC 5233 (subaddress with '+').
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select

from storage import ids
from storage.errors import Missing
from storage.records import DeliveryState, Suppression
from storage.schema import deliveries
from storage.schema import suppressions as table

PAGE_LIMIT = 1000
CAUSES = frozenset({"hard_bounce", "soft_bounce", "complaint", "manual", "unsubscribe"})
SCOPES = frozenset({"sender", "organization", "appliance"})
ACTIVE, COUNTING = "active", "counting"
IN_FLIGHT_LIMIT = 1000
KEPT = 30 * 86_400 * 1_000_000
PRUNE_ROWS = 500
_NAMES = tuple(one.name for one in fields(Suppression))
# Whoever begins a transaction on PostgreSQL holds it shared, whoever suppresses holds it alone: 'supp'.
_LOCK_NUMBER = 0x73757070


def covering(address: str) -> tuple[str, ...]:
    """Return the addresses whose suppression holds mail to one back: itself, and its base without the tag."""
    local, _, domain = address.rpartition("@")
    base, mark, _ = local.partition("+")
    if not mark or not base or local.startswith('"'):
        return (address,)
    return (address, f"{base}@{domain}")


def guard(connection: Connection, *, alone: bool) -> None:
    """Order suppressions and beginnings among processes: what has answered is seen by all that begin later.

    SQLite has one writer, whose units stand in an order by themselves.
    """
    if connection.dialect.name == "postgresql":
        kind = "" if alone else "_shared"
        connection.connection.cursor().execute(f"SELECT pg_advisory_xact_lock{kind}({_LOCK_NUMBER})")


def find(
    connection: Connection, *, organization_id: str, address: str, at: int, sender: str = ""
) -> Suppression | None:
    """Return what holds mail to an address back at a time, or None. sender: whose mail it is."""
    query = select(table).where(
        table.c.address.in_(covering(address)),
        concerns(organization_id),
        in_force(at),
        table.c.state == ACTIVE,
    )
    found = [of_row(row) for row in connection.execute(query)]
    wide = [one for one in found if one.scope != "sender" or (sender and one.sender == sender)]
    return wide[0] if wide else None


def own(
    connection: Connection, *, organization_id: str, address: str, sender: str = ""
) -> Suppression | None:
    """Return the row of exactly this address, organization and sender, in whatever state."""
    row = connection.execute(select(table).where(_key(organization_id, address, sender))).first()
    return None if row is None else of_row(row)


def add(
    connection: Connection,
    *,
    organization_id: str,
    address: str,
    cause: str,
    evidence: str = "",
    expires_at: int | None = None,
    at: int,
    scope: str = "organization",
    sender: str = "",
    event_id: str | None = None,
) -> Suppression:
    """Suppress an address; one that is suppressed already gets the new cause, evidence and expiry.

    sender: whose mail alone is held back, for the scope 'sender' alone.
    """
    if cause not in CAUSES:
        raise ValueError(f"suppression cause {cause!r}")
    if scope not in SCOPES or (scope == "sender") != bool(sender):
        raise ValueError(f"suppression scope {scope!r} of sender {sender!r}")
    made = Suppression(
        ids.new("sup"),
        organization_id,
        address,
        cause,
        evidence,
        at,
        expires_at,
        scope=scope,
        sender=sender,
        event_id=event_id,
    )
    guard(connection, alone=True)
    put(connection, made)
    return made


def put(connection: Connection, made: Suppression) -> None:
    """Write a row in the place of the one with its key."""
    connection.execute(delete(table).where(_key(made.organization_id, made.address, made.sender)))
    connection.execute(insert(table), {name: getattr(made, name) for name in _NAMES})


def remove(connection: Connection, *, organization_id: str, address: str, sender: str = "") -> Suppression:
    """Let mail go to an address again; returns what held it back. Missing if it was not suppressed."""
    found = own(connection, organization_id=organization_id, address=address, sender=sender)
    if found is None or found.state != ACTIVE:
        raise Missing("suppression")
    forget(connection, found)
    return found


def forget(connection: Connection, found: Suppression) -> None:
    """Delete a row."""
    connection.execute(delete(table).where(table.c.id == found.id))


def suppressions(
    connection: Connection,
    *,
    organization_id: str,
    at: int,
    after: str = "",
    limit: int = 100,
    address: str = "",
    cause: str = "",
) -> list[Suppression]:
    """Return up to `limit` suppressions in force that a tenant made, with ids above `after`, oldest first.

    address, cause: of these alone, '' for all.
    """
    query = select(table).where(
        table.c.organization_id == organization_id,
        table.c.id > after,
        table.c.state == ACTIVE,
        in_force(at),
    )
    if address:
        query = query.where(table.c.address.in_(covering(address)))
    if cause:
        query = query.where(table.c.cause == cause)
    limit = max(1, min(limit, PAGE_LIMIT))
    return [of_row(row) for row in connection.execute(query.order_by(table.c.id).limit(limit))]


def prune(connection: Connection, *, at: int) -> None:
    """Delete what expired KEPT ago, PRUNE_ROWS at most."""
    old = select(table.c.id).where(table.c.expires_at < at - KEPT).limit(PRUNE_ROWS)
    found = connection.execute(old).scalars().all()
    if found:
        connection.execute(delete(table).where(table.c.id.in_(found)))


def in_flight(connection: Connection, made: Suppression) -> list[tuple[str, str]]:
    """Return (message id, delivery id) of transactions that a new suppression comes too late for.

    They began before it, in whatever process; none begins after the unit that asks this.
    """
    local, _, domain = made.address.rpartition("@")
    query = select(deliveries.c.id, deliveries.c.message_id, deliveries.c.recipient).where(
        deliveries.c.state == DeliveryState.ACTIVE.value,
        deliveries.c.begun_at.is_not(None),
        deliveries.c.domain == domain,
    )
    if made.scope != "appliance":
        query = query.where(deliveries.c.organization_id == made.organization_id)
    rows = connection.execute(query.limit(IN_FLIGHT_LIMIT))
    return [(row.message_id, row.id) for row in rows if _is_of(row.recipient, local)]


def _is_of(recipient: str, local: str) -> bool:
    named = recipient.rpartition("@")[0].lower()
    return named == local or (not local.startswith('"') and named.partition("+")[0] == local)


def concerns(organization_id: str) -> Any:
    """Return the condition that a row holds mail of a tenant back."""
    return or_(table.c.organization_id == organization_id, table.c.scope == "appliance")


def in_force(at: int) -> Any:
    """Return the condition that a row has not expired."""
    return or_(table.c.expires_at.is_(None), table.c.expires_at > at)


def _key(organization_id: str, address: str, sender: str) -> Any:
    return and_(
        table.c.organization_id == organization_id, table.c.address == address, table.c.sender == sender
    )


def of_row(row: Row[Any]) -> Suppression:
    """Return the suppression that a row holds."""
    return Suppression(**{name: getattr(row, name) for name in _NAMES})
