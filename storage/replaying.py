"""Stored messages in the order of their ids, with where their octets lie: for trying rules on them.

Owns that one walk, a page at a time, whoever they belong to: for the operator alone.
Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from storage.codec import read_decision, read_envelope, read_peer, read_verdicts
from storage.contents import entry_of
from storage.records import Decision, Entry, Envelope, Peer, Source, Verdict
from storage.schema import entries, events, folders, mailboxes, messages

PAGE = 200
ACCEPTED = "message.accepted"
JUDGED = ("mx", "lmtp", "submission", "api", "local", "forward")


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as it was judged. places: (inbox id, its address, folder name, entry) of its copies.

    trace_octets: length of what we put on top of it. fields: what the rows know of its header, decoded.
    accepted: the data of its event of acceptance, empty where that is gone.
    """

    id: str
    organization_id: str
    source: Source
    accepted_at: int
    octets: int
    peer: Peer
    envelope: Envelope
    decision: Decision
    verdicts: tuple[Verdict, ...]
    trace_octets: int
    fields: tuple[tuple[str, str], ...]
    places: tuple[tuple[str, str, str, Entry], ...]
    accepted: Mapping[str, Any]


def page(connection: Connection, *, since: int, after: str, limit: int = PAGE) -> list[Stored]:
    """Return the next messages accepted since a time, behind the id after, in the order of ids."""
    query = select(messages).where(
        messages.c.id > after, messages.c.accepted_at >= since, messages.c.source.in_(JUDGED)
    )
    rows = connection.execute(query.order_by(messages.c.id).limit(limit)).all()
    wanted = [row.id for row in rows]
    places, accepted = places_of(connection, wanted), _accepted(connection, wanted)
    return [_stored(row, places.get(row.id, ()), accepted.get(row.id, {})) for row in rows]


def _accepted(connection: Connection, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    query = select(events.c.message_id, events.c.data).where(
        events.c.message_id.in_(wanted), events.c.kind == ACCEPTED
    )
    return {row.message_id: json.loads(row.data) for row in connection.execute(query)}


def places_of(
    connection: Connection, wanted: Sequence[str]
) -> dict[str, tuple[tuple[str, str, str, Entry], ...]]:
    """Return where each message lies: (inbox id, its address, folder name, entry) of its copies."""
    joined = entries.join(folders, folders.c.id == entries.c.folder_id)
    joined = joined.join(mailboxes, mailboxes.c.id == folders.c.mailbox_id)
    columns = [entries.c[name] for name in Entry.__slots__]
    query = select(
        *columns, folders.c.name.label("folder"), mailboxes.c.id.label("inbox"), mailboxes.c.address
    )
    found: dict[str, tuple[tuple[str, str, str, Entry], ...]] = {}
    for row in connection.execute(query.select_from(joined).where(entries.c.message_id.in_(wanted))):
        place = row.inbox, row.address, row.folder, entry_of(row[: len(columns)])
        found[row.message_id] = (*found.get(row.message_id, ()), place)
    return found


def _stored(
    row: Row[Any], places: tuple[tuple[str, str, str, Entry], ...], accepted: Mapping[str, Any]
) -> Stored:
    return Stored(
        id=row.id,
        organization_id=row.organization_id,
        source=Source(row.source),
        accepted_at=row.accepted_at,
        octets=row.octets,
        peer=read_peer(row.peer),
        envelope=read_envelope(row.envelope),
        decision=read_decision(row.decision),
        verdicts=read_verdicts(row.verdicts),
        trace_octets=len(row.trace),
        fields=(
            ("From", row.from_),
            ("To", row.to),
            ("Subject", row.subject),
            ("Message-ID", row.message_id_header),
        ),
        places=places,
        accepted=accepted,
    )
