"""The queue as people see it: counts, lists and the deliveries of one message.

Owns reading alone and the form in which an outcome is kept and shown. Results
are JSON-able. Lists across organizations are the operator's; the others take
the organization as an argument.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from storage.records import FINAL_STATES, DeliveryState, Outcome
from storage.schema import deliveries as table

PAGE_LIMIT = 1000
OPEN_STATES = tuple(sorted(state.value for state in DeliveryState if state not in FINAL_STATES))


def outcome_facts(outcome: Outcome) -> dict[str, object]:
    """Return an outcome as JSON-able facts, the empty ones left out; duration in microseconds."""
    facts = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
    facts["state"] = outcome.state.value
    is_delivered = outcome.state is DeliveryState.DELIVERED
    facts["handover"] = outcome.handover.value if is_delivered else ""
    return {name: value for name, value in facts.items() if value not in (None, "", 0, ())}


def counts(connection: Connection, *, organization_id: str | None = None) -> dict[str, int]:
    """Return how many deliveries there are in each open state; None: of all organizations together."""
    query = select(table.c.state, func.count()).where(table.c.state.in_(OPEN_STATES)).group_by(table.c.state)
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    found = {row[0]: int(row[1]) for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in OPEN_STATES}


def domain_counts(
    connection: Connection, *, limit: int = 100, organization_id: str | None = None
) -> list[dict[str, Any]]:
    """Return the domains with most open deliveries: domain, state and count of each."""
    number = func.count().label("number")
    query = select(table.c.domain, table.c.state, number).where(table.c.state.in_(OPEN_STATES))
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    query = query.group_by(table.c.domain, table.c.state).order_by(number.desc(), table.c.domain)
    rows = connection.execute(query.limit(_page(limit)))
    return [{"domain": row.domain, "state": row.state, "count": row.number} for row in rows]


def inspect(
    connection: Connection,
    *,
    states: Collection[str] | None = None,
    domain: str | None = None,
    organization_id: str | None = None,
    after: str = "",
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return up to `limit` deliveries with ids above `after`, oldest first; None: the open states."""
    query = select(table).where(table.c.id > after, table.c.state.in_(sorted(states or OPEN_STATES)))
    if domain is not None:
        query = query.where(table.c.domain == domain)
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    return _items(connection, query.order_by(table.c.id).limit(_page(limit)))


def of_message(
    connection: Connection, *, organization_id: str, message_id: str, limit: int = PAGE_LIMIT
) -> list[dict[str, Any]]:
    """Return the deliveries of one tenant's message, oldest first."""
    query = select(table).where(table.c.message_id == message_id, table.c.organization_id == organization_id)
    return _items(connection, query.order_by(table.c.id).limit(_page(limit)))


def _page(limit: int) -> int:
    return max(1, min(limit, PAGE_LIMIT))


def _items(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    return [_item(row) for row in connection.execute(query)]


def _item(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "organization": row.organization_id,
        "message": row.message_id,
        "recipient": row.recipient,
        "domain": row.domain,
        "state": row.state,
        "priority": row.priority,
        "tries": row.tries,
        "created_at": row.created_at,
        "next_attempt_at": row.next_attempt_at,
        "expires_at": row.expires_at,
        "begun_at": row.begun_at,
        "last_outcome": json.loads(row.last_outcome) if row.last_outcome else None,
    }
