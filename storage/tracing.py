"""Messages to or from an address, newest first, within a stretch of time.

Owns that search: over the messages of the stretch, by the index of an organization's time, so
that its cost is that of the stretch and no index is kept for it. SCANNED messages at most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, String, cast, func, or_, select

from storage.records import Source
from storage.schema import deliveries, messages, organizations

SCANNED = 200_000
PAGE_LIMIT = 500
_OUTBOUND = (Source.SUBMISSION.value, Source.API.value, Source.NOTICE.value)


@dataclass(frozen=True, slots=True)
class Query:
    """Which messages. address: in any case; since, until: microseconds; organization_id: None for all."""

    address: str
    since: int
    until: int
    organization_id: str | None = None
    limit: int = 100


def trace(connection: Connection, query: Query) -> list[dict[str, Any]]:
    """Return the messages, newest first, each with its deliveries to the address where it has such."""
    owners = [query.organization_id]
    if query.organization_id is None:
        owners = list(connection.execute(select(organizations.c.id)).scalars())
    found: list[dict[str, Any]] = []
    for owner in owners:
        found += _of_organization(connection, query, str(owner))
    found.sort(key=lambda row: (row["accepted_at"], row["id"]), reverse=True)
    found = found[: max(1, min(query.limit, PAGE_LIMIT))]
    _add_deliveries(connection, found, query.address)
    return found


def _of_organization(connection: Connection, query: Query, owner: str) -> list[dict[str, Any]]:
    columns = messages.c
    newest = (
        select(
            columns.id,
            columns.organization_id,
            columns.source,
            columns.accepted_at,
            columns.reverse_path,
            columns.envelope,
            columns.message_id_header,
            columns.octets,
        )
        .where(
            columns.organization_id == owner,
            columns.accepted_at >= query.since,
            columns.accepted_at <= query.until,
        )
        .order_by(columns.accepted_at.desc())
        .limit(SCANNED)
        .subquery()
    )
    address = query.address.lower()
    # The envelope is JSON: an address stands in it between quotes, escaped as JSON escapes.
    named = json.dumps(address)
    wanted = select(newest).where(
        or_(
            func.lower(newest.c.reverse_path) == address,
            func.lower(cast(newest.c.envelope, String)).contains(f'"address":{named}', autoescape=True),
        )
    )
    rows = connection.execute(wanted.order_by(newest.c.accepted_at.desc()).limit(query.limit)).all()
    return [_shown(row, address) for row in rows]


def _shown(row: Any, address: str) -> dict[str, Any]:
    recipients = [one["address"] for one in json.loads(row.envelope)["recipients"]]
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        "source": row.source,
        "direction": "out" if row.source in _OUTBOUND else "in",
        "accepted_at": row.accepted_at,
        "reverse_path": row.reverse_path,
        "is_sender": (row.reverse_path or "").lower() == address,
        "recipients": len(recipients),
        "message_id_header": row.message_id_header,
        "octets": row.octets,
        "deliveries": [],
    }


def _add_deliveries(connection: Connection, found: list[dict[str, Any]], address: str) -> None:
    by_id = {row["id"]: row for row in found}
    if not by_id:
        return
    query = select(
        deliveries.c.id,
        deliveries.c.message_id,
        deliveries.c.recipient,
        deliveries.c.state,
        deliveries.c.tries,
        deliveries.c.next_attempt_at,
        deliveries.c.last_outcome,
    ).where(deliveries.c.message_id.in_(list(by_id)))
    for row in connection.execute(query.order_by(deliveries.c.id)):
        message = by_id[row.message_id]
        # Of what the address sent every recipient counts, of what it got its own delivery alone.
        is_meant = message["is_sender"] or row.recipient.lower() == address.lower()
        if is_meant and len(message["deliveries"]) < PAGE_LIMIT:
            message["deliveries"].append(_delivery(row))


def _delivery(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "recipient": row.recipient,
        "state": row.state,
        "tries": row.tries,
        "next_attempt_at": row.next_attempt_at,
        "last_outcome": json.loads(row.last_outcome) if row.last_outcome else None,
    }
