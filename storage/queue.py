"""The queue of deliveries: who is due, who holds which lease, how each attempt ended.

Owns the rows of `deliveries`, the events of their changes and the word on when
a message's spool file may go. A *lane* is what waits for one domain from one
organization at one priority (storage/lanes.py); leases are taken lane by lane, so
that a long one never stands before a short one. A lease is fenced
by a token: whoever lost it changes nothing. Chooses no host and reads no clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    and_,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    select,
    update,
)

from storage import events, ids
from storage.codec import read_envelope
from storage.db import Notice, publish
from storage.entries import erase_unused
from storage.queue_view import counts, inspect, of_message, outcome_facts
from storage.records import (
    FINAL_STATES,
    Delivery,
    DeliveryState,
    Envelope,
    Event,
    Handover,
    Outcome,
    Recipient,
    Source,
)
from storage.schema import cursors, deliveries, messages
from storage.schema import events as event_rows
from storage.schema_undoing import queue_action_items as undoable
from storage.unanswered import held_instead

__all__ = [
    "Pick",
    "Settled",
    "Settlement",
    "begin",
    "counts",
    "finish",
    "give_back",
    "inspect",
    "lease",
    "next_lease_end",
    "of_message",
    "reclaim",
    "renew",
    "settle",
    "token",
]

# Consumer that answers failures with notices: until it has come past a message's failures, the
# message's file is still needed.
NAMED_LIMIT = 10  # of the recipients that a message came for
NOTICE_CURSOR = "notices"
FAILURES = ("message.bounced", "message.expired", "message.suppressed")
# Delivered where the sender asked to hear of success, and no server behind will say it (RFC 3461 5.2.2).
SUCCESS = "message.succeeded"
NOTICED = (*FAILURES, "message.delayed", SUCCESS)
OPEN_STATES = tuple(sorted(state.value for state in DeliveryState if state not in FINAL_STATES))
IN_DOUBT = "the process ended while the message was being sent: it may have arrived"
WAITS_FOR_VERDICT = "it may have been sent, and waits for a person's word (sent, not sent)"
INTERRUPTED = "the process ended before the message was sent"

_KINDS = {
    DeliveryState.DELIVERED: "message.delivered",
    DeliveryState.DEFERRED: "message.deferred",
    DeliveryState.BOUNCED: "message.bounced",
    DeliveryState.EXPIRED: "message.expired",
    DeliveryState.SUPPRESSED: "message.suppressed",
    DeliveryState.HELD: "message.held",
}

Found = Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Pick:
    """How many deliveries to lease from one lane."""

    organization_id: str
    domain: str
    priority: int
    limit: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended for one leased delivery. next_attempt_at: microseconds, for DEFERRED alone.

    unanswerable: nobody may be told of a failure, so that the delivery is held then. facts: what the
    event says beside the outcome; event_id: given ahead, '' for a new one.
    """

    delivery: Delivery
    outcome: Outcome
    next_attempt_at: int | None = None
    in_doubt: bool = False
    unanswerable: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """What settling did. stale: deliveries whose lease was lost, unchanged; finished: messages done with."""

    stale: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()


_NEXT_END = select(func.min(deliveries.c.lease_until)).where(deliveries.c.lease_until.is_not(None))
_PICK = (
    select(deliveries)
    .where(
        deliveries.c.organization_id == bindparam("organization_id"),
        deliveries.c.domain == bindparam("domain"),
        deliveries.c.priority == bindparam("priority"),
        deliveries.c.next_attempt_at <= bindparam("now"),
    )
    .order_by(deliveries.c.next_attempt_at)
    .limit(bindparam("count", type_=Integer))
    .with_for_update(skip_locked=True)
)
_LEASE = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery_id"))
    .values(
        state=DeliveryState.ACTIVE.value,
        lease=bindparam("token"),
        lease_until=bindparam("until"),
        next_attempt_at=None,
        begun_at=None,
        tries=deliveries.c.tries + 1,
        updated_at=bindparam("at"),
    )
)
_MESSAGES = select(messages.c.id, messages.c.envelope, messages.c.octets, messages.c.source).where(
    messages.c.id.in_(bindparam("ids", expanding=True))
)
_HELD_BY = (
    select(deliveries.c.id, deliveries.c.lease, deliveries.c.tries, deliveries.c.begun_at)
    .where(
        deliveries.c.id.in_(bindparam("ids", expanding=True)),
        deliveries.c.state == DeliveryState.ACTIVE.value,
    )
    .with_for_update()
)
_RENEW = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery_id"), deliveries.c.lease == bindparam("token"))
    .values(lease_until=bindparam("until"))
)
_BEGIN = (
    update(deliveries).where(deliveries.c.id == bindparam("delivery_id")).values(begun_at=bindparam("at"))
)
_SETTLE = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery_id"))
    .values(
        state=bindparam("new_state"),
        next_attempt_at=bindparam("due"),
        lease=None,
        lease_until=None,
        begun_at=bindparam("begun"),
        last_outcome=bindparam("outcome"),
        updated_at=bindparam("at"),
    )
)
_DONE_WITH = select(messages.c.id).where(
    messages.c.id.in_(bindparam("ids", expanding=True)),
    messages.c.spooled == 1,
    ~exists().where(
        deliveries.c.message_id == messages.c.id,
        deliveries.c.state.in_(OPEN_STATES),
    ),
    # What was cancelled and may be taken back needs its content.
    ~exists().where(
        undoable.c.message_id == messages.c.id,
        undoable.c.after_state == DeliveryState.CANCELLED.value,
    ),
    ~exists().where(
        event_rows.c.message_id == messages.c.id,
        event_rows.c.kind.in_(NOTICED),
        event_rows.c.seq
        > func.coalesce(
            select(cursors.c.seq).where(cursors.c.name == NOTICE_CURSOR).scalar_subquery(),
            literal_column("0"),
        ),
    ),
)
_UNSPOOL = update(messages).where(messages.c.id.in_(bindparam("ids", expanding=True))).values(spooled=0)
_DELAY_KNOWN = (
    select(literal(1))
    .where(
        event_rows.c.message_id == bindparam("message"),
        event_rows.c.delivery_id == bindparam("delivery"),
        event_rows.c.kind == "message.delayed",
    )
    .limit(1)
)


def next_lease_end(connection: Connection) -> int | None:
    """Return when the first lease ends, in microseconds."""
    return connection.execute(_NEXT_END).scalar()


def lease(
    connection: Connection, *, picks: Sequence[Pick], token: str, now: int, until: int
) -> list[Delivery]:
    """Lease the oldest due deliveries of each picked lane; they are ACTIVE until settled or `until`.

    Each is returned as it was before: tries counts the attempts before this one. What another
    process is leasing at this moment is passed over.
    """
    rows: list[Found] = []
    for pick in picks:
        values = {
            "organization_id": pick.organization_id,
            "domain": pick.domain,
            "priority": pick.priority,
            "now": now,
            "count": pick.limit,
        }
        rows += connection.execute(_PICK, values).all()
    if not rows:
        return []
    connection.execute(
        _LEASE, [{"delivery_id": row.id, "token": token, "until": until, "at": now} for row in rows]
    )
    return _with_envelopes(connection, rows, token)


def _with_envelopes(connection: Connection, rows: Sequence[Found], token: str) -> list[Delivery]:
    wanted = list(dict.fromkeys(row.message_id for row in rows))
    found: dict[str, Found] = {row.id: row for row in connection.execute(_MESSAGES, {"ids": wanted})}
    envelopes = {key: read_envelope(row.envelope) for key, row in found.items()}
    return [_delivery(row, found[row.message_id], envelopes[row.message_id], token) for row in rows]


def _delivery(row: Found, message: Found, envelope: Envelope, token: str) -> Delivery:
    notify = None if row.notify is None else frozenset(filter(None, row.notify.split(",")))
    recipient = Recipient(row.recipient, notify, row.orcpt)
    return Delivery(
        id=row.id,
        organization_id=row.organization_id,
        message_id=row.message_id,
        recipient=recipient,
        domain=row.domain,
        state=DeliveryState.ACTIVE,
        tries=row.tries,
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at,
        expires_at=row.expires_at,
        lease=token,
        envelope=replace(envelope, recipients=(recipient,)),
        named=tuple(one.address for one in envelope.recipients[:NAMED_LIMIT]),
        octets=message.octets,
        source=Source(message.source),
    )


def renew(connection: Connection, *, held: Iterable[Delivery], until: int) -> None:
    """Keep leases until a later time; those that were lost stay lost."""
    rows = [{"delivery_id": item.id, "token": item.lease, "until": until} for item in held]
    if rows:
        connection.execute(_RENEW, rows)


def begin(connection: Connection, *, held: Sequence[Delivery], at: int) -> tuple[str, ...]:
    """Record that the transmission of these deliveries begins; returns those whose lease was lost.

    The unit must be durable before the first octet of content leaves.
    """
    holders = _holders(connection, [item.id for item in held])
    good = [item.id for item in held if _holds(holders.get(item.id), item)]
    if good:
        connection.execute(_BEGIN, [{"delivery_id": one, "at": at} for one in good])
    return tuple(item.id for item in held if item.id not in good)


def settle(
    connection: Connection,
    *,
    settlements: Sequence[Settlement],
    at: int,
    delay_notice_after: int | None = None,
) -> Settled:
    """Write how attempts ended, with their events; a lost lease changes nothing and is reported.

    delay_notice_after: microseconds in the queue after which a deferral also makes, once a delivery,
    the event message.delayed. Messages in `finished` have no open delivery and no notice owed: their
    spool files may go.
    """
    held = _holders(connection, [item.delivery.id for item in settlements])
    good = [item for item in settlements if _holds(held.get(item.delivery.id), item.delivery)]
    good = held_instead(connection, good)
    fine = {item.delivery.id for item in good}
    stale = tuple(item.delivery.id for item in settlements if item.delivery.id not in fine)
    if good:
        connection.execute(_SETTLE, [_settle_values(item, held[item.delivery.id], at) for item in good])
        made = [_event(item, held[item.delivery.id].tries, at) for item in good]
        made += _delays(connection, good, at, delay_notice_after)
        made += [_success(item, at) for item in good if _owes_success(item)]
        events.append(connection, made)
    for due in {item.next_attempt_at for item in good if item.next_attempt_at is not None}:
        publish(connection, Notice("queue", "", due))
    closed = {item.delivery.message_id for item in good if item.outcome.state in FINAL_STATES}
    return Settled(stale, finish(connection, message_ids=sorted(closed)))


def _owes_success(item: Settlement) -> bool:
    delivery, outcome = item.delivery, item.outcome
    if delivery.recipient.notify is None or "SUCCESS" not in delivery.recipient.notify:
        return False
    is_ours = outcome.state is DeliveryState.DELIVERED and outcome.handover is not Handover.PASSED
    return is_ours and delivery.envelope.reverse_path is not None


def _success(item: Settlement, at: int) -> Event:
    data: dict[str, object] = {"recipient": item.delivery.recipient.address, **outcome_facts(item.outcome)}
    return _about(item.delivery, SUCCESS, at, data)


def _holders(connection: Connection, wanted: list[str]) -> dict[str, Found]:
    rows: Sequence[Found] = connection.execute(_HELD_BY, {"ids": wanted}).all()
    return {row.id: row for row in rows}


def _holds(row: Found | None, delivery: Delivery) -> bool:
    return row is not None and row.lease == delivery.lease


def _settle_values(item: Settlement, row: Found, at: int) -> dict[str, object]:
    state = item.outcome.state
    assert (state is DeliveryState.DEFERRED) == (item.next_attempt_at is not None)
    asks = item.in_doubt and state is DeliveryState.HELD
    return {
        # What is held with this waits for a verdict (storage.doubt).
        "begun": (row.begun_at or at) if asks else None,
        "delivery_id": item.delivery.id,
        "new_state": state.value,
        "due": item.next_attempt_at,
        "outcome": json.dumps(outcome_facts(item.outcome), separators=(",", ":")),
        "at": at,
    }


def _event(item: Settlement, attempt: int, at: int) -> Event:
    delivery = item.delivery
    data: dict[str, object] = {
        "recipient": delivery.recipient.address,
        "domain": delivery.domain,
        "attempt": attempt,
        **outcome_facts(item.outcome),
        **item.facts,
    }
    if item.next_attempt_at is not None:
        data["next_attempt_at"] = item.next_attempt_at
    if item.outcome.dialogue:
        data["dialogue"] = list(item.outcome.dialogue)
    if item.in_doubt:
        data["in_doubt"] = True
    if item.outcome.state is DeliveryState.HELD:
        cause = WAITS_FOR_VERDICT if item.in_doubt else "it failed, and nobody may be told"
        data |= {"actor": "delivery", "cause": cause}
    made = _about(delivery, _KINDS[item.outcome.state], at, data)
    return replace(made, id=item.event_id) if item.event_id else made


def _about(delivery: Delivery, kind: str, at: int, data: dict[str, object]) -> Event:
    return Event(
        id=ids.new("evt"),
        kind=kind,
        at=at,
        organization_id=delivery.organization_id,
        message_id=delivery.message_id,
        delivery_id=delivery.id,
        data=data,
    )


def _delays(
    connection: Connection, settlements: Sequence[Settlement], at: int, after: int | None
) -> list[Event]:
    made: list[Event] = []
    for item in settlements:
        delivery = item.delivery
        # RFC 4865 5: a message that was held is late only by its release.
        begin = max(delivery.created_at, delivery.envelope.hold_until or 0)
        late = after is not None and at - begin >= after
        if not late or item.outcome.state is not DeliveryState.DEFERRED:
            continue
        values = {"message": delivery.message_id, "delivery": delivery.id}
        if connection.execute(_DELAY_KNOWN, values).first() is None:
            data = {"recipient": delivery.recipient.address, **outcome_facts(item.outcome)}
            made.append(_about(delivery, "message.delayed", at, {**data, "expires_at": delivery.expires_at}))
    return made


def finish(connection: Connection, *, message_ids: Collection[str]) -> tuple[str, ...]:
    """Mark messages as out of the spool that have no open delivery and no notice owed; returns them.

    What was rendered of those that lie in no folder is erased with it. The caller
    removes their spool files once this is committed; reconcile removes what a crash left.
    """
    if not message_ids:
        return ()
    found = connection.execute(_DONE_WITH, {"ids": list(message_ids)}).scalars().all()
    if found:
        connection.execute(_UNSPOOL, {"ids": list(found)})
        # What lies in no folder is not read any more.
        erase_unused(connection, found)
    return tuple(found)


def give_back(connection: Connection, *, held: Sequence[Delivery], at: int) -> None:
    """Return leases whose attempt did not begin: due at once, and the try does not count."""
    for item in held:
        query = update(deliveries).where(deliveries.c.id == item.id, deliveries.c.lease == item.lease)
        connection.execute(
            query.values(
                state=_waiting_state(item).value,
                lease=None,
                lease_until=None,
                begun_at=None,
                tries=item.tries,
                next_attempt_at=item.next_attempt_at,
                updated_at=at,
            )
        )
    if held:
        publish(connection, Notice("queue", "", min(item.next_attempt_at for item in held)))


def put_off(connection: Connection, *, held: Sequence[Delivery], due: int, reason: str, at: int) -> None:
    """Return leases whose attempt did not begin for a later time, and say why on the timelines."""
    give_back(connection, held=[replace(one, next_attempt_at=due) for one in held], at=at)
    made = [
        _about(
            one,
            "message.put_off",
            at,
            {"recipient": one.recipient.address, "text": reason, "next_attempt_at": due},
        )
        for one in held
    ]
    events.append(connection, made)


def _waiting_state(item: Delivery) -> DeliveryState:
    return DeliveryState.DEFERRED if item.tries else DeliveryState.SCHEDULED


def token(holder: str) -> str:
    """Return a fresh lease of an instance, by which reclaim knows it again."""
    return f"{holder}/{ids.new('lease')}"


def reclaim(
    connection: Connection,
    *,
    now: int,
    before: int | None,
    holder: str | None = None,
    ask: bool = False,
    limit: int = 1000,
) -> int:
    """Make deliveries due whose lease ended before a time; the number done, `limit` at most.

    One whose transmission had begun is in doubt: it is tried again, and its event says so; or, with ask
    or where policy asked for that, it is held until somebody says whether it was sent (storage.doubt).
    before: now in the ordinary case; None for all, where the holders are known to be dead.
    holder: of leases of this instance alone.
    """
    ended = deliveries.c.lease_until.is_not(None) if before is None else deliveries.c.lease_until < before
    if holder is not None:
        ended = and_(ended, deliveries.c.lease.startswith(f"{holder}/", autoescape=True))
    query = (
        select(deliveries)
        .where(ended)
        .order_by(deliveries.c.lease_until)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(query).all()
    if not rows:
        return 0
    asked = _asked(connection, rows, ask=ask)
    found = [(row, _interruption(row, asks=row.id in asked)) for row in rows]
    connection.execute(_SETTLE, [_reclaim_values(row, outcome, now) for row, outcome in found])
    events.append(connection, [_reclaim_event(row, outcome, now) for row, outcome in found])
    publish(connection, Notice("queue", "", now))
    return len(rows)


def _asked(connection: Connection, rows: Sequence[Found], *, ask: bool) -> set[str]:
    """Return those in doubt that wait for a person's word."""
    begun = [row for row in rows if row.begun_at is not None]
    if ask or not begun:
        return {row.id for row in begun}
    wanted = sorted({row.message_id for row in begun})
    cautious = {
        row.id
        for row in connection.execute(_MESSAGES, {"ids": wanted})
        if read_envelope(row.envelope).ask_in_doubt
    }
    return {row.id for row in begun if row.message_id in cautious}


def _reclaim_values(row: Found, outcome: Outcome, now: int) -> dict[str, object]:
    is_held = outcome.state is DeliveryState.HELD
    return {
        "delivery_id": row.id,
        "new_state": outcome.state.value,
        "due": None if is_held else now,
        "begun": row.begun_at if is_held else None,
        "outcome": json.dumps(outcome_facts(outcome), separators=(",", ":")),
        "at": now,
    }


def _interruption(row: Found, *, asks: bool) -> Outcome:
    if row.begun_at is None:
        return Outcome(DeliveryState.DEFERRED, text=INTERRUPTED)
    state = DeliveryState.HELD if asks else DeliveryState.DEFERRED
    return Outcome(state, text=IN_DOUBT, phase="final")


def _reclaim_event(row: Found, outcome: Outcome, now: int) -> Event:
    data: dict[str, object] = {
        "recipient": row.recipient,
        "domain": row.domain,
        "attempt": row.tries,
        **outcome_facts(outcome),
    }
    if row.begun_at is not None:
        data |= {"in_doubt": True, "begun_at": row.begun_at}
    if outcome.state is DeliveryState.HELD:
        data |= {"actor": "delivery", "cause": WAITS_FOR_VERDICT}
    else:
        data["next_attempt_at"] = now
    return Event(
        id=ids.new("evt"),
        kind=_KINDS[outcome.state],
        at=now,
        organization_id=row.organization_id,
        message_id=row.message_id,
        delivery_id=row.id,
        data=data,
    )
