"""The questions that come before content: connection, EHLO, MAIL and RCPT, and a notice before it is made.

Owns what is refused there and the asking of rules for it. Refuses by raising Refusal:
RFC 5321 3.3 and 4.2 (552 and 452), RFC 3463 for the enhanced codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server import evidence
from server.refusal import Refusal
from server.routing import Forward, Local, Refuse, Remote, is_role
from server.rulebook import refuse
from storage import accounts
from storage.records import Action, Envelope, Peer, Recipient, Source

if TYPE_CHECKING:
    from server.client_facts import ClientFacts
    from server.login import Identity
    from server.routing import Routing
    from server.rulebook import Rulebook
    from server.senders import Senders
    from server.standing import Standing
    from server.threads import Threads
    from storage.records import Decision

NOBODY = Peer("")


class Door:
    """Judges sessions and envelopes before any content has come."""

    def __init__(
        self,
        *,
        threads: Threads,
        routing: Routing,
        rulebook: Rulebook,
        senders: Senders,
        standing: Standing | None,
        client_facts: ClientFacts | None = None,
        own_name: str = "",
    ) -> None:
        self._threads = threads
        self._routing = routing
        self._rulebook = rulebook
        self._senders = senders
        self._standing = standing
        self._client_facts = client_facts
        self._own_name = own_name.lower()

    async def connected(self, peer: Peer, *, source: Source = Source.MX) -> None:
        """Judge a new connection; raises Refusal. source: of its mail."""
        if self._client_facts is not None and source is not Source.SUBMISSION:
            self._client_facts.begin(peer)
        if self._rulebook.asks("connect"):
            refuse(await self.ruled("connect", evidence.Facts(evidence.Case(peer))))

    async def helo(self, peer: Peer, *, source: Source = Source.MX) -> None:
        """Judge the EHLO or HELO argument; raises Refusal. source: as of connected."""
        if self._client_facts is not None and source is not Source.SUBMISSION:
            self._client_facts.begin(peer)
        if self._rulebook.asks("helo"):
            refuse(await self.ruled("helo", evidence.Facts(evidence.Case(peer, own_name=self._own_name))))

    async def sender(
        self,
        peer: Peer,
        identity: Identity | None,
        envelope: Envelope,
        declared_octets: int | None,
        *,
        source: Source | None = None,
    ) -> None:
        """Judge MAIL FROM; raises Refusal: 452 4.3.1 where the disk's reserve is reached."""
        if not self._threads.store.has_room(declared_octets or 0):
            raise no_room()
        if identity is not None and envelope.reverse_path is not None:
            await self._senders.require(identity, envelope.reverse_path, "envelope sender")
        if self._client_facts is not None and identity is None:
            self._client_facts.begin(peer, envelope)
        if self._rulebook.asks("mail"):
            case = evidence.Case(
                peer,
                identity,
                envelope,
                source or _source(identity),
                declared_octets=declared_octets or 0,
                own_name=self._own_name,
            )
            refuse(await self.ruled("mail", evidence.Facts(case)))

    async def recipient(
        self,
        peer: Peer,
        identity: Identity | None,
        envelope: Envelope,
        recipient: Recipient,
        *,
        source: Source | None = None,
    ) -> None:
        """Judge RCPT TO; raises Refusal: no relay, no such mailbox, over quota, policy."""
        resolution = await self._routing.resolve(recipient.address)
        if isinstance(resolution, Refuse):
            raise resolution.refusal()
        if isinstance(resolution, Remote) and identity is None:
            raise Refusal(550, "5.7.1", "Relaying denied")
        if isinstance(resolution, Local):
            await self._require_quota(resolution)
        elif isinstance(resolution, Forward) and resolution.is_return and envelope.reverse_path is not None:
            raise Refusal(550, "5.7.1", "This address takes notices about forwarded mail alone")
        if self._rulebook.asks("rcpt"):
            case = evidence.Case(
                peer,
                identity,
                envelope,
                source or _source(identity),
                recipient=recipient.address,
                recipient_count=len(envelope.recipients) + 1,
                own_name=self._own_name,
            )
            decision = await self.ruled("rcpt", evidence.Facts(case))
            if not (decision.reason and is_role(recipient.address)):
                refuse(decision)

    async def ruled(self, stage: str, facts: evidence.Facts) -> Decision:
        """Return a stage's decision, with what its rules want to know ahead."""
        wanted = self._rulebook.wanted(stage, facts)
        if wanted and self._standing is not None:
            await self._standing.look(wanted, facts)
        if wanted and self._client_facts is not None:
            await self._client_facts.look(wanted, facts)
        if wanted and facts.case.scans is not None:
            await facts.case.scans.look(wanted)
        return self._rulebook.decide(stage, facts)

    def may_notify(
        self, *, sender: str, recipient: str, reply_code: int, reply_status: str, notice: str
    ) -> bool:
        """Judge a notice about one delivery: 'failure', 'delay' or 'success'; False withholds it."""
        if not self._rulebook.asks("bounce"):
            return True
        case = evidence.Case(
            NOBODY,
            envelope=Envelope(sender, ()),
            recipient=recipient,
            reply_code=reply_code,
            reply_status=reply_status,
            notice=notice,
        )
        return self._rulebook.decide("bounce", evidence.Facts(case)).action is Action.ACCEPT

    async def _require_quota(self, resolution: Local) -> None:
        mailbox = resolution.mailbox
        if mailbox.quota_octets == 0:
            return
        used = await self._threads.read(
            lambda c: accounts.used_octets(c, organization_id=mailbox.organization_id, mailbox_id=mailbox.id)
        )
        if used >= mailbox.quota_octets:
            raise Refusal(452, "4.2.2", "Mailbox full")


def no_room() -> Refusal:
    """Return what is said where the disk has no room: for this message, now (RFC 5321 4.2.3)."""
    return Refusal(452, "4.3.1", "Insufficient system storage, try again later")


def _source(identity: Identity | None) -> Source:
    return Source.SUBMISSION if identity else Source.MX
