"""Notices of failure at the MX door: read while they are judged, and held against what was sent.

Owns the proof. A notice to a signed return path is proved by that address, and is about its one
recipient. Any other counts only where the message it returns bears what we put on it: the
id of a stored message in a Received field of this host with that message's Message-ID, or that
Message-ID with a DKIM signature of ours which still verifies over the returned header. A forged one
changes nothing, and rules are told that it proves nothing. Writes nothing itself.
RFC 3464, RFC 5321 4.5.5, RFC 6376.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from server.arrival import Notice
from server.mail.address import AddressSyntax, normalise
from server.mail.bounce_reader import Bounce, Failure, read_bounce
from server.sender_auth.own_signature import signed_domain
from storage import accounts, later
from storage.records import Source, Spooled

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.arrival import Arrival
    from server.clock import Clock
    from server.mail.arf import Returned
    from server.return_tokens import ReturnTokens
    from server.threads import Threads
    from storage.later import SentTo

MAX_OCTETS = 1 << 20
INLINE_OCTETS = 4096
TRACES_LIMIT = 20


class NoticeReader:
    """Reads notices. hostname: ours, as Received fields have it."""

    def __init__(self, *, threads: Threads, clock: Clock, hostname: str, tokens: ReturnTokens) -> None:
        self._threads = threads
        self._clock = clock
        self._hostname = hostname.lower()
        self._tokens = tokens

    async def look(self, arrival: Arrival, organizations: Collection[str]) -> Notice | None:
        """Return what mail from the null sender tells of mail of these organizations; None: no notice."""
        if arrival.envelope.reverse_path is not None or arrival.source is not Source.MX:
            return None
        content = await self._beginning(arrival.content)
        if len(content) <= INLINE_OCTETS:
            bounce = read_bounce(content)
        else:
            bounce = await self._threads.compute(read_bounce, content)
        delivery_id = self._named(arrival)
        if bounce is None or not bounce.failures:
            return None
        proof, sent = await self._threads.read(
            partial(self._proved, bounce=bounce, delivery_id=delivery_id, organizations=organizations)
        )
        return Notice(proof, tuple(_matched(bounce, sent, is_alone=delivery_id is not None)))

    async def _beginning(self, content: bytes | Spooled) -> bytes:
        if isinstance(content, bytes):
            return content[:MAX_OCTETS]
        path = self._threads.store.read_spooled(content)

        def read() -> bytes:
            with open(path, "rb") as file:
                return file.read(MAX_OCTETS)

        return await self._threads.run(read)

    def _named(self, arrival: Arrival) -> str | None:
        """Return the delivery whose return path the notice came to."""
        for recipient in arrival.envelope.recipients[:10]:
            try:
                address = normalise(recipient.address)
            except AddressSyntax:
                continue
            found = self._tokens.delivery(address, now=self._clock.now())
            if found is not None:
                return found
        return None

    def _proved(
        self,
        connection: Connection,
        *,
        bounce: Bounce,
        delivery_id: str | None,
        organizations: Collection[str],
    ) -> tuple[str, list[SentTo]]:
        if delivery_id is not None:
            found = later.by_delivery(connection, delivery_id=delivery_id)
            return ("return path", found) if found else ("", [])
        returned = bounce.returned
        if returned is None or not returned.message_id:
            return "", []
        header_id = returned.message_id.strip()
        for host, message_id in returned.traces[:TRACES_LIMIT]:
            if host != self._hostname:
                continue
            found = later.by_message(connection, message_id=message_id)
            if found and found[0].header_id == header_id and found[0].organization_id in organizations:
                return "trace", found
        return self._by_signature(connection, returned, header_id, organizations)

    def _by_signature(
        self, connection: Connection, returned: Returned, header_id: str, organizations: Collection[str]
    ) -> tuple[str, list[SentTo]]:
        """Prove by a DKIM signature of ours, where the trace was taken out on the way."""
        domain = signed_domain(
            returned.header,
            keys_of=lambda name: accounts.dkim_keys(connection, domain=name),
            is_ours=lambda name: _owner(connection, name) in organizations,
        )
        if domain is None:
            return "", []
        owner = _owner(connection, domain)
        found = later.by_header(connection, organization_id=owner, header_id=header_id) if owner else []
        return ("signature", found) if found else ("", [])


def _owner(connection: Connection, domain: str) -> str:
    found = accounts.find_domain(connection, name=domain)
    return found.organization_id if found is not None else ""


def _matched(bounce: Bounce, sent: Sequence[SentTo], *, is_alone: bool) -> list[dict[str, object]]:
    """Return what a notice says of each delivery of ours that it names.

    is_alone: the address has told which delivery it is about, whatever the notice calls the recipient
    behind aliases.
    """
    made: dict[str, dict[str, object]] = {}
    for one in sent:
        wanted = _normal(one.recipient)
        named = next(
            (f for f in bounce.failures if wanted in (_normal(f.recipient), _normal(f.original))), None
        )
        if named is None and (is_alone or len(sent) == 1):
            named = bounce.failures[0]
        if named is not None:
            made[one.delivery_id] = _facts(one, named)
    return list(made.values())


def _facts(sent: SentTo, failure: Failure) -> dict[str, object]:
    return {
        "delivery": sent.delivery_id,
        "message": sent.message_id,
        "organization": sent.organization_id,
        "recipient": sent.recipient,
        "action": failure.action,
        "class": failure.judged.bounce_class.value,
        "blame": failure.judged.blame.value,
        "code": failure.code,
        "enhanced": failure.enhanced,
        "text": failure.diagnostic[:500],
        "host": failure.remote_mta,
    }


def _normal(address: str) -> str:
    try:
        return normalise(address)
    except AddressSyntax:
        return address.lower()
