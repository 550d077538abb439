"""The log of events: appended once, never changed, read in order by consumers.

Owns the rows of `events` and the durable cursors of those who work through
them. Knows no kinds and sends nothing. The order of `seq` is the order of
commits, so that a consumer which has seen one misses none below it: with one
writing process by itself, with several on PostgreSQL because whoever inserts
holds the log until its commit (`hold`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_not

from storage.db import Notice, publish
from storage.records import Event
from storage.schema import cursors, deliveries, messages
from storage.schema import events as table

PAGE_LIMIT = 1000
TIMELINE_LIMIT = 2000
# Any number will do, as long as it stays the same: 'evnt' in ASCII.
_LOCK_NUMBER = 0x65766E74


def hold(connection: Connection) -> None:
    """Take the log for this transaction before anything is inserted; every inserter calls it.

    Late in a unit: on PostgreSQL all other processes' events wait from here to the commit, which
    take turns there anyway, as NOTIFY has it.
    """
    if connection.dialect.name == "postgresql":
        connection.connection.cursor().execute(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})")


def append(connection: Connection, events: Sequence[Event]) -> int:
    """Insert events in their order and return the highest seq given, 0 for none."""
    if not events:
        return 0
    hold(connection)
    connection.execute(insert(table), [_values(event) for event in events])
    seq = int(connection.execute(select(func.max(table.c.seq))).scalar_one())
    publish(connection, Notice("events", "", seq))
    return seq


def timeline(connection: Connection, *, organization_id: str, message_id: str) -> list[Event]:
    """Return the first TIMELINE_LIMIT events of a tenant's message in order."""
    query = select(table).where(table.c.message_id == message_id, table.c.organization_id == organization_id)
    return _events(connection, query.order_by(table.c.seq).limit(TIMELINE_LIMIT))


def after(
    connection: Connection,
    *,
    seq: int,
    kinds: Collection[str] | None = None,
    organization_id: str | None = None,
    mailbox_id: str | None = None,
    limit: int,
) -> list[Event]:
    """Return up to `limit` events above `seq` in order, of one tenant; None: of all."""
    query = _narrow(select(table).where(table.c.seq > seq), kinds, organization_id, mailbox_id)
    return _events(connection, query.order_by(table.c.seq).limit(_page(limit)))


def seq_of(connection: Connection, *, organization_id: str, event_id: str) -> int | None:
    """Return the position of a tenant's event, or None."""
    query = select(table.c.seq).where(table.c.id == event_id, table.c.organization_id == organization_id)
    seq = connection.execute(query).scalar()
    return None if seq is None else int(seq)


def latest(
    connection: Connection,
    *,
    before: int | None = None,
    kinds: Collection[str] | None = None,
    organization_id: str | None = None,
    limit: int,
) -> list[Event]:
    """Return up to `limit` newest events, newest first, below `before` where it is given."""
    query = _narrow(select(table), kinds, organization_id, None)
    if before is not None:
        query = query.where(table.c.seq < before)
    return _events(connection, query.order_by(table.c.seq.desc()).limit(_page(limit)))


def message_facts(connection: Connection, *, message_or_delivery_id: str) -> dict[str, object] | None:
    """Return what is known of a message, by its id or that of one of its deliveries, JSON-able.

    For the operator's explanations: it asks for no organization. None if there is no such id.
    """
    wanted = message_or_delivery_id
    if wanted.startswith("dlv_"):
        owner = select(deliveries.c.message_id).where(deliveries.c.id == wanted).scalar_subquery()
        row = connection.execute(select(messages).where(messages.c.id == owner)).first()
    else:
        row = connection.execute(select(messages).where(messages.c.id == wanted)).first()
    if row is None:
        return None
    names = "id organization_id source accepted_at octets reverse_path subject message_id_header"
    facts: dict[str, object] = {name: getattr(row, name) for name in names.split()}
    facts["digest"] = bytes(row.digest).hex()
    for name in ("envelope", "peer", "decision", "verdicts"):
        facts[name] = json.loads(getattr(row, name))
    return facts


def cursor(connection: Connection, *, name: str) -> int:
    """Return how far a consumer has come; 0 for one that never ran."""
    seq = connection.execute(select(cursors.c.seq).where(cursors.c.name == name)).scalar()
    return 0 if seq is None else int(seq)


def hold_cursor(connection: Connection, *, name: str) -> int:
    """Return how far a consumer has come, and keep others who consume under its name out until the end."""
    if connection.dialect.name != "postgresql":
        return cursor(connection, name=name)
    connection.execute(insert_or_not(cursors).on_conflict_do_nothing(), {"name": name, "seq": 0})
    query = select(cursors.c.seq).where(cursors.c.name == name).with_for_update()
    return int(connection.execute(query).scalar_one())


def advance(connection: Connection, *, name: str, seq: int) -> None:
    """Move a consumer's cursor forward to `seq`, in the transaction of what it did; never back."""
    known = connection.execute(select(cursors.c.seq).where(cursors.c.name == name)).scalar()
    if known is None:
        connection.execute(insert(cursors), {"name": name, "seq": seq})
    elif seq > known:
        connection.execute(update(cursors).where(cursors.c.name == name, cursors.c.seq < seq).values(seq=seq))


def _page(limit: int) -> int:
    return max(1, min(limit, PAGE_LIMIT))


def _narrow(
    query: Select[Any],
    kinds: Collection[str] | None,
    organization_id: str | None,
    mailbox_id: str | None,
) -> Select[Any]:
    if kinds is not None:
        query = query.where(table.c.kind.in_(sorted(kinds)))
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    if mailbox_id is not None:
        query = query.where(table.c.mailbox_id == mailbox_id)
    return query


def _values(event: Event) -> dict[str, object]:
    return {
        "id": event.id,
        "kind": event.kind,
        "at": event.at,
        "organization_id": event.organization_id,
        "message_id": event.message_id,
        "mailbox_id": event.mailbox_id,
        "delivery_id": event.delivery_id,
        "data": json.dumps(dict(event.data), separators=(",", ":")) if event.data else "{}",
    }


def _events(connection: Connection, query: Select[Any]) -> list[Event]:
    return [_event(row) for row in connection.execute(query)]


def _event(row: Row[Any]) -> Event:
    return Event(
        row.id,
        row.kind,
        row.at,
        row.organization_id,
        row.message_id,
        row.mailbox_id,
        row.delivery_id,
        json.loads(row.data),
        row.seq,
    )
