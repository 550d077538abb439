"""Deliveries that may have been sent: held until a person says whether they were, or until a deadline.

Owns what in doubt means in the queue (held, with the moment its transmission began), the two
verdicts, the evidence that contradicts one, and the correction of one that evidence comes to
contradict later. Evidence is what only somebody who has the message can have caused: a
complaint about it, an unsubscription, an answer, a report of a server behind the next one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from storage import events, ids
from storage.db import Notice, publish
from storage.errors import Conflict, Missing
from storage.queue import finish
from storage.queue_view import outcome_facts
from storage.records import DeliveryState, Event, Handover, Outcome, Source
from storage.schema import deliveries as table
from storage.schema import events as event_rows
from storage.schema import messages
from storage.schema_doubt import doubt_verdicts as kept

LIMIT = 1000
EVENTS_LIMIT = 2000
ANSWERS_LIMIT = 20_000  # of an organization's newest messages, those that are looked at for an answer
DAY = 86_400_000_000
WATCHED = 30 * DAY  # how long after a verdict evidence is looked for
WATCHED_LIMIT = 200  # verdicts that it is looked for at one time, the latest
ARRIVED = frozenset({"message.complained", "message.unsubscribed", "message.bounced_later"})
DEADLINE = "it was in doubt whether it was sent, and nobody said so in time"
_KINDS = {
    DeliveryState.DELIVERED: "message.delivered",
    DeliveryState.DEFERRED: "message.deferred",
    DeliveryState.EXPIRED: "message.expired",
}
_STRANGE = (Source.MX.value, Source.LMTP.value)


class Verdict(str, Enum):
    """What a person says: the next server has the message, or it has not."""

    SENT = "sent"
    NOT_SENT = "not_sent"


class Unanswered(str, Enum):
    """What becomes of a doubt that nobody ends: sent again, taken for sent, or returned to the sender."""

    RETRY = "retry"
    SENT = "sent"
    BOUNCE = "bounce"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What shows that a message arrived. kind: of the event or 'reply'; id: of the event or message."""

    kind: str
    id: str
    at: int


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A verdict, as its row, and what shows that it was wrong."""

    row: Row[Any]
    evidence: Evidence


class Contradicted(Conflict):
    """Known evidence says otherwise than the verdict that was given."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(f"{evidence.kind} {evidence.id} shows that the message arrived")
        self.evidence = evidence


def waiting(
    connection: Connection, *, organization_id: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return deliveries in doubt that wait for a verdict, the oldest first; None: of all organizations."""
    query = select(table).where(_in_doubt())
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    names = ("id", "organization_id", "message_id", "recipient", "domain", "tries", "begun_at", "updated_at")
    rows = connection.execute(query.order_by(table.c.updated_at).limit(limit))
    return [{name: getattr(row, name) for name in names} for row in rows]


def _in_doubt() -> Any:
    return (table.c.state == DeliveryState.HELD.value) & table.c.begun_at.is_not(None)


def find_evidence(connection: Connection, row: Row[Any]) -> Evidence | None:
    """Return what shows that a delivery's message arrived. row: of deliveries or of verdicts."""
    query = (
        select(event_rows)
        .where(event_rows.c.message_id == row.message_id, event_rows.c.kind.in_(ARRIVED))
        .order_by(event_rows.c.seq.desc())
        .limit(EVENTS_LIMIT)
    )
    for event in connection.execute(query):
        if _names(json.loads(event.data), row.recipient):
            return Evidence(event.kind, event.id, event.at)
    return _answer(connection, row)


def _names(data: dict[str, Any], recipient: str) -> bool:
    return str(data.get("recipient", "")).lower() == recipient.lower()


def _answer(connection: Connection, row: Row[Any]) -> Evidence | None:
    """Return a message from the recipient that belongs to the message's thread and came later."""
    thread = connection.execute(
        select(messages.c.thread_id).where(messages.c.id == row.message_id)
    ).scalar_one_or_none()
    if not thread:
        return None
    newest = (
        select(messages.c.id, messages.c.thread_id, messages.c.reverse_path, messages.c.source)
        .add_columns(messages.c.accepted_at)
        .where(
            messages.c.organization_id == row.organization_id,
            messages.c.accepted_at > row.begun_at,
        )
        .order_by(messages.c.accepted_at.desc())
        .limit(ANSWERS_LIMIT)
        .subquery()
    )
    query = select(newest).where(newest.c.thread_id == thread, newest.c.source.in_(_STRANGE))
    for answer in connection.execute(query):
        if (answer.reverse_path or "").lower() == row.recipient.lower():
            return Evidence("reply", answer.id, answer.accepted_at)
    return None


def decide(
    connection: Connection,
    *,
    delivery_id: str,
    verdict: Verdict,
    actor: str,
    reason: str,
    at: int,
    organization_id: str | None = None,
) -> tuple[str, ...]:
    """End a doubt by a person's word; returns messages done with, as queue.settle does.

    Missing where there is no such delivery of the organization; Conflict where it is not in doubt;
    Contradicted where evidence says otherwise.
    """
    query = select(table).where(table.c.id == delivery_id)
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    row = connection.execute(query.with_for_update()).first()
    if row is None:
        raise Missing(f"{delivery_id}: there is no such delivery")
    if row.state != DeliveryState.HELD.value or row.begun_at is None:
        raise Conflict(f"{delivery_id}: it is {row.state}, and not in doubt")
    found = find_evidence(connection, row) if verdict is Verdict.NOT_SENT else None
    if found is not None:
        raise Contradicted(found)
    _end(connection, [row], verdict=verdict, actor=actor, reason=reason, at=at)
    values = {
        "delivery_id": row.id,
        "organization_id": row.organization_id,
        "message_id": row.message_id,
        "recipient": row.recipient,
        "verdict": verdict.value,
        "actor": actor,
        "reason": reason,
        "begun_at": row.begun_at,
        "at": at,
        "corrected": 0,
    }
    # Sent again, it may come into doubt again: the last word counts.
    connection.execute(delete(kept).where(kept.c.delivery_id == row.id))
    connection.execute(insert(kept), values)
    return finish(connection, message_ids=[row.message_id])


def expire(
    connection: Connection, *, before: int, unanswered: Unanswered, at: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """End doubts that are older than a time, LIMIT at most; returns deliveries, and messages done with."""
    query = select(table).where(_in_doubt(), table.c.updated_at < before)
    rows = connection.execute(
        query.order_by(table.c.updated_at).limit(LIMIT).with_for_update(skip_locked=True)
    ).all()
    if rows and unanswered is Unanswered.BOUNCE:
        _return(connection, rows, at)
    elif rows:
        verdict = Verdict.SENT if unanswered is Unanswered.SENT else Verdict.NOT_SENT
        _end(connection, rows, verdict=verdict, actor="deadline", reason=DEADLINE, at=at)
    finished = finish(connection, message_ids=sorted({row.message_id for row in rows}))
    return tuple(row.id for row in rows), finished


def contradicted(connection: Connection, *, at: int) -> list[Contradiction]:
    """Return the verdicts of the last WATCHED that evidence has come to contradict; for a reader."""
    query = select(kept).where(
        kept.c.corrected == 0, kept.c.at > at - WATCHED, kept.c.verdict == Verdict.NOT_SENT.value
    )
    rows = connection.execute(query.order_by(kept.c.at.desc()).limit(WATCHED_LIMIT)).all()
    return [
        Contradiction(row, evidence)
        for row in rows
        if (evidence := find_evidence(connection, row)) is not None
    ]


def correct(connection: Connection, found: Collection[Contradiction], *, at: int) -> int:
    """Tell by an event of each verdict that turned out to be wrong, once; returns how many are new."""
    new = []
    for one in found:
        query = update(kept).where(kept.c.delivery_id == one.row.delivery_id, kept.c.corrected == 0)
        if connection.execute(query.values(corrected=1)).rowcount:
            new.append(_correction(one.row, one.evidence, at))
    events.append(connection, new)
    return len(new)


def watches(connection: Connection, *, at: int) -> bool:
    """Return whether there is a verdict that evidence may still contradict."""
    query = select(kept.c.delivery_id).where(kept.c.corrected == 0, kept.c.at > at - WATCHED)
    return connection.execute(query.limit(1)).first() is not None


def forget(connection: Connection, *, before: int) -> None:
    """Forget verdicts given before a time; their events stay for as long as events do."""
    connection.execute(delete(kept).where(kept.c.at < before))


def _correction(row: Row[Any], evidence: Evidence, at: int) -> Event:
    data = {
        "recipient": row.recipient,
        "verdict": row.verdict,
        "by": row.actor,
        "evidence": evidence.kind,
        "evidence_id": evidence.id,
        "text": "the verdict was wrong: the message had arrived, and was sent again",
    }
    return _event(row, row.delivery_id, "message.verdict_corrected", at=at, data=data)


def _event(row: Row[Any], delivery_id: str, kind: str, *, at: int, data: dict[str, object]) -> Event:
    return Event(
        id=ids.new("evt"),
        kind=kind,
        at=at,
        organization_id=row.organization_id,
        message_id=row.message_id,
        delivery_id=delivery_id,
        data=data,
    )


def _end(
    connection: Connection, rows: Collection[Row[Any]], *, verdict: Verdict, actor: str, reason: str, at: int
) -> None:
    is_sent = verdict is Verdict.SENT
    state = DeliveryState.DELIVERED if is_sent else DeliveryState.DEFERRED
    text = f"declared {verdict.value.replace('_', ' ')} by {actor}" + (f": {reason}" if reason else "")
    # What the next server does with it nobody here can tell: it is taken to say no more (RFC 3461 5.2.2).
    outcome = Outcome(state, text=text, phase="final", handover=Handover.RELAYED)
    _write(connection, rows, outcome, due=None if is_sent else at, at=at)
    more: dict[str, object] = {"verdict": verdict.value, "actor": actor}
    if not is_sent:
        more["next_attempt_at"] = at
    _tell(connection, rows, outcome, at=at, more=more)
    if not is_sent:
        publish(connection, Notice("queue", "", at))


def _return(connection: Connection, rows: Collection[Row[Any]], at: int) -> None:
    outcome = Outcome(DeliveryState.EXPIRED, enhanced="4.4.2", text=DEADLINE, phase="final")
    _write(connection, rows, outcome, due=None, at=at)
    _tell(connection, rows, outcome, at=at, more={"in_doubt": True, "actor": "deadline"})


def _write(
    connection: Connection, rows: Iterable[Row[Any]], outcome: Outcome, *, due: int | None, at: int
) -> None:
    values = {
        "state": outcome.state.value,
        "next_attempt_at": due,
        "begun_at": None,
        "last_outcome": json.dumps(outcome_facts(outcome), separators=(",", ":")),
        "updated_at": at,
    }
    connection.execute(update(table).where(table.c.id.in_([row.id for row in rows])).values(values))


def _tell(
    connection: Connection,
    rows: Iterable[Row[Any]],
    outcome: Outcome,
    *,
    at: int,
    more: dict[str, object],
) -> None:
    facts = {**outcome_facts(outcome), **more}
    made = [
        _event(
            row,
            row.id,
            _KINDS[outcome.state],
            at=at,
            data={"recipient": row.recipient, "domain": row.domain, "attempt": row.tries, **facts},
        )
        for row in rows
    ]
    events.append(connection, made)
