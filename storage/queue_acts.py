"""What a person does to deliveries: hold, release, retry now, cancel; and how that looks beforehand.

Owns these four changes, their events, and the count of what one would change. Touches
no delivery that an attempt holds: its lease decides. Each call changes a bounded
number of rows, so that a million take many short write units and stop no one else's.
What a delivery was before is kept with its action (storage.undoing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from storage import events, ids
from storage.db import Notice, publish
from storage.queue import finish
from storage.records import DeliveryState, Event
from storage.schema import deliveries as table
from storage.schema_undoing import queue_action_items as items

LIMIT = 1000
SAMPLE = 10
WAITING = (DeliveryState.SCHEDULED, DeliveryState.DEFERRED)
Rows = Sequence[Row[*tuple[Any, ...]]]


class Verb(str, Enum):
    """What is done."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which deliveries are meant: all that agree with every field given; none given: all there are."""

    delivery_id: str | None = None
    message_id: str | None = None
    domain: str | None = None
    organization_id: str | None = None

    def given(self) -> dict[str, str]:
        """Return the fields that are given, JSON-able."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Acted:
    """What a call did. changed: deliveries, LIMIT of them if there may be more; finished: as in settle."""

    changed: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would change: how many deliveries, of how many organizations, and the first of them."""

    deliveries: int
    organizations: int
    sample: tuple[Mapping[str, Any], ...]


def hold(
    connection: Connection, *, selection: Selection, actor: str, at: int, action: str | None = None
) -> Acted:
    """Keep waiting deliveries from being tried until they are released."""
    rows = _select(connection, selection, Verb.HOLD, at, action)
    _change(connection, rows, at=at, state=DeliveryState.HELD, due=None, action=action)
    _tell(connection, rows, kind="message.held", actor=actor, at=at, action=action)
    return Acted(tuple(row.id for row in rows))


def release(
    connection: Connection, *, selection: Selection, actor: str, at: int, action: str | None = None
) -> Acted:
    """Let held deliveries be tried, at once."""
    rows = _select(connection, selection, Verb.RELEASE, at, action)
    _give_time(connection, rows, at)
    _change(connection, rows, at=at, state=DeliveryState.SCHEDULED, due=at, action=action)
    _tell(connection, rows, kind="message.released", actor=actor, at=at, action=action)
    return Acted(tuple(row.id for row in rows))


def retry_now(
    connection: Connection, *, selection: Selection, actor: str, at: int, action: str | None = None
) -> Acted:
    """Make deferred deliveries that wait for a later time due at once."""
    rows = _select(connection, selection, Verb.RETRY, at, action)
    _change(connection, rows, at=at, state=DeliveryState.DEFERRED, due=at, action=action)
    _tell(connection, rows, kind="message.retried", actor=actor, at=at, action=action)
    return Acted(tuple(row.id for row in rows))


def cancel(
    connection: Connection, *, selection: Selection, actor: str, at: int, action: str | None = None
) -> Acted:
    """End deliveries that wait or are held, without a notice to the sender.

    With an action, which may be taken back, their messages stay in the spool until it is closed.
    """
    rows = _select(connection, selection, Verb.CANCEL, at, action)
    _change(connection, rows, at=at, state=DeliveryState.CANCELLED, due=None, action=action)
    _tell(connection, rows, kind="message.cancelled", actor=actor, at=at, action=action)
    finished = finish(connection, message_ids=sorted({row.message_id for row in rows}))
    return Acted(tuple(row.id for row in rows), finished)


ACTS: Mapping[Verb, Callable[..., Acted]] = {
    Verb.HOLD: hold,
    Verb.RELEASE: release,
    Verb.RETRY: retry_now,
    Verb.CANCEL: cancel,
}
_CHANGED = {
    Verb.HOLD: WAITING,
    Verb.RELEASE: (DeliveryState.HELD,),
    Verb.RETRY: (DeliveryState.DEFERRED,),
    Verb.CANCEL: (*WAITING, DeliveryState.HELD),
}


def preview(connection: Connection, *, selection: Selection, verb: Verb, at: int) -> Preview:
    """Return what an action would change now."""
    chosen = _matching(select(table), selection, verb, at)
    counts = chosen.with_only_columns(func.count(), func.count(table.c.organization_id.distinct()))
    number, organizations = connection.execute(counts).one()
    shown = chosen.with_only_columns(
        table.c.id, table.c.message_id, table.c.recipient, table.c.state, table.c.next_attempt_at
    )
    rows = connection.execute(shown.order_by(table.c.id).limit(SAMPLE)).mappings().all()
    return Preview(number, organizations, tuple(dict(row) for row in rows))


def _matching(query: Select[Any], selection: Selection, verb: Verb, at: int) -> Select[Any]:
    query = query.where(table.c.state.in_([state.value for state in _CHANGED[verb]]))
    wanted = {
        table.c.id: selection.delivery_id,
        table.c.message_id: selection.message_id,
        table.c.domain: selection.domain,
        table.c.organization_id: selection.organization_id,
    }
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    if verb is Verb.RELEASE:
        # What is in doubt goes on by a verdict alone: released among others it would be sent twice.
        query = query.where(table.c.begun_at.is_(None))
    # What is due already is not asked to be.
    return query.where(table.c.next_attempt_at > at) if verb is Verb.RETRY else query


def _select(connection: Connection, selection: Selection, verb: Verb, at: int, action: str | None) -> Rows:
    names = ("id", "organization_id", "message_id", "recipient", "state", "next_attempt_at", "expires_at")
    query = _matching(select(*[table.c[name] for name in names]), selection, verb, at)
    if action is not None:
        # What an act made due may have been tried and deferred again before its next part.
        mine = select(items.c.delivery_id).where(
            items.c.action_id == action, items.c.delivery_id == table.c.id
        )
        query = query.where(~mine.exists())
    return connection.execute(query.limit(LIMIT).with_for_update()).all()


def _change(
    connection: Connection,
    rows: Rows,
    *,
    at: int,
    state: DeliveryState,
    due: int | None,
    action: str | None,
) -> None:
    if not rows:
        return
    query = update(table).where(table.c.id.in_([row.id for row in rows]))
    connection.execute(query.values(state=state.value, next_attempt_at=due, updated_at=at))
    if action is not None:
        connection.execute(insert(items), [_before(row, action, state, due) for row in rows])
    if due is not None:
        publish(connection, Notice("queue", "", due))


def _before(row: Row[Any], action: str, state: DeliveryState, due: int | None) -> dict[str, object]:
    return {
        "action_id": action,
        "delivery_id": row.id,
        "message_id": row.message_id,
        "state": row.state,
        "next_attempt_at": row.next_attempt_at,
        "expires_at": row.expires_at,
        "after_state": state.value,
        "after_due": due,
    }


def _give_time(connection: Connection, rows: Rows, at: int) -> None:
    """Take the time for which deliveries were held off what they have been tried for."""
    if rows:
        query = update(table).where(table.c.id.in_([row.id for row in rows]), table.c.updated_at < at)
        connection.execute(query.values(expires_at=table.c.expires_at + at - table.c.updated_at))


def _tell(connection: Connection, rows: Rows, *, kind: str, actor: str, at: int, action: str | None) -> None:
    named = {} if action is None else {"action": action}
    made = [
        Event(
            id=ids.new("evt"),
            kind=kind,
            at=at,
            organization_id=row.organization_id,
            message_id=row.message_id,
            delivery_id=row.id,
            data={"recipient": row.recipient, "actor": actor, **named},
        )
        for row in rows
    ]
    events.append(connection, made)
