"""What a notice to a sender needs to know of a message and its failed deliveries.

Owns the reading for the consumer of failures, and the end of its work on a
message. Composes nothing and decides nothing about who is told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage import events, queue
from storage.codec import read_envelope
from storage.records import Envelope, Event, Recipient, Source
from storage.schema import deliveries, messages
from storage.schema import events as event_rows


@dataclass(frozen=True, slots=True)
class Page:
    """Events of failures in order, and the highest seq that was looked at."""

    events: tuple[Event, ...]
    seq: int


@dataclass(frozen=True, slots=True)
class Addressed:
    """One delivery's recipient and expiry, in microseconds."""

    recipient: Recipient
    expires_at: int


@dataclass(frozen=True, slots=True)
class Concerned:
    """The message a notice is about; deliveries by id."""

    organization_id: str
    source: Source
    accepted_at: int
    envelope: Envelope
    message_id_header: str
    deliveries: dict[str, Addressed]


def page(connection: Connection, *, after: int, limit: int) -> Page:
    """Return up to `limit` events that may call for a notice, above a seq.

    The page's seq is that of the newest event of any kind where the page is not full: all up to there
    is seen.
    """
    highest = connection.execute(select(func.max(event_rows.c.seq))).scalar() or 0
    found = events.after(connection, seq=after, kinds=queue.NOTICED, limit=limit)
    seq = found[-1].seq if len(found) >= limit else max(highest, after)
    return Page(tuple(found), seq)


def concerned(connection: Connection, *, message_id: str, delivery_ids: Collection[str]) -> Concerned | None:
    """Return what is known of a message and these of its deliveries; None if it is gone."""
    row = connection.execute(select(messages).where(messages.c.id == message_id)).first()
    if row is None:
        return None
    query = select(deliveries).where(
        deliveries.c.id.in_(list(delivery_ids)), deliveries.c.message_id == message_id
    )
    found = {one.id: one for one in connection.execute(query)}
    return Concerned(
        organization_id=row.organization_id,
        source=Source(row.source),
        accepted_at=row.accepted_at,
        envelope=read_envelope(row.envelope),
        message_id_header=row.message_id_header,
        deliveries={
            key: Addressed(
                Recipient(
                    one.recipient,
                    None if one.notify is None else frozenset(filter(None, one.notify.split(","))),
                    one.orcpt,
                ),
                one.expires_at,
            )
            for key, one in found.items()
        },
    )


def seen(
    connection: Connection, *, seq: int, told: Sequence[Event], message_ids: Collection[str]
) -> tuple[str, ...]:
    """Move the consumer to a seq, log what was told, and return the messages whose files may go."""
    events.advance(connection, name=queue.NOTICE_CURSOR, seq=seq)
    events.append(connection, told)
    return queue.finish(connection, message_ids=message_ids)
