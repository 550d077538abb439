"""The envelope sender of each transaction: an address of ours that leads bounces back to whom they concern.

Owns which deliveries are forwards, and go out from an address that leads to the sender (SPF at the
next server judges who sends, which is this one; decision 014), and which of our own go out with a
signed return path a recipient (decision 033). Routing reads such addresses. Owns too which
deliveries nobody can be told of when they fail (RFC 5321 4.5.5).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from server.mail.address import AddressSyntax, domain_of, normalise_domain
from server.mail.address_list import parse_address_list
from server.mail.header import Header, split
from server.routing import is_return_address, return_address
from storage.records import Source

if TYPE_CHECKING:
    from collections.abc import Collection

    from server.delivery.letter import Letter
    from server.return_tokens import ReturnTokens
    from server.routing import Routing
    from server.threads import Threads
    from storage.records import Delivery

FROM_ELSEWHERE = frozenset({Source.MX, Source.LMTP, Source.LOCAL, Source.FORWARD})
FROM_SENDERS = frozenset({Source.SUBMISSION, Source.API})
HEAD_OCTETS = 64 << 10
ALL = "*"


def is_unanswerable(delivery: Delivery) -> bool:
    """Whether a message that others entrusted to this server may be returned to nobody if it fails.

    Notices on their way back through an address of ours are none: their failing ends them.
    """
    return (
        delivery.envelope.reverse_path is None
        and delivery.source in FROM_ELSEWHERE
        and not any(map(is_return_address, delivery.named))
    )


class Forwarding:
    """Chooses the reverse-path of each transaction.

    forwards: whether forwarded mail gets an address of ours. verp: domains whose mail gets a return path
    for each recipient, or ALL; tokens makes them.
    """

    def __init__(
        self,
        routing: Routing,
        *,
        forwards: bool = True,
        verp: Collection[str] = (),
        tokens: ReturnTokens | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._routing = routing
        self._threads = threads
        self._forwards = forwards
        self._verp = frozenset(verp) if tokens is not None else frozenset[str]()
        self._tokens = tokens

    def is_apiece(self, delivery: Delivery) -> bool:
        """Whether a delivery needs a transaction of its own, since its return path is its own."""
        own = delivery.envelope.reverse_path
        if not self._verp or own is None or delivery.source not in FROM_SENDERS:
            return False
        return ALL in self._verp or _domain(own) in self._verp

    async def sender(self, delivery: Delivery, letter: Letter | None = None) -> str | None:
        """Return the reverse-path to send a delivery with, None for the null one.

        Mail of this server's own domains, and what no domain of ours was named for, keeps its own.
        """
        own = delivery.envelope.reverse_path
        if own is None:
            return own
        if self.is_apiece(delivery):
            return await self._signed(delivery, own, letter)
        if not self._forwards or delivery.source not in FROM_ELSEWHERE or await self._is_ours(own):
            return own
        for address in delivery.named:
            if await self._is_ours(address):
                return return_address(delivery.id, domain_of(address))
        return own

    async def _signed(self, delivery: Delivery, own: str, letter: Letter | None) -> str:
        """Return the return path of a delivery, in the domain of the message's author where that is ours."""
        assert self._tokens is not None, "is_apiece asks for it"
        head = letter.whole if letter is not None else b""
        if head is None and letter is not None and self._threads is not None:
            head = await self._threads.run(_head, letter.path)
        for domain in (_author_domain(head or b""), _domain(own)):
            if domain and await self._routing.is_local(domain):
                return self._tokens.address(delivery.id, domain)
        return own

    async def _is_ours(self, address: str) -> bool:
        domain = _domain(address)
        return bool(domain) and await self._routing.is_local(domain)


def _domain(address: str) -> str:
    try:
        return domain_of(address)
    except AddressSyntax:
        return ""


def _author_domain(head: bytes) -> str:
    """Return the domain of the From field's one author, which DMARC aligns with; '' where it is unclear."""
    values = Header(head[: split(head)]).all(b"from")
    authors = parse_address_list(values[0]) if len(values) == 1 else []
    if len(authors) != 1 or not authors[0].domain:
        return ""
    try:
        return normalise_domain(authors[0].domain.decode("utf-8", "replace"))
    except AddressSyntax:
        return ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_OCTETS)
