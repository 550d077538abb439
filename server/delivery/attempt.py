"""One attempt: the recipients of one message in one domain, to the first host that takes it.

Owns the walk over hosts, the use of pooled connections, and what each answer
means for each recipient. Settles nothing: outcomes go back to the scheduler.
The durable record that transmission began comes before the first octet of
content. RFC 5321 5.1 (hosts), 4.5.3.1.10 (too many recipients), 4.2, RFC 9422 (LIMITS).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.delivery import outcome
from server.delivery.exchangers import Exchanger, Exchangers, Unroutable, in_order
from server.delivery.outcome import Hop
from server.delivery.protection import configured, relaxed, required
from server.delivery.route import Route, fixed
from server.smtp.client import NO_STARTTLS, ConnectFailed, Endpoint
from server.smtp.client_machine import NO_REQUIRETLS, Answer, Dialect, Transaction
from server.smtp.client_reply import Reply
from server.transport.results import Session
from server.transport.security import Applied, Fault, PolicyType, Reported, ResultType
from storage.records import Handover

if TYPE_CHECKING:
    import socket

    from server.clock import Clock
    from server.delivery.forwarding import Forwarding
    from server.delivery.letter import Letter
    from server.delivery.pool import Pool, Taken
    from server.delivery.protection import Protection
    from server.delivery.sources import Source, Sources
    from server.smtp.client import Client
    from server.threads import Threads
    from server.transport.results import TlsResults
    from storage.records import Delivery, Outcome, Recipient

# RFC 5321 4.5.3.1.8: every server takes 100 recipients.
RECIPIENTS_LIMIT = 100
# A domain's hosts are not tried without end: a dead network costs each attempt this many waits.
CONNECTS_LIMIT = 5
HOSTS_SECONDS = 30.0
HOSTS_LIMIT = 5000
PASSED_LIMIT = 5
NOT_TRUSTED = "4.7.5"  # RFC 3463 3.8: cryptographic failure
REASON_LIMIT = 300
# What a message that requires TLS bounces for (RFC 8689 4.2.1); anything else may pass by itself.
FINAL_FAULTS = frozenset(
    {ResultType.HOST_MISMATCH, ResultType.EXPIRED, ResultType.NOT_TRUSTED, ResultType.NO_STARTTLS}
)
POLICY_FAULTS = frozenset({ResultType.STS_FETCH, ResultType.STS_INVALID, ResultType.STS_WEBPKI})

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
        sources: Sources | None = None,
        protection: Protection | None = None,
        results: TlsResults | None = None,
    ) -> None:
        self._pool = pool
        self._exchangers = exchangers
        self._threads = threads
        self._clock = clock
        self._hostname = hostname.lower()
        self._dice = dice
        self._forwarding = forwarding
        self._sources = sources
        self._protection = protection
        self._results = results
        self._hosts: dict[tuple[str, Route], tuple[float, tuple[Exchanger, ...]]] = {}

    async def send(
        self, group: Group, letter: Letter, *, begin: Begin, into: Outcomes | None = None
    ) -> Outcomes:
        """Return an outcome for each delivery of a group, by id.

        begin is awaited with those that are about to get content; what it raises ends the attempt. into:
        where outcomes go as they come, so that those of earlier transactions outlive what is raised.
        """
        started = self._clock.monotonic()
        found: Outcomes = {} if into is None else into
        pending = list(group.deliveries)
        try:
            while pending:
                limit = RECIPIENTS_LIMIT
                if self._forwarding is not None and self._forwarding.is_apiece(pending[0]):
                    limit = 1
                answers = await self._transact(group, letter, pending[:limit], begin)
                seconds = self._clock.monotonic() - started
                found.update(_read(answers, round(seconds * 1_000_000)))
                pending = [*_again(answers), *pending[len(answers) :]]
        except Unroutable as failure:
            found.update({one.id: failure.outcome for one in pending})
        return found

    async def _transact(
        self, group: Group, letter: Letter, deliveries: Sequence[Delivery], begin: Begin
    ) -> list[_Answered]:
        """Carry one transaction for as many of the first as the server takes in one (RFC 9422).

        A connection that died while idle is replaced once by a new one.
        """
        exchangers = await self._from(group, await self._in_order(group, letter))
        way = await self._connection(group, exchangers)
        answered = await self._carry(way, letter, deliveries, begin)
        if way.taken.reused and all(_died_idle(one.answer) for one in answered):
            way = await self._open(group, exchangers)
            answered = await self._carry(way, letter, deliveries, begin)
        return answered

    async def _carry(
        self, way: _Way, letter: Letter, deliveries: Sequence[Delivery], begin: Begin
    ) -> list[_Answered]:
        taken = way.taken
        client = taken.client
        # One domain's recipients alone go together: RCPTDOMAINMAX, one at least, is kept anyway.
        deliveries = deliveries[: client.extensions.limit("RCPTMAX")]
        hop = Hop(
            client.endpoint.host,
            client.endpoint.address,
            client.tls_version,
            client.tls_cipher,
            handover=_handover(client),
            tls_policy=way.applied.name,
            tls_reason=_reason(way),
            passed_over=way.passed_over,
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
        if self._sources is not None:
            self._sources.count(client.endpoint.source, len(deliveries))
        return [
            _Answered(delivery, answer, hop, taken.note, _dialogue(client, answer, index))
            for index, (delivery, answer) in enumerate(zip(deliveries, answers, strict=True))
        ]

    async def _connection(self, group: Group, exchangers: Sequence[Exchanger]) -> _Way:
        """Return a connection, an idle one to the best hosts before a new one; raises Unroutable."""
        best = exchangers[0].preference
        for exchanger in exchangers:
            if exchanger.preference != best or exchanger.obstacle is not None:
                continue
            for place in exchanger.endpoints:
                taken = self._pool.take(place)
                if taken is None:
                    continue
                if _obstacle(group, taken.client) is None:
                    return _Way(taken, exchanger.applied)
                taken.client.quit()
        return await self._open(group, exchangers)

    async def _from(self, group: Group, exchangers: list[Exchanger]) -> list[Exchanger]:
        """Say which of our addresses the hosts are connected to from; raises Resting."""
        if self._sources is None or fixed(group.hop) is not None:
            return exchangers
        chosen = await self._sources.choose(
            organization_id=group.deliveries[0].organization_id, domain=group.domain
        )
        return [_from(one, chosen) for one in exchangers] if chosen else exchangers

    async def _in_order(self, group: Group, letter: Letter) -> list[Exchanger]:
        exchangers = in_order(await self._find(group), self._dice)
        if not group.verified:
            # RFC 8689 5: what the sender says of the way comes before what the recipient's domain asks.
            is_free = letter.tls_optional and fixed(group.hop) is None
            return [relaxed(one) for one in exchangers] if is_free else exchangers
        if not group.require_tls:
            # Policy asks for a certificate of the name that the MX record gives, proved or not.
            return [required(one, by="a rule asks for TLS") for one in exchangers]
        # RFC 8689 4.2.1: the host's name is proved before its certificate says anything.
        proved = [
            required(one, by="the message requires TLS")
            for one in exchangers
            if one.authenticated or one.is_named
        ]
        if proved:
            return proved
        hop = Hop(tls_policy="required", tls_reason="the message requires TLS")
        text = f"neither DNSSEC nor MTA-STS says which are the MX hosts of {group.domain}"
        text = f"the message requires TLS, and {text}"
        if any(one.is_unknown for one in exchangers):
            text = f"{text}; its policy cannot be had now"
            raise Unroutable(outcome.deferred("policy", text, enhanced="4.7.30", hop=hop))
        raise Unroutable(outcome.bounced("dns", 550, "5.7.30", text, hop=hop))

    async def _open(self, group: Group, exchangers: Sequence[Exchanger]) -> _Way:
        walk = _Walk()
        for exchanger in exchangers:
            self._note_faults(group, exchanger)
            if exchanger.obstacle is not None:
                answer = Answer("policy", None, exchanger.obstacle.text)
                walk.pass_over(_forbidden(exchanger), answer, exchanger.obstacle)
                continue
            places: Sequence[Endpoint] = exchanger.endpoints
            if walk.connects < CONNECTS_LIMIT:
                # The one that won has its connection yet; those before it are known to be dead.
                places, walk.connected = await self._pool.race(places)
            for place in places:
                taken = await self._try(group, exchanger, place, walk)
                if taken is not None:
                    return _Way(taken, exchanger.applied, walk.passed_over)
        raise Unroutable(walk.outcome())

    async def _try(self, group: Group, exchanger: Exchanger, place: Endpoint, walk: _Walk) -> Taken | None:
        """Return a connection to a place, None where it is passed over; raises Unroutable for ourselves."""
        hop = _hop(place, exchanger.applied)
        known = self._pool.dead.find(place)
        if known is not None:
            walk.remember(hop, _unverified(known) if group.verified else known.answer, known.fault)
            return None
        if walk.connects >= CONNECTS_LIMIT:
            return None
        walk.connects += 1
        first, walk.connected = walk.connected, None
        try:
            taken = await self._pool.open(place, first)
        except ConnectFailed as failure:
            self._note(group, exchanger, place, failure.fault, failure.source, is_failure=True)
            walk.pass_over(hop, _unverified(failure) if group.verified else failure.answer, failure.fault)
            walk.dialogue = failure.dialogue
            return None
        self._note(group, exchanger, place, _fault(taken), taken.client.source)
        obstacle = _obstacle(group, taken.client)
        if obstacle is not None:
            taken.client.quit()
            walk.pass_over(hop, obstacle)
            return None
        if fixed(group.hop) or taken.client.greeting_name != self._hostname:
            return taken
        taken.client.quit()
        text = "the host that takes this mail is this server itself"
        raise Unroutable(outcome.bounced("ehlo", 554, "5.4.6", text, hop=hop))

    def _note_faults(self, group: Group, exchanger: Exchanger) -> None:
        """Count what was wrong with the policy before any connection."""
        if self._results is None or exchanger.applied.reported is None:
            return
        obstacle = (exchanger.obstacle,) if exchanger.obstacle is not None else ()
        for fault in (*exchanger.applied.faults, *obstacle):
            reported = exchanger.applied.reported
            if fault.type in POLICY_FAULTS and reported.type is PolicyType.NONE:
                reported = Reported(PolicyType.STS, group.domain)
            self._results.note(Session(group.domain, reported, fault, exchanger.host))

    def _note(
        self,
        group: Group,
        exchanger: Exchanger,
        place: Endpoint,
        fault: Fault | None,
        source: str,
        *,
        is_failure: bool = False,
    ) -> None:
        """Count a session: one that TLS had no part in is none."""
        reported = exchanger.applied.reported
        if self._results is None or reported is None or (is_failure and fault is None):
            return
        if fault is None:
            self._results.note(Session(group.domain, reported))
        else:
            self._results.note(Session(group.domain, reported, fault, place.host, place.address, source))

    async def _find(self, group: Group) -> tuple[Exchanger, ...]:
        until, known = self._hosts.get((group.domain, group.hop), (0.0, ()))
        now = self._clock.monotonic()
        if known and now < until:
            return known
        hop = fixed(group.hop)
        if hop is None:
            found = await self._exchangers.of_domain(group.domain)
            if self._protection is not None:
                found = await self._protection.of_domain(group.domain, found)
        else:
            found = tuple(map(configured, await self._exchangers.of_hop(hop)))
        if len(self._hosts) >= HOSTS_LIMIT:
            self._hosts.clear()
        self._hosts[group.domain, group.hop] = (now + HOSTS_SECONDS, found)
        return found


class _Walk:
    """What became of the hosts that were tried: the last answer, and a line for each of them."""

    def __init__(self) -> None:
        self.connects = 0
        self.connected: socket.socket | None = None  # of a race that was won
        self._last: tuple[Hop, Answer, Fault | None] | None = None
        self._index = 0  # of the last one's line
        self.dialogue: tuple[str, ...] = ()  # with the last one
        self._passed: list[str] = []

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The hosts with what was wrong, PASSED_LIMIT at most."""
        return tuple(self._passed[:PASSED_LIMIT])

    def pass_over(self, hop: Hop, answer: Answer, fault: Fault | None = None) -> None:
        """Note a host that does not take the mail now."""
        self._last, self._index = (hop, answer, fault), len(self._passed)
        self.dialogue = ()
        self._tell(hop, answer)

    def remember(self, hop: Hop, answer: Answer, fault: Fault | None) -> None:
        """Note a host that was known not to answer: what is found out now says more."""
        self._last = self._last or (hop, answer, fault)
        self._tell(hop, answer)

    def _tell(self, hop: Hop, answer: Answer) -> None:
        place = f"{hop.host} [{hop.address}]" if hop.address else hop.host
        self._passed.append(f"{place}: {answer.text}"[:REASON_LIMIT])

    def outcome(self) -> Outcome:
        """Return what an attempt that nobody took the mail in comes to."""
        assert self._last is not None, "every exchanger has an address"
        hop, answer, fault = self._last
        # The last one is told by the outcome itself.
        others = [*self._passed[: self._index], *self._passed[self._index + 1 :]]
        hop = replace(hop, passed_over=tuple(others[:PASSED_LIMIT]))
        found = outcome.read_answer(answer, hop, dialogue=self.dialogue)
        return replace(found, enhanced=NOT_TRUSTED) if fault is not None and not found.code else found


@dataclass(frozen=True, slots=True)
class _Way:
    """A connection, the policy that it was opened under, and what was tried before it."""

    taken: Taken
    applied: Applied
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Answered:
    delivery: Delivery
    answer: Answer
    hop: Hop
    note: str
    dialogue: tuple[str, ...] = ()


def _dialogue(client: Client, answer: Answer, index: int) -> tuple[str, ...]:
    """Return what was said about a recipient whom the server did not take."""
    is_taken = answer.phase == "final" and answer.reply is not None and answer.reply.positive
    return () if is_taken else client.dialogue(index)


def _from(exchanger: Exchanger, chosen: Mapping[bool, Source]) -> Exchanger:
    """Return a host as it is connected to from chosen addresses, by family."""
    places = [
        replace(place, source=source.address, name=source.name)
        if (source := chosen.get(":" in place.address)) is not None
        else place
        for place in exchanger.endpoints
    ]
    return replace(exchanger, endpoints=tuple(places))


def _handover(client: Client) -> Handover:
    """RFC 3461 5.2.1, 5.2.2: who was given the parameters tells; LMTP's other end is the store itself."""
    if "DSN" in client.extensions:
        return Handover.PASSED
    return Handover.DELIVERED if client.endpoint.dialect is Dialect.LMTP else Handover.RELAYED


def _reason(way: _Way) -> str:
    """Return why the connection is as it is, in words."""
    client, fault = way.taken.client, way.taken.fault
    told = [way.applied.why] if way.applied.why else []
    told += [one.text for one in way.applied.faults if one.text not in way.applied.why]
    if fault is not None:
        told.append(f"it does not hold: {fault.text}")
    elif client.tls_version is None:
        told.append("the server offers no TLS")
    return "; ".join(told)[:REASON_LIMIT]


def _fault(taken: Taken) -> Fault | None:
    """Return what of TLS failed on a connection that is used all the same."""
    if taken.fault is None and taken.client.tls_version is None:
        return NO_STARTTLS
    return taken.fault


def _forbidden(exchanger: Exchanger) -> Hop:
    return Hop(exchanger.host, tls_policy=exchanger.applied.name, tls_reason=exchanger.applied.why)


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


def _unverified(failure: ConnectFailed) -> Answer:
    """Return what a failed handshake means: a certificate that does not hold is a refusal for good."""
    if failure.fault is None or failure.fault.type not in FINAL_FAULTS:
        return failure.answer
    text = f"the message requires TLS: {failure.answer.text}"
    return Answer("policy", Reply(550, "5.7.30", (text,)), text)


def _hop(place: Endpoint, applied: Applied) -> Hop:
    return Hop(place.host, place.address, tls_policy=applied.name, tls_reason=applied.why[:REASON_LIMIT])


def _read(answered: Sequence[_Answered], duration: int) -> Outcomes:
    return {
        one.delivery.id: outcome.read_answer(
            one.answer, one.hop, duration=duration, note=one.note, dialogue=one.dialogue
        )
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
        chunked=letter.ends_whole,
    )


def _recipient(delivery: Delivery, *, ascii_only: bool) -> Recipient:
    """RFC 6531 3.2: without SMTPUTF8 a domain can still be named by its A-labels."""
    recipient = delivery.recipient
    local, _, _ = recipient.address.rpartition("@")
    if ascii_only and not recipient.address.isascii() and local.isascii():
        return replace(recipient, address=f"{local}@{delivery.domain}")
    return recipient
