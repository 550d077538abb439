"""Whose address a submitter may use: its own, or one that it holds a grant for.

Owns the rule for the envelope sender, the From and the Sender field. Refuses with 553
5.7.1; a field that cannot be read with 550 5.6.0. RFC 6409 6.1 and 8.1, RFC 5322 3.6.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.mail.address import normalise
from server.refusal import Refusal
from server.routing import Local
from storage import grants

if TYPE_CHECKING:
    from server.evidence import Letter
    from server.login import Identity
    from server.routing import Routing
    from server.threads import Threads


class Senders:
    """Judges the addresses that submitters use."""

    def __init__(self, threads: Threads, routing: Routing) -> None:
        self._threads = threads
        self._routing = routing

    async def require(self, identity: Identity, address: str, what: str) -> None:
        """Raise Refusal unless a login may use an address. what: what it uses it for."""
        resolution = await self._routing.resolve(address)
        forms = {normalise(address)}
        if isinstance(resolution, Local):
            mailbox = resolution.mailbox
            if identity.mailbox_id is None:
                owned = mailbox.organization_id == identity.organization_id
            else:
                owned = mailbox.id == identity.mailbox_id
            if owned:
                return
            forms.add(mailbox.address)
        if not await self._holds_grant(identity, forms):
            raise Refusal(553, "5.7.1", f"This login does not own the {what}", f"{identity.id}")

    async def check(self, identity: Identity, letter: Letter) -> None:
        """Raise Refusal unless the header names the submitter as its From and Sender."""
        if letter.from_fields != 1 or not letter.from_readable:
            raise Refusal(550, "5.6.0", "The message needs one From field with valid addresses")
        for address in letter.from_addresses:
            await self.require(identity, address, "From address")
        if not letter.has(b"sender"):
            return
        senders = letter.sender_addresses
        if len(senders) != 1 or senders[0] is None:
            raise Refusal(550, "5.6.0", "The Sender field must name one valid address")
        await self.require(identity, senders[0], "Sender address")

    async def _holds_grant(self, identity: Identity, addresses: set[str]) -> bool:
        key_id = identity.id if identity.kind == "key" else None
        return await self._threads.read(
            lambda c: grants.may_send_as(
                c,
                organization_id=identity.organization_id,
                mailbox_id=identity.mailbox_id,
                api_key_id=key_id,
                addresses=addresses,
            )
        )
