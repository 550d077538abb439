"""Complaints about mail that was sent from here: whose it was, who it went to, and what is noted.

Owns finding a sent message by what came back of it, and the writing of a complaint: once a
message and recipient, however often it is reported. Judges no report. A tenant's message is
found by an id of ours, or within the organization that has the author's domain.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from storage import events, suppression
from storage.codec import read_verdicts
from storage.records import Event, Source
from storage.schema import deliveries, messages
from storage.schema import events as event_rows

COMPLAINED = "message.complained"
RECIPIENTS_LIMIT = 1000
EVENTS_LIMIT = 2000
_SENT = (Source.SUBMISSION.value, Source.API.value)


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that left from here. recipients: as they were given, RECIPIENTS_LIMIT at most."""

    message_id: str
    organization_id: str
    recipients: tuple[str, ...]


def by_id(connection: Connection, *, message_id: str) -> Sent | None:
    """Return a sent message by the id that its Received field has, whosever it is."""
    return _sent(connection, select(messages).where(messages.c.id == message_id))


def by_header(connection: Connection, *, organization_id: str, message_id_header: str) -> Sent | None:
    """Return the newest sent message of a tenant with a Message-ID."""
    query = select(messages).where(
        messages.c.organization_id == organization_id, messages.c.message_id_header == message_id_header
    )
    return _sent(connection, query)


def _sent(connection: Connection, query: Any) -> Sent | None:
    wanted = query.where(messages.c.source.in_(_SENT)).order_by(messages.c.id.desc()).limit(1)
    row: Row[Any] | None = connection.execute(wanted).first()
    if row is None:
        return None
    listed = select(deliveries.c.recipient).where(deliveries.c.message_id == row.id).limit(RECIPIENTS_LIMIT)
    found = connection.execute(listed.order_by(deliveries.c.id)).scalars()
    return Sent(row.id, row.organization_id, tuple(dict.fromkeys(found)))


def is_doubted(connection: Connection, *, organization_id: str, message_id: str) -> bool:
    """Whether a received message's sender was checked and nothing passed."""
    query = select(messages.c.verdicts).where(
        messages.c.id == message_id, messages.c.organization_id == organization_id
    )
    text = connection.execute(query).scalar()
    checked = [one for one in read_verdicts(text or "[]") if one.method in ("spf", "dkim", "dmarc")]
    return bool(checked) and not any(one.result == "pass" for one in checked)


def is_known(connection: Connection, sent: Sent, recipient: str) -> bool:
    """Whether a recipient's complaint about a message is noted already."""
    query = select(event_rows.c.data).where(
        event_rows.c.message_id == sent.message_id, event_rows.c.kind == COMPLAINED
    )
    found = connection.execute(query.limit(EVENTS_LIMIT)).scalars()
    return any(json.loads(text).get("recipient") == recipient for text in found)


def note(
    connection: Connection,
    sent: Sent,
    *,
    recipient: str,
    event: Event,
    cause: str,
    evidence: str,
) -> bool:
    """Note a complaint as an event of the message, and let no more mail go to the recipient, '' for unknown.

    False where the same was noted before. A suppression without an end stays as it is.
    """
    if is_known(connection, sent, recipient):
        return False
    events.append(connection, [event])
    if recipient:
        owner = sent.organization_id
        known = suppression.find(connection, organization_id=owner, address=recipient, at=event.at)
        if known is None or known.expires_at is not None:
            suppression.add(
                connection,
                organization_id=owner,
                address=recipient,
                cause=cause,
                evidence=evidence[:300],
                at=event.at,
            )
    return True
