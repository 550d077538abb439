"""Actions on the queue that can be taken back: what each delivery was before, and its way back.

Owns the record of an action, its undoing, and its end: from then on nothing is taken
back and the messages of cancelled deliveries leave the spool. A delivery that has gone
on since, or that another action changed, is left as it is. Each call changes a
bounded number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from storage import events, ids
from storage.db import Notice, publish
from storage.errors import Missing
from storage.queue import finish
from storage.queue_acts import Acted, Selection, Verb
from storage.records import DeliveryState, Event
from storage.schema import deliveries as table
from storage.schema_undoing import queue_action_items as items
from storage.schema_undoing import queue_actions as actions

LIMIT = 1000
PAGE_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Undone:
    """What a call took back. looked_at: how many deliveries, LIMIT of them if there may be more."""

    restored: tuple[str, ...]
    looked_at: int


def begin(connection: Connection, *, verb: Verb, selection: Selection, actor: str, at: int) -> str:
    """Record an action and return its id."""
    made = ids.new("act")
    values = {
        "id": made,
        "kind": verb.value,
        "actor": actor,
        "at": at,
        "organization_id": selection.organization_id,
        "selection": json.dumps(selection.given(), sort_keys=True),
        "changed": 0,
    }
    connection.execute(insert(actions).values(values))
    return made


def count(connection: Connection, *, action: str, changed: int) -> None:
    """Add to the number of deliveries that an action changed."""
    query = update(actions).where(actions.c.id == action)
    connection.execute(query.values(changed=actions.c.changed + changed))


def recent(
    connection: Connection, *, organization_id: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return the last actions, the newest first; organization_id: of those that are this one's alone."""
    query = select(actions).order_by(actions.c.at.desc(), actions.c.id.desc())
    if organization_id is not None:
        query = query.where(actions.c.organization_id == organization_id)
    found = connection.execute(query.limit(max(1, min(limit, PAGE_LIMIT)))).mappings()
    return [{**row, "selection": json.loads(row["selection"])} for row in found]


def undo(
    connection: Connection, *, action: str, actor: str, at: int, organization_id: str | None = None
) -> Undone:
    """Give deliveries of an action back what they were, LIMIT at most; Missing where there is none.

    organization_id: of the asker, who takes back only actions that were its own.
    """
    query = select(actions.c.id).where(actions.c.id == action)
    if organization_id is not None:
        query = query.where(actions.c.organization_id == organization_id)
    if connection.execute(query).first() is None:
        raise Missing(f"{action}: there is no such action")
    first = select(items).where(items.c.action_id == action).order_by(items.c.delivery_id).limit(LIMIT)
    looked_at = [row.delivery_id for row in connection.execute(first)]
    restored = _unchanged(connection, first)
    for row in restored:
        _restore(connection, row, at)
    if restored:
        _tell(connection, restored, action, actor, at)
        due = [row.next_attempt_at for row in restored if row.next_attempt_at is not None]
        if due:
            publish(connection, Notice("queue", "", min(due)))
    if looked_at:
        connection.execute(
            delete(items).where(items.c.action_id == action, items.c.delivery_id.in_(looked_at))
        )
    return Undone(tuple(row.delivery_id for row in restored), len(looked_at))


def close(connection: Connection, *, before: int) -> Acted:
    """End actions of before a time: LIMIT of their deliveries at most are let go for good."""
    query = (
        select(items.c.action_id, items.c.delivery_id, items.c.message_id)
        .join(actions, actions.c.id == items.c.action_id)
        .where(actions.c.at < before)
        .limit(LIMIT)
    )
    rows = connection.execute(query).all()
    for action in {row.action_id for row in rows}:
        ended = [row.delivery_id for row in rows if row.action_id == action]
        connection.execute(delete(items).where(items.c.action_id == action, items.c.delivery_id.in_(ended)))
    finished = finish(connection, message_ids=sorted({row.message_id for row in rows}))
    return Acted(tuple(row.delivery_id for row in rows), finished)


def forget(connection: Connection, *, before: int) -> int:
    """Drop the records of actions of before a time that are closed; returns how many."""
    open_ones = select(items.c.action_id).where(items.c.action_id == actions.c.id)
    query = delete(actions).where(actions.c.at < before, ~open_ones.exists())
    return connection.execute(query).rowcount


def _unchanged(connection: Connection, chosen: Select[Any]) -> Sequence[Row[Any]]:
    """Return those of some items whose deliveries are still as the action left them."""
    first = chosen.subquery()
    query = (
        select(first, table.c.organization_id, table.c.recipient)
        .join(table, table.c.id == first.c.delivery_id)
        .where(
            table.c.state == first.c.after_state,
            table.c.next_attempt_at.is_not_distinct_from(first.c.after_due),
            table.c.lease.is_(None),
        )
        .with_for_update(of=table)
    )
    return connection.execute(query).all()


def _restore(connection: Connection, row: Row[Any], at: int) -> None:
    values = {
        "state": row.state,
        "next_attempt_at": row.next_attempt_at,
        "expires_at": row.expires_at,
        "updated_at": at,
    }
    connection.execute(update(table).where(table.c.id == row.delivery_id).values(values))


def _tell(connection: Connection, rows: Sequence[Row[Any]], action: str, actor: str, at: int) -> None:
    made = [
        Event(
            id=ids.new("evt"),
            kind="message.restored",
            at=at,
            organization_id=row.organization_id,
            message_id=row.message_id,
            delivery_id=row.delivery_id,
            data={
                "recipient": row.recipient,
                "actor": actor,
                "action": action,
                "state": DeliveryState(row.state).value,
            },
        )
        for row in rows
    ]
    events.append(connection, made)
