"""Calls of webhooks that wait: added once an event, leased, settled, each with its event.

Owns the rows of `webhook_calls`, WAITING_LIMIT at most. A lease is the time of the next
attempt put off, fenced by its old value: a call that its process forgot is made again, so
that a receiver may hear twice and tells by the id. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, delete, func, insert, select, update

from storage import events
from storage.db import Notice, publish
from storage.records import Event
from storage.schema import webhook_calls as table

WAITING_LIMIT = 100_000
LEASE_LIMIT = 100
TOPIC = "webhooks"


@dataclass(frozen=True, slots=True)
class Call:
    """One call to be made. payload: JSON text; origin: scheme, host and port of the URL.

    content: whether the message itself goes with it. tries: attempts begun. Times in microseconds.
    """

    id: str
    organization_id: str
    event_id: str
    message_id: str | None
    url: str
    origin: str
    kind: str
    payload: str
    content: bool
    created_at: int
    next_attempt_at: int
    expires_at: int
    tries: int = 0


def waiting(connection: Connection) -> int:
    """Return how many calls wait."""
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def add(connection: Connection, call: Call) -> bool:
    """Have a call made; False where there is no room. One that is there already for its event stays."""
    known = select(table.c.id).where(table.c.event_id == call.event_id, table.c.url == call.url)
    if connection.execute(known).first() is not None:
        return True
    if waiting(connection) >= WAITING_LIMIT:
        return False
    connection.execute(insert(table), {**asdict(call), "content": int(call.content)})
    publish(connection, Notice(TOPIC, "", call.next_attempt_at))
    return True


def lease(
    connection: Connection, *, now: int, until: int, limit: int, without: Collection[str] = ()
) -> list[Call]:
    """Take up to `limit` due calls, the longest due first, none of these origins; a try of each begins."""
    query = select(table).where(table.c.next_attempt_at <= now)
    if without:
        query = query.where(table.c.origin.not_in(sorted(without)))
    query = query.order_by(table.c.next_attempt_at).limit(max(1, min(limit, LEASE_LIMIT)))
    query = query.with_for_update(skip_locked=True)
    taken: list[Call] = []
    for row in connection.execute(query).all():
        values = {one.name: getattr(row, one.name) for one in fields(Call)}
        taken.append(Call(**{**values, "content": bool(row.content), "tries": row.tries + 1}))
        _put_off(connection, row.id, until, row.tries + 1)
    return taken


def _put_off(connection: Connection, call_id: str, until: int, tries: int) -> None:
    change = update(table).where(table.c.id == call_id)
    connection.execute(change.values(next_attempt_at=until, tries=tries))


def next_due(connection: Connection) -> int | None:
    """Return when the first waiting call is due."""
    found = connection.execute(select(func.min(table.c.next_attempt_at))).scalar()
    return None if found is None else int(found)


def give_back(connection: Connection, calls: Sequence[Call], *, at: int) -> None:
    """Let calls that were leased and not begun be taken again at once."""
    for call in calls:
        _put_off(connection, call.id, at, call.tries - 1)


def settle(connection: Connection, call: Call, *, next_attempt_at: int | None, told: Event) -> None:
    """Note how an attempt ended: done with, or tried again at a time."""
    if next_attempt_at is None:
        connection.execute(delete(table).where(table.c.id == call.id))
    else:
        change = update(table).where(table.c.id == call.id, table.c.tries == call.tries)
        connection.execute(change.values(next_attempt_at=next_attempt_at))
    events.append(connection, [told])
