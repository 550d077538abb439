"""What a person does to deliveries: hold, release, retry now, cancel.

Owns these four changes and their events. Touches no delivery that an attempt
holds: its lease decides. Each call changes a bounded number of rows, so that a
million take many short write units and stop no one else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from storage import events, ids
from storage.db import Notice, publish
from storage.queue import finish
from storage.records import DeliveryState, Event
from storage.schema import deliveries as table

LIMIT = 1000
WAITING = (DeliveryState.SCHEDULED, DeliveryState.DEFERRED)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which deliveries are meant: all that agree with every field given; none given: all there are."""

    delivery_id: str | None = None
    message_id: str | None = None
    domain: str | None = None
    organization_id: str | None = None


@dataclass(frozen=True, slots=True)
class Acted:
    """What a call did. changed: deliveries, LIMIT of them if there may be more; finished: as in settle."""

    changed: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()


def hold(connection: Connection, *, selection: Selection, actor: str, at: int) -> Acted:
    """Keep waiting deliveries from being tried until they are released."""
    rows = _select(connection, selection, WAITING)
    _change(connection, rows, at=at, state=DeliveryState.HELD, due=None)
    _tell(connection, rows, kind="message.held", actor=actor, at=at)
    return Acted(tuple(row.id for row in rows))


def release(connection: Connection, *, selection: Selection, actor: str, at: int) -> Acted:
    """Let held deliveries be tried, at once."""
    rows = _select(connection, selection, (DeliveryState.HELD,))
    _give_time(connection, rows, at)
    _change(connection, rows, at=at, state=DeliveryState.SCHEDULED, due=at)
    _tell(connection, rows, kind="message.released", actor=actor, at=at)
    return Acted(tuple(row.id for row in rows))


def retry_now(connection: Connection, *, selection: Selection, actor: str, at: int) -> Acted:
    """Make deferred deliveries that wait for a later time due at once."""
    rows = _select(connection, selection, (DeliveryState.DEFERRED,), later_than=at)
    _change(connection, rows, at=at, state=DeliveryState.DEFERRED, due=at)
    _tell(connection, rows, kind="message.retried", actor=actor, at=at)
    return Acted(tuple(row.id for row in rows))


def cancel(connection: Connection, *, selection: Selection, actor: str, at: int) -> Acted:
    """End deliveries that wait or are held, without a notice to the sender."""
    rows = _select(connection, selection, (*WAITING, DeliveryState.HELD))
    _change(connection, rows, at=at, state=DeliveryState.CANCELLED, due=None)
    _tell(connection, rows, kind="message.cancelled", actor=actor, at=at)
    finished = finish(connection, message_ids=sorted({row.message_id for row in rows}))
    return Acted(tuple(row.id for row in rows), finished)


def _select(
    connection: Connection,
    selection: Selection,
    states: Sequence[DeliveryState],
    *,
    later_than: int | None = None,
) -> Sequence[Row[*tuple[Any, ...]]]:
    query = select(table.c.id, table.c.organization_id, table.c.message_id, table.c.recipient)
    query = query.where(table.c.state.in_([state.value for state in states]))
    wanted = {
        table.c.id: selection.delivery_id,
        table.c.message_id: selection.message_id,
        table.c.domain: selection.domain,
        table.c.organization_id: selection.organization_id,
    }
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    if later_than is not None:
        query = query.where(table.c.next_attempt_at > later_than)
    return connection.execute(query.limit(LIMIT).with_for_update()).all()


def _change(
    connection: Connection,
    rows: Sequence[Row[*tuple[Any, ...]]],
    *,
    at: int,
    state: DeliveryState,
    due: int | None,
) -> None:
    if not rows:
        return
    query = update(table).where(table.c.id.in_([row.id for row in rows]))
    connection.execute(query.values(state=state.value, next_attempt_at=due, updated_at=at))
    if due is not None:
        publish(connection, Notice("queue", "", due))


def _give_time(connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]], at: int) -> None:
    """Take the time for which deliveries were held off what they have been tried for."""
    if rows:
        query = update(table).where(table.c.id.in_([row.id for row in rows]), table.c.updated_at < at)
        connection.execute(query.values(expires_at=table.c.expires_at + at - table.c.updated_at))


def _tell(
    connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]], *, kind: str, actor: str, at: int
) -> None:
    made = [
        Event(
            id=ids.new("evt"),
            kind=kind,
            at=at,
            organization_id=row.organization_id,
            message_id=row.message_id,
            delivery_id=row.id,
            data={"recipient": row.recipient, "actor": actor},
        )
        for row in rows
    ]
    events.append(connection, made)
