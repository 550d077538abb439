"""Bounces that come after a delivery was taken: what they are about, and what is noted.

Owns finding the delivery that a notice proves, and the writing of it: once a delivery, however often
it is told. Judges no proof. Never looks beyond the organization that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from storage import events, suppressing
from storage.records import DeliveryState, Event, Source
from storage.schema import deliveries, messages
from storage.schema import events as event_rows
from storage.suppressing import Failure, Rules

BOUNCED_LATER = "message.bounced_later"
RECIPIENTS_LIMIT = 1000
_SENT = (Source.SUBMISSION.value, Source.API.value)


@dataclass(frozen=True, slots=True)
class SentTo:
    """One recipient of a message that left from here. header_id: the message's Message-ID."""

    delivery_id: str
    message_id: str
    organization_id: str
    recipient: str
    reverse_path: str
    header_id: str
    from_: str


def by_delivery(connection: Connection, *, delivery_id: str) -> list[SentTo]:
    """Return the delivery of an id, as a list of one or none."""
    return _sent(connection, deliveries.c.id == delivery_id)


def by_message(connection: Connection, *, message_id: str) -> list[SentTo]:
    """Return the deliveries of a sent message, RECIPIENTS_LIMIT at most."""
    return _sent(connection, messages.c.id == message_id)


def by_header(connection: Connection, *, organization_id: str, header_id: str) -> list[SentTo]:
    """Return the deliveries of the newest message of a tenant with a Message-ID."""
    query = select(messages.c.id).where(
        messages.c.organization_id == organization_id,
        messages.c.message_id_header == header_id,
        messages.c.source.in_(_SENT),
    )
    found = connection.execute(query.order_by(messages.c.id.desc()).limit(1)).scalar()
    return [] if found is None else by_message(connection, message_id=found)


def _sent(connection: Connection, condition: Any) -> list[SentTo]:
    query = (
        select(
            deliveries.c.id,
            deliveries.c.message_id,
            deliveries.c.organization_id,
            deliveries.c.recipient,
            messages.c.reverse_path,
            messages.c.message_id_header,
            messages.c.from_,
        )
        .join(messages, messages.c.id == deliveries.c.message_id)
        .where(condition, messages.c.source.in_(_SENT))
    )
    rows: Sequence[Any] = connection.execute(query.order_by(deliveries.c.id).limit(RECIPIENTS_LIMIT)).all()
    return [
        SentTo(
            row.id,
            row.message_id,
            row.organization_id,
            row.recipient,
            row.reverse_path or "",
            row.message_id_header,
            row.from_,
        )
        for row in rows
    ]


def note(connection: Connection, event: Event, failure: Failure | None, *, rules: Rules, at: int) -> bool:
    """Write that a delivery bounced after it was taken; False where that is known, or it never was taken.

    failure: what is to be noted of the address, None where it was not the recipient's fault.
    """
    assert event.delivery_id is not None, "it names its delivery"
    query = select(deliveries.c.state).where(
        deliveries.c.id == event.delivery_id, deliveries.c.organization_id == event.organization_id
    )
    state = connection.execute(query).scalar()
    if state != DeliveryState.DELIVERED.value:
        return False
    known = select(event_rows.c.seq).where(
        event_rows.c.message_id == event.message_id,
        event_rows.c.delivery_id == event.delivery_id,
        event_rows.c.kind == BOUNCED_LATER,
    )
    if connection.execute(known.limit(1)).first() is not None:
        return False
    events.append(connection, [event])
    if failure is not None:
        suppressing.failed(connection, failure, rules=rules, at=at)
    return True
