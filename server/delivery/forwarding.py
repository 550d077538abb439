"""The envelope sender of forwarded mail: an address of ours that leads back to the sender.

Owns which deliveries are forwards and the address they go out with: SPF at the next
server judges who sends, which is this one. Routing reads such addresses. Decision 014.
Owns too which of them nobody can be told of when they fail (RFC 5321 4.5.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.mail.address import AddressSyntax, domain_of
from server.routing import is_return_address, return_address
from storage.records import Source

if TYPE_CHECKING:
    from server.routing import Routing
    from storage.records import Delivery

FROM_ELSEWHERE = frozenset({Source.MX, Source.LMTP, Source.LOCAL, Source.FORWARD})


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
    """Chooses the reverse-path of each transaction."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def sender(self, delivery: Delivery) -> str | None:
        """Return the reverse-path to send a delivery with, None for the null one.

        Mail of this server's own domains, and what no domain of ours was named for, keeps its own.
        """
        own = delivery.envelope.reverse_path
        if own is None or delivery.source not in FROM_ELSEWHERE:
            return own
        if await self._is_ours(own):
            return own
        for address in delivery.named:
            if await self._is_ours(address):
                return return_address(delivery.id, domain_of(address))
        return own

    async def _is_ours(self, address: str) -> bool:
        try:
            return await self._routing.is_local(domain_of(address))
        except AddressSyntax:
            return False
