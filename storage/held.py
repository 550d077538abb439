"""Held deliveries that nobody released: found when their time is over, and ended.

Owns that end and its events. What is bounced is told by the consumer of failures, as
any other; what is discarded is told to nobody but the timeline.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, select, update

from storage import events, ids
from storage.queue import finish
from storage.queue_acts import Acted
from storage.queue_view import outcome_facts
from storage.records import DeliveryState, Event, Outcome, Source
from storage.schema import deliveries as table
from storage.schema import messages

LIMIT = 500
TEXT = "held for a decision that did not come in time"
OWN_SOURCES = frozenset({Source.SUBMISSION.value, Source.API.value, Source.NOTICE.value})


class Answer(str, Enum):
    """Who is told of held mail whose time is over: all senders, those of this server, or nobody."""

    BOUNCE = "bounce"
    OWN = "own"
    DISCARD = "discard"


def expire(connection: Connection, *, before: int, answer: Answer, at: int) -> Acted:
    """End what is held since before a time, LIMIT deliveries at most, the oldest first."""
    query = (
        select(table, messages.c.source)
        .join(messages, messages.c.id == table.c.message_id)
        # What is in doubt has a deadline of its own (storage.doubt).
        .where(
            table.c.state == DeliveryState.HELD.value,
            table.c.updated_at < before,
            table.c.begun_at.is_(None),
        )
        .order_by(table.c.updated_at)
        .limit(LIMIT)
        .with_for_update(of=table, skip_locked=True)
    )
    rows = connection.execute(query).all()
    bounced = [row for row in rows if _is_told(row, answer)]
    discarded = [row for row in rows if not _is_told(row, answer)]
    _end(connection, bounced, DeliveryState.EXPIRED, "message.expired", at)
    _end(connection, discarded, DeliveryState.CANCELLED, "message.cancelled", at)
    finished = finish(connection, message_ids=sorted({row.message_id for row in rows}))
    return Acted(tuple(row.id for row in rows), finished)


def _is_told(row: Row[Any], answer: Answer) -> bool:
    return answer is Answer.BOUNCE or (answer is Answer.OWN and row.source in OWN_SOURCES)


def _end(connection: Connection, rows: list[Row[Any]], state: DeliveryState, kind: str, at: int) -> None:
    if not rows:
        return
    outcome = outcome_facts(Outcome(DeliveryState.EXPIRED, text=TEXT, phase="policy"))
    values = {
        "state": state.value,
        "next_attempt_at": None,
        "last_outcome": json.dumps(outcome, separators=(",", ":")),
        "updated_at": at,
    }
    connection.execute(update(table).where(table.c.id.in_([row.id for row in rows])).values(values))
    made = [
        Event(
            id=ids.new("evt"),
            kind=kind,
            at=at,
            organization_id=row.organization_id,
            message_id=row.message_id,
            delivery_id=row.id,
            data={
                "recipient": row.recipient,
                "domain": row.domain,
                "actor": "expiry",
                "held_since": row.updated_at,
                **outcome,
            },
        )
        for row in rows
    ]
    events.append(connection, made)
