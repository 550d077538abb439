"""One attempt: the recipients of one message in one domain, to the first host that takes it.

Owns the walk over hosts, the use of pooled connections, and what each answer
means for each recipient. Settles nothing: outcomes go back to the scheduler.
The durable record that transmission began comes before the first octet of
content. RFC 5321 5.1 (hosts), 4.5.3.1.10 (too many recipients), 4.2.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.delivery import outcome
from server.delivery.exchangers import Exchanger, Exchangers, Unroutable, in_order
from server.delivery.outcome import Hop
from server.delivery.route import Route, fixed
from server.smtp.client import ConnectFailed, Endpoint
from server.smtp.client_machine import NO_REQUIRETLS, Answer, Dialect, Transaction
from server.smtp.client_reply import Reply
from storage.records import Handover

if TYPE_CHECKING:
    from server.clock import Clock
    from server.delivery.forwarding import Forwarding
    from server.delivery.letter import Letter
    from server.delivery.pool import Pool, Taken
    from server.smtp.client import Client
    from server.threads import Threads
    from storage.records import Delivery, Outcome, Recipient

# RFC 5321 4.5.3.1.8: every server takes 100 recipients.
RECIPIENTS_LIMIT = 100
# A domain's hosts are not tried without end: a dead network costs each attempt this many waits.
CONNECTS_LIMIT = 5
HOSTS_SECONDS = 30.0
HOSTS_LIMIT = 5000

Begin = Callable[[Sequence["Delivery"]], Awaitable[None]]
Outcomes = dict[str, "Outcome"]


@dataclass(frozen=True, slots=True)
class Group:
    """Recipients of one message that go to one domain together."""

    domain: str
    hop: Route
    deliveries: tuple[Delivery, ...]

    @property
    def require_tls(self) -> bool:
        """Whether the message goes only under verified TLS (RFC 8689)."""
        return self.deliveries[0].envelope.require_tls

    @property
    def verified(self) -> bool:
        """Whether it goes only under TLS with the host's certificate, by the sender's word or policy's."""
        return self.require_tls or self.deliveries[0].envelope.tls_only

    @property
    def message_id(self) -> str:
        """The message."""
        return self.deliveries[0].message_id


class Transmitter:
    """Sends groups by SMTP or LMTP."""

    def __init__(
        self,
        *,
        pool: Pool,
        exchangers: Exchangers,
        threads: Threads,
        clock: Clock,
        hostname: str,
        dice: random.Random,
        forwarding: Forwarding | None = None,
    ) -> None:
        self._pool = pool
        self._exchangers = exchangers
        self._threads = threads
        self._clock = clock
        self._hostname = hostname.lower()
        self._dice = dice
        self._forwarding = forwarding
        self._hosts: dict[str, tuple[float, tuple[Exchanger, ...]]] = {}

    async def send(self, group: Group, letter: Letter, *, begin: Begin) -> Outcomes:
        """Return an outcome for each delivery of a group, by id.

        begin is awaited with those that are about to get content; what it raises ends the attempt.
        """
        started = self._clock.monotonic()
        found: Outcomes = {}
        pending = list(group.deliveries)
        try:
            while pending:
                limit = RECIPIENTS_LIMIT
                if self._forwarding is not None and self._forwarding.is_apiece(pending[0]):
                    limit = 1
                answers = await self._transact(group, letter, pending[:limit], begin)
                seconds = self._clock.monotonic() - started
                found |= _read(answers, round(seconds * 1_000_000))
                pending = [*_again(answers), *pending[limit:]]
        except Unroutable as failure:
            found |= {one.id: failure.outcome for one in pending}
        return found

    async def _transact(
        self, group: Group, letter: Letter, deliveries: Sequence[Delivery], begin: Begin
    ) -> list[_Answered]:
        """Carry one transaction; a connection that died while idle is replaced once by a new one."""
        taken = await self._connection(group)
        answered = await self._carry(taken, letter, deliveries, begin)
        if taken.reused and all(_died_idle(one.answer) for one in answered):
            taken = await self._fresh(group)
            answered = await self._carry(taken, letter, deliveries, begin)
        return answered

    async def _carry(
        self, taken: Taken, letter: Letter, deliveries: Sequence[Delivery], begin: Begin
    ) -> list[_Answered]:
        client = taken.client
        hop = Hop(
            client.endpoint.host,
            client.endpoint.address,
            client.tls_version,
            client.tls_cipher,
            handover=_handover(client),
        )

        reverse_path = deliveries[0].envelope.reverse_path
        if self._forwarding is not None:
            reverse_path = await self._forwarding.sender(deliveries[0], letter)

        async def begun(accepted: tuple[int, ...]) -> None:
            await begin([deliveries[index] for index in accepted])

        try:
            answers = await client.deliver(
                _transaction(
                    deliveries,
                    letter,
                    reverse_path=reverse_path,
                    ascii_only="SMTPUTF8" not in client.extensions,
                ),
                content=letter.chunks(self._threads),
                begin=begun,
            )
        finally:
            self._pool.give(client)
        return [
            _Answered(delivery, answer, hop, taken.note)
            for delivery, answer in zip(deliveries, answers, strict=True)
        ]

    async def _connection(self, group: Group) -> Taken:
        """Return a connection, an idle one to the best hosts before a new one; raises Unroutable."""
        exchangers = await self._in_order(group)
        best = exchangers[0].preference
        for exchanger in exchangers:
            for place in exchanger.endpoints if exchanger.preference == best else ():
                taken = self._pool.take(place)
                if taken is None:
                    continue
                if _obstacle(group, taken.client) is None:
                    return taken
                taken.client.quit()
        return await self._open(group, exchangers)

    async def _fresh(self, group: Group) -> Taken:
        return await self._open(group, await self._in_order(group))

    async def _in_order(self, group: Group) -> list[Exchanger]:
        exchangers = in_order(await self._find(group), self._dice)
        if not group.verified:
            return exchangers
        if not group.require_tls:
            # Policy asks for a certificate of the name that the MX record gives, proved or not.
            return [_verified(one) for one in exchangers]
        # RFC 8689 4.2.1: the host's name is proved before its certificate says anything.
        proved = [_verified(one) for one in exchangers if one.authenticated]
        if not proved:
            text = f"the message requires TLS, and no DNSSEC protects the MX records of {group.domain}"
            raise Unroutable(outcome.bounced("dns", 550, "5.7.30", text))
        return proved

    async def _open(self, group: Group, exchangers: Sequence[Exchanger]) -> Taken:
        places = [place for exchanger in exchangers for place in exchanger.endpoints]
        last: tuple[Endpoint, Answer] | None = None
        connects = 0
        for place in places:
            known = self._pool.dead.find(place)
            if known is not None:
                last = last or (place, known)
                continue
            if connects >= CONNECTS_LIMIT:
                break
            connects += 1
            try:
                taken = await self._pool.open(place)
            except ConnectFailed as failure:
                last = (place, _unverified(failure.answer) if place.verified else failure.answer)
                continue
            obstacle = _obstacle(group, taken.client)
            if obstacle is not None:
                taken.client.quit()
                last = (place, obstacle)
                continue
            if fixed(group.hop) or taken.client.greeting_name != self._hostname:
                return taken
            taken.client.quit()
            raise Unroutable(
                outcome.bounced(
                    "ehlo",
                    554,
                    "5.4.6",
                    "the host that takes this mail is this server itself",
                    hop=_hop(place),
                )
            )
        assert last is not None, "every exchanger has an address"
        raise Unroutable(outcome.read_answer(last[1], _hop(last[0])))

    async def _find(self, group: Group) -> tuple[Exchanger, ...]:
        until, known = self._hosts.get(group.domain, (0.0, ()))
        now = self._clock.monotonic()
        if known and now < until:
            return known
        hop = fixed(group.hop)
        if hop is None:
            found = await self._exchangers.of_domain(group.domain)
        else:
            found = await self._exchangers.of_hop(hop)
        if len(self._hosts) >= HOSTS_LIMIT:
            self._hosts.clear()
        self._hosts[group.domain] = (now + HOSTS_SECONDS, found)
        return found


@dataclass(frozen=True, slots=True)
class _Answered:
    delivery: Delivery
    answer: Answer
    hop: Hop
    note: str


def _handover(client: Client) -> Handover:
    """RFC 3461 5.2.1, 5.2.2: who was given the parameters tells; LMTP's other end is the store itself."""
    if "DSN" in client.extensions:
        return Handover.PASSED
    return Handover.DELIVERED if client.endpoint.dialect is Dialect.LMTP else Handover.RELAYED


def _verified(exchanger: Exchanger) -> Exchanger:
    return replace(exchanger, endpoints=tuple(replace(one, verified=True) for one in exchanger.endpoints))


def _obstacle(group: Group, client: Client) -> Answer | None:
    """Return why a connection may not carry a message that must be protected, None where it may."""
    if not group.verified:
        return None
    if group.require_tls and not (client.tls_version and "REQUIRETLS" in client.extensions):
        return NO_REQUIRETLS
    if client.tls_version is None:
        text = "the message requires TLS by policy, and the server does not offer it"
        return Answer("policy", Reply(550, "5.7.30", (text,)), text)
    return None


def _unverified(answer: Answer) -> Answer:
    """Return what a failed handshake means: a certificate that does not hold is a refusal for good."""
    if answer.phase != "tls" or "CERTIFICATE" not in answer.text.upper():
        return answer
    text = f"the message requires TLS: {answer.text}"
    return Answer("policy", Reply(550, "5.7.30", (text,)), text)


def _hop(place: Endpoint) -> Hop:
    return Hop(place.host, place.address)


def _read(answered: Sequence[_Answered], duration: int) -> Outcomes:
    return {
        one.delivery.id: outcome.read_answer(one.answer, one.hop, duration=duration, note=one.note)
        for one in answered
    }


def _again(answered: Sequence[_Answered]) -> list[Delivery]:
    """Return those whom only this transaction had no room for, if it got anybody through."""
    progress = any(one.answer.phase == "final" for one in answered)
    return [one.delivery for one in answered if progress and _no_room(one.answer)]


def _no_room(answer: Answer) -> bool:
    return answer.phase == "rcpt" and answer.reply is not None and outcome.too_many_recipients(answer.reply)


def _died_idle(answer: Answer) -> bool:
    """Whether the connection ended before the first command was answered: nothing was done yet."""
    return answer.phase == "mail" and (answer.reply is None or answer.reply.code == 421)


def _transaction(
    deliveries: Sequence[Delivery], letter: Letter, *, reverse_path: str | None, ascii_only: bool
) -> Transaction:
    envelope = deliveries[0].envelope
    return Transaction(
        reverse_path=reverse_path,
        recipients=tuple(_recipient(one, ascii_only=ascii_only) for one in deliveries),
        octets=letter.octets,
        eight_bit=letter.eight_bit,
        utf8_header=letter.utf8_header,
        ret=envelope.ret,
        envid=envelope.envid,
        require_tls=envelope.require_tls,
    )


def _recipient(delivery: Delivery, *, ascii_only: bool) -> Recipient:
    """RFC 6531 3.2: without SMTPUTF8 a domain can still be named by its A-labels."""
    recipient = delivery.recipient
    local, _, _ = recipient.address.rpartition("@")
    if ascii_only and not recipient.address.isascii() and local.isascii():
        return replace(recipient, address=f"{local}@{delivery.domain}")
    return recipient
