"""One-click unsubscribing (RFC 8058): the two fields, and what a reader's wish changes.

Owns who gets the fields (settings: bounces.unsubscribe) and the suppression that follows from a wish:
of that reader, for that sender's mail alone. The link holds all that is needed, signed, so that it
works for as long as the key is kept. A message to several gets none: its link could not tell who
asked. RFC 8058 3.1 (fields), 3.2 (the POST), RFC 2369 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.mail.address import AddressSyntax, normalise
from server.return_tokens import ReturnTokens, Unsubscribing
from storage import accounts, events, ids, suppression
from storage.records import Event, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.arrival import Arrival
    from server.evidence import Letter

PATH = "/unsubscribe/"
BULK = "bulk"
SENT = frozenset({Source.SUBMISSION, Source.API})
UNSUBSCRIBED = "message.unsubscribed"
_FIELD = b"list-unsubscribe"
LINE_LIMIT = 990  # RFC 5322 2.1.1: 998 octets, and a link can't be folded


class Unsubscribe:
    """Makes the fields. url: where readers reach the HTTP role. is_for_all: not only for the scope bulk."""

    def __init__(self, tokens: ReturnTokens, *, url: str, is_for_all: bool) -> None:
        self._tokens = tokens
        self._url = url + PATH
        self._is_for_all = is_for_all

    def fields(self, arrival: Arrival, letter: Letter, *, message_id: str) -> bytes:
        """Return the fields with CRLF that a sent message gets; b'' where it is not for it."""
        identity, envelope = arrival.identity, arrival.envelope
        if (
            arrival.source not in SENT
            or identity is None
            or len(envelope.recipients) != 1
            or envelope.reverse_path is None
        ):
            return b""
        if not (self._is_for_all or BULK in identity.scopes) or letter.has(_FIELD):
            return b""
        try:
            sender, reader = normalise(envelope.reverse_path), normalise(envelope.recipients[0].address)
        except AddressSyntax:
            return b""
        link = self._tokens.link(Unsubscribing(identity.organization_id, sender, reader, message_id))
        field = f"List-Unsubscribe: <{self._url}{link}>\r\n"
        if len(field) > LINE_LIMIT:
            return b""
        return f"{field}List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n".encode("ascii", "replace")


def unsubscribe(connection: Connection, *, wish: Unsubscribing, at: int) -> bool:
    """Let no more mail of a sender go to a reader; False where nobody is there to send any.

    Said again it changes nothing.
    """
    if accounts.organization(connection, organization_id=wish.organization_id) is None:
        return False
    known = suppression.own(
        connection,
        organization_id=wish.organization_id,
        address=wish.recipient,
        sender=wish.sender,
    )
    if known is not None and known.cause == "unsubscribe" and known.expires_at is None:
        return True
    message_id = wish.message_id if accounts.message_exists(connection, message_id=wish.message_id) else None
    event = Event(
        ids.new("evt"),
        UNSUBSCRIBED,
        at,
        wish.organization_id,
        message_id,
        data={"recipient": wish.recipient, "sender": wish.sender, "type": "one-click"},
    )
    suppression.add(
        connection,
        organization_id=wish.organization_id,
        address=wish.recipient,
        cause="unsubscribe",
        evidence="one-click unsubscribe (RFC 8058)",
        at=at,
        scope="sender",
        sender=wish.sender,
        event_id=event.id,
    )
    events.append(connection, [event])
    return True
