"""The one intake: every message enters here, whatever its door.

Owns the steps verify, decide, complete, commit, and the questions that a session
asks before content (MAIL, RCPT). Refuses by raising Refusal; a return from
`accept` is the promise that the message is on stable storage.
RFC 5321 (transaction), 6409 (submission), 8601 (results), 3461 (DSN parameters).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from server import completion, evidence
from server.mail import header, trace
from server.mail.address import domain_of
from server.mail.recoding import Unencodable
from server.refusal import Refusal
from server.routing import Group, Local, Refuse, Remote, sort
from server.rulebook import UNRULED, merge, refuse
from server.sender_auth.results import forged
from server.senders import Senders
from storage import accounts, ids
from storage.codec import content_octets
from storage.errors import Conflict, Full
from storage.queue import SUCCESS
from storage.records import (
    Accepted,
    Action,
    Decision,
    Envelope,
    Event,
    LocalTarget,
    Peer,
    Placed,
    Recipient,
    RemoteTarget,
    Source,
    Spooled,
    Verdict,
)

if TYPE_CHECKING:
    from server.clock import Clock
    from server.login import Identity
    from server.routing import Routing
    from server.rulebook import Rulebook
    from server.sender_auth.signer import Signer
    from server.sender_auth.verify import Verifier
    from server.standing import Standing
    from server.threads import Threads
    from storage.spool import SpoolWriter

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger("intake")

SECOND = 1_000_000
NOBODY = Peer("")
FROM_OUTSIDE = frozenset({Source.MX, Source.LMTP})
FROM_SENDERS = frozenset({Source.SUBMISSION, Source.API})
SIGNED = frozenset({Source.SUBMISSION, Source.API, Source.NOTICE})
QUEUED = frozenset({Source.SUBMISSION, Source.API, Source.NOTICE})
# The policy stages that judge whole messages; what the appliance says itself is not judged.
STAGES_OF: Mapping[Source, tuple[str, ...]] = {
    Source.MX: ("message",),
    Source.LMTP: ("message",),
    Source.LOCAL: ("message",),
    Source.FORWARD: ("message",),
    Source.SUBMISSION: ("submit",),
    Source.API: ("submit", "send"),
    Source.NOTICE: (),
    Source.APPEND: (),
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message at the door: complete content, envelope and who brought it.

    content has CRLF line ends only and no NUL, unless the envelope says BINARYMIME.
    identity: the authenticated sender.
    message_id: given by callers whose retry must not double the message.
    append: the place that IMAP APPEND asks for; then nothing is judged.
    keep: a copy for the sender's own folder, with the flags given there.
    """

    source: Source
    peer: Peer
    envelope: Envelope
    content: bytes | Spooled
    identity: Identity | None = None
    message_id: str | None = None
    organization_id: str | None = None
    append: LocalTarget | None = None
    keep: LocalTarget | None = None
    events: tuple[Event, ...] = ()
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was accepted: one message id per organization; placed only where it was waited for."""

    message_ids: tuple[str, ...]
    placed: tuple[Placed, ...] = ()


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """What intake needs of the configuration; times in seconds."""

    hostname: str
    expiry_api_seconds: int
    expiry_submission_seconds: int
    max_received: int = 100


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found out about a message for one organization, and the decision on it."""

    letter: evidence.Letter
    verdicts: tuple[Verdict, ...]
    facts: evidence.Facts
    decision: Decision


class Intake:
    """Judges sessions and messages and commits what is accepted."""

    def __init__(
        self,
        *,
        threads: Threads,
        routing: Routing,
        rulebook: Rulebook,
        clock: Clock,
        settings: IntakeSettings,
        verifier: Verifier | None,
        signer: Signer,
        standing: Standing | None = None,
    ) -> None:
        self._threads = threads
        self._routing = routing
        self._rulebook = rulebook
        self._clock = clock
        self._settings = settings
        self._verifier = verifier
        self._signer = signer
        self._senders = Senders(threads, routing)
        self._standing = standing

    def spool(self) -> SpoolWriter:
        """Return a writer for content too large for memory."""
        return self._threads.store.spool()

    async def connected(self, peer: Peer) -> None:
        """Judge a new connection; raises Refusal."""
        if self._rulebook.asks("connect"):
            refuse(await self._ruled("connect", evidence.Facts(evidence.Case(peer))))

    async def helo(self, peer: Peer) -> None:
        """Judge the EHLO or HELO argument; raises Refusal."""
        if self._rulebook.asks("helo"):
            refuse(await self._ruled("helo", evidence.Facts(evidence.Case(peer))))

    async def sender(
        self,
        peer: Peer,
        identity: Identity | None,
        envelope: Envelope,
        declared_octets: int | None,
    ) -> None:
        """Judge MAIL FROM; raises Refusal: 452 4.3.1 where the disk's reserve is reached."""
        if not self._threads.store.has_room(declared_octets or 0):
            raise _no_room()
        if identity is not None and envelope.reverse_path is not None:
            await self._senders.require(identity, envelope.reverse_path, "envelope sender")
        if self._rulebook.asks("mail"):
            case = evidence.Case(
                peer, identity, envelope, _source(identity), declared_octets=declared_octets or 0
            )
            refuse(await self._ruled("mail", evidence.Facts(case)))

    async def recipient(
        self,
        peer: Peer,
        identity: Identity | None,
        envelope: Envelope,
        recipient: Recipient,
    ) -> None:
        """Judge RCPT TO; raises Refusal: no relay, no such mailbox, over quota, policy."""
        resolution = await self._routing.resolve(recipient.address)
        if isinstance(resolution, Refuse):
            raise resolution.refusal()
        if isinstance(resolution, Remote) and identity is None:
            raise Refusal(550, "5.7.1", "Relaying denied")
        if isinstance(resolution, Local):
            await self._require_quota(resolution)
        if self._rulebook.asks("rcpt"):
            case = evidence.Case(
                peer,
                identity,
                envelope,
                _source(identity),
                recipient=recipient.address,
                recipient_count=len(envelope.recipients) + 1,
            )
            refuse(await self._ruled("rcpt", evidence.Facts(case)))

    async def _ruled(self, stage: str, facts: evidence.Facts) -> Decision:
        """Return a stage's decision, with what its rules want to know ahead."""
        wanted = self._rulebook.wanted(stage, facts)
        if wanted and self._standing is not None:
            # A session begins its steps outside a task; looking has a deadline, which needs one.
            await asyncio.sleep(0)
            await self._standing.look(wanted, facts)
        return self._rulebook.decide(stage, facts)

    async def accept(self, arrival: Arrival, *, wait_applied: bool = False) -> Receipt:
        """Take a message in; returns when it is durable, or applied where that is asked.

        Raises Refusal: by policy, for a sender that does not own its From, when the
        disk is full (452 4.3.1) or nothing can be committed (451 4.3.0). Spooled content
        is intake's from here on, and gone where nothing was committed.
        """
        files = [arrival.content] if isinstance(arrival.content, Spooled) else []
        if arrival.message_id and await self._is_known(arrival.message_id):
            await self._give_up(files)
            return Receipt((arrival.message_id,))
        if arrival.append is not None:
            return await self._commit([self._appended(arrival, arrival.append)], wait_applied=wait_applied)
        try:
            records = await self._judge(arrival, files)
        except Exception:
            await self._give_up(files)
            raise
        return await self._commit(records, wait_applied=wait_applied)

    async def _judge(self, arrival: Arrival, files: list[Spooled]) -> list[Accepted]:
        """Return a record for each organization; files: the spool files that the message now lies in."""
        letter = await self._read(arrival.content)
        if arrival.source is Source.LOCAL and letter.received_count >= self._settings.max_received:
            # RFC 5321 6.3: forwards that lead back to each other pass no door that counts.
            raise Refusal(554, "5.4.6", "Too many Received fields: mail loop")
        if arrival.source in FROM_SENDERS:
            arrival, letter = await self._complete(arrival, letter, files)
        verdicts = await self._verify(arrival)
        if arrival.source in FROM_OUTSIDE:
            if letter.has(b"authentication-results"):
                hostname = self._settings.hostname
                arrival, letter = await self._rewrite(
                    arrival, letter, files, select=lambda head: forged(head, hostname)
                )
            if letter.has(b"return-path"):
                arrival, letter = await self._rewrite(arrival, letter, files, select=completion.return_paths)
        groups = await self._group(arrival)
        judgements = [await self._decide(arrival, group, letter, verdicts) for group in groups]
        records: list[Accepted] = []
        for group, judgement in zip(groups, judgements, strict=True):
            record = await self._record(arrival, group, judgement)
            if records and isinstance(record.content, Spooled):
                # The store lets a file go with the record that names it: each has its own.
                record = replace(record, content=await self._duplicate(record.content, files))
            records.append(record)
        if not self._threads.store.has_room(sum(map(_octets_to_write, records))):
            raise _no_room()
        return records

    async def _duplicate(self, content: Spooled, files: list[Spooled]) -> Spooled:
        try:
            made = await self._threads.run(self._threads.store.duplicate, content)
        except Full as error:
            raise _no_room() from error
        files.append(made)
        return made

    async def _give_up(self, files: Sequence[Spooled]) -> None:
        for spooled in files:
            await self._threads.run(self._threads.store.discard, spooled)

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

    async def _is_known(self, message_id: str) -> bool:
        return await self._threads.read(lambda c: accounts.message_exists(c, message_id=message_id))

    async def _require_quota(self, resolution: Local) -> None:
        mailbox = resolution.mailbox
        if mailbox.quota_octets == 0:
            return
        used = await self._threads.read(
            lambda c: accounts.used_octets(c, organization_id=mailbox.organization_id, mailbox_id=mailbox.id)
        )
        if used >= mailbox.quota_octets:
            raise Refusal(452, "4.2.2", "Mailbox full")

    async def _complete(
        self, arrival: Arrival, letter: evidence.Letter, files: list[Spooled]
    ) -> tuple[Arrival, evidence.Letter]:
        """RFC 6409 8: add Date and Message-ID, take Bcc out; check who the From names."""
        if arrival.identity is not None:
            await self._senders.check(arrival.identity, letter)
        if arrival.envelope.body == "BINARYMIME":
            arrival, letter = await self._recode(arrival, files)
        message_id = arrival.message_id or ids.new("msg")
        arrival = replace(arrival, message_id=message_id)
        added = completion.missing_fields(
            letter, message_id=message_id, hostname=self._settings.hostname, at=self._clock.now()
        ) + completion.sender_field(letter, arrival.identity)
        if added or any(map(letter.has, completion.WITHHELD)):
            return await self._rewrite(arrival, letter, files, added=added, select=completion.withheld_fields)
        return arrival, letter

    async def _recode(self, arrival: Arrival, files: list[Spooled]) -> tuple[Arrival, evidence.Letter]:
        """RFC 3030 3: encode binary parts before the message is signed and sent."""
        try:
            content = await self._threads.run(completion.recoded, arrival.content, self._threads.store)
        except Unencodable as error:
            raise Refusal(554, "5.6.3", f"The message is binary and cannot be converted: {error}") from None
        except Full as error:
            raise _no_room() from error
        if isinstance(content, Spooled):
            files[:] = [content]
        arrival = replace(arrival, content=content, envelope=replace(arrival.envelope, body="8BITMIME"))
        return arrival, await self._read(content)

    async def _rewrite(
        self,
        arrival: Arrival,
        letter: evidence.Letter,
        files: list[Spooled],
        *,
        select: Callable[[bytes], list[bytes]],
        added: bytes = b"",
    ) -> tuple[Arrival, evidence.Letter]:
        """Put fields on top of a message and take those out that select finds in its header."""
        run = self._threads.run if isinstance(arrival.content, Spooled) else _at_once
        store = self._threads.store
        head = await run(completion.head_of, arrival.content, letter.header_octets, store)
        unwanted = select(head)
        if not unwanted and not added:
            return arrival, letter
        try:
            content = await run(
                completion.rewrite,
                arrival.content,
                added=added,
                unwanted=unwanted,
                header_octets=letter.header_octets,
                store=store,
            )
        except Full as error:
            raise _no_room() from error
        if isinstance(content, Spooled):
            files[:] = [content]
        return replace(arrival, content=content), await self._read(content)

    async def _read(self, content: bytes | Spooled) -> evidence.Letter:
        if isinstance(content, bytes):
            return evidence.read(content, self._threads.store)
        return await self._threads.run(evidence.read, content, self._threads.store)

    async def _verify(self, arrival: Arrival) -> tuple[Verdict, ...]:
        if self._verifier is None or arrival.source not in FROM_OUTSIDE:
            return ()
        content = arrival.content
        if isinstance(content, Spooled):
            content_or_path = self._threads.store.read_spooled(content)
            return await self._verifier.verify(
                peer=arrival.peer, envelope=arrival.envelope, content=content_or_path
            )
        return await self._verifier.verify(peer=arrival.peer, envelope=arrival.envelope, content=content)

    async def _group(self, arrival: Arrival) -> list[Group]:
        groups: dict[str, Group] = {}
        for recipient in arrival.envelope.recipients:
            if arrival.source in QUEUED:
                # One road for all mail that is sent: the queue, whose local lane comes back here.
                owner = arrival.organization_id or _sender_organization(arrival)
                groups.setdefault(owner, Group(owner)).send(recipient, recipient.address)
                continue
            sort(groups, recipient, await self._routing.resolve(recipient.address))
        return list(groups.values())

    async def _decide(
        self, arrival: Arrival, group: Group, letter: evidence.Letter, verdicts: tuple[Verdict, ...]
    ) -> Judgement:
        identity = arrival.identity
        case = evidence.Case(
            arrival.peer,
            identity,
            arrival.envelope,
            arrival.source,
            recipient_count=len(arrival.envelope.recipients),
            letter=letter,
            verdicts=verdicts,
            organization_id=group.organization_id,
            mailbox_id=(identity.mailbox_id if identity else None) or "",
        )
        facts = evidence.Facts(case)
        decision = UNRULED
        for stage in STAGES_OF[arrival.source]:
            if self._rulebook.asks(stage):
                decision = merge(decision, await self._ruled(stage, facts))
                if decision.pause and identity is not None and self._standing is not None:
                    await self._standing.pause(identity, decision)
                refuse(decision)
        if arrival.source in FROM_SENDERS and self._standing is not None:
            self._standing.record(facts)
        return Judgement(letter, verdicts, facts, decision)

    async def _place(
        self, arrival: Arrival, judgement: Judgement, recipient: Recipient, local: Local
    ) -> LocalTarget | None:
        """Return the place of one local recipient, by the rules asked for each; None: it gets nothing."""
        decision = judgement.decision
        if self._rulebook.asks("deliver"):
            facts = evidence.of_placement(judgement.facts, recipient.address, local.mailbox.id)
            decision = merge(decision, await self._ruled("deliver", facts))
            if decision.action is Action.DISCARD:
                return None
        prefix = trace.return_path(arrival.envelope.reverse_path) + trace.delivered_to(recipient.address)
        return LocalTarget(
            mailbox_id=local.mailbox.id,
            recipient=recipient.address,
            folder="Junk" if decision.action is Action.QUARANTINE else "INBOX",
            prefix=prefix,
            keywords=decision.tags,
        )

    async def _record(self, arrival: Arrival, group: Group, judgement: Judgement) -> Accepted:
        now = self._clock.now()
        message_id = arrival.message_id or ids.new("msg")
        decision = judgement.decision
        envelope = arrival.envelope
        if len(group.recipients) != len(envelope.recipients):
            # What one organization keeps names nobody else's recipients.
            envelope = replace(envelope, recipients=tuple(group.recipients))
        events = arrival.events
        if decision is not UNRULED:
            events += await self._steer(arrival, group, decision, message_id=message_id, now=now)
        signature = await self._sign(arrival, group, judgement.letter, now)
        local: list[LocalTarget] = []
        for recipient, place in group.local:
            target = await self._place(arrival, judgement, recipient, place)
            if target is None:
                group.dropped.append(recipient)
            else:
                local.append(target)
        if arrival.keep is not None:
            local.append(arrival.keep)
        return Accepted(
            message_id=message_id,
            organization_id=group.organization_id,
            accepted_at=now,
            source=arrival.source,
            peer=arrival.peer,
            envelope=envelope,
            decision=decision,
            verdicts=judgement.verdicts,
            trace=signature + self._trace(arrival, judgement, message_id=message_id, now=now),
            local=tuple(local),
            remote=tuple(self._remote_target(arrival, decision, now, *pair) for pair in group.remote),
            content=arrival.content,
            events=(
                *events,
                _accepted_event(
                    arrival, group, judgement, message_id=message_id, now=now, is_signed=bool(signature)
                ),
                *_confirmations(arrival, group, message_id=message_id, now=now),
            ),
            idempotency_key=arrival.idempotency_key,
        )

    async def _steer(
        self, arrival: Arrival, group: Group, decision: Decision, *, message_id: str, now: int
    ) -> tuple[Event, ...]:
        """Send a group's mail where the rules say; returns the events of what could not be done."""
        if decision.action is Action.DISCARD:
            group.discard()
            return ()
        if decision.redirect is not None:
            await self._redirect(group, decision.redirect)
        lost: list[str] = []
        for address in (*decision.copies, *decision.forwards):
            if not await self._add(arrival, group, address, is_copy=address in decision.copies):
                lost.append(address)
        if decision.action is Action.HOLD and arrival.source is not Source.LOCAL:
            group.queue_all()
        if not lost:
            return ()
        owner = group.organization_id
        data: dict[str, object] = {"recipients": lost, "text": "no such inbox of this organization"}
        return (Event(ids.new("evt"), "message.copy_failed", now, owner, message_id, data=data),)

    async def _add(self, arrival: Arrival, group: Group, address: str, *, is_copy: bool) -> bool:
        """Add a recipient that policy names; False where a copy has no inbox to go to."""
        # RFC 3461 4.1: the sender knows nothing of it and is told nothing.
        recipient = Recipient(address=address, notify=frozenset({"NEVER"}))
        resolution = await self._routing.resolve(address)
        is_ours = isinstance(resolution, Local) and (
            resolution.mailbox.organization_id == group.organization_id
        )
        if is_copy and not is_ours:
            return False
        if is_ours and isinstance(resolution, Local) and arrival.source not in QUEUED:
            group.also_place(recipient, resolution)
        else:
            group.also_send(recipient)
        return True

    async def _redirect(self, group: Group, address: str) -> None:
        """Replace a group's recipients by the address that policy names."""
        recipient = Recipient(address=address)
        group.clear()
        scratch = {group.organization_id: group}
        resolution = await self._routing.resolve(address)
        if isinstance(resolution, Local) and resolution.mailbox.organization_id == group.organization_id:
            sort(scratch, recipient, resolution)
        elif isinstance(resolution, Remote):
            group.remote.append((recipient, resolution.domain))
        else:
            raise Refusal(451, "4.3.5", "Mail cannot be delivered for now", f"redirect target {address}")

    async def _sign(self, arrival: Arrival, group: Group, letter: evidence.Letter, now: int) -> bytes:
        """Return the DKIM-Signature fields over a sent message, b'' where its domain has no key."""
        if arrival.source not in SIGNED or not letter.from_addresses:
            return b""
        return await self._signer.sign(
            domain=domain_of(letter.from_addresses[0]),
            organization_id=group.organization_id,
            added=b"",
            content=arrival.content,
            at=now,
        )

    def _trace(self, arrival: Arrival, judgement: Judgement, *, message_id: str, now: int) -> bytes:
        parts: list[bytes] = []
        if arrival.source in FROM_OUTSIDE and self._verifier is not None:
            parts.append(self._verifier.results_field(judgement.verdicts))
        parts.extend(header.fold(name, header.encode(value)) for name, value in judgement.decision.headers)
        if arrival.source is not Source.NOTICE:
            parts.append(self._received(arrival, message_id, now))
        return b"".join(parts)

    def _received(self, arrival: Arrival, message_id: str, now: int) -> bytes:
        recipients = arrival.envelope.recipients
        # Who asked over HTTP is no relay of the message: its address is not the recipients' affair.
        peer = Peer("", helo=self._settings.hostname) if arrival.source is Source.API else arrival.peer
        return trace.received(
            peer,
            host=self._settings.hostname,
            protocol=_with_keyword(arrival),
            id=message_id,
            # RFC 5321 7.2: more than one recipient in the trace would tell them of each other.
            recipient=recipients[0].address if len(recipients) == 1 else None,
            at=now,
        )

    def _remote_target(
        self, arrival: Arrival, decision: Decision, now: int, recipient: Recipient, domain: str
    ) -> RemoteTarget:
        by_api = arrival.source is Source.API
        begin = arrival.envelope.hold_until or now
        seconds = self._settings.expiry_api_seconds if by_api else self._settings.expiry_submission_seconds
        return RemoteTarget(
            delivery_id=ids.new("dlv"),
            recipient=recipient,
            domain=domain,
            # What comes out of the queue was released, and is not held again.
            next_attempt_at=None if _is_held(arrival, decision) else begin,
            expires_at=begin + seconds * SECOND,
            priority=decision.priority,
        )

    def _appended(self, arrival: Arrival, target: LocalTarget) -> Accepted:
        assert arrival.organization_id is not None, "APPEND names its organization"
        return Accepted(
            message_id=arrival.message_id or ids.new("msg"),
            organization_id=arrival.organization_id,
            accepted_at=self._clock.now(),
            source=arrival.source,
            peer=arrival.peer,
            envelope=arrival.envelope,
            decision=Decision(),
            verdicts=(),
            trace=b"",
            local=(target,),
            remote=(),
            content=arrival.content,
            events=arrival.events,
        )

    async def _commit(self, records: Sequence[Accepted], *, wait_applied: bool) -> Receipt:
        """Commit all of a message's records in one batch; all of them stand before the 250."""
        message_ids = tuple(record.message_id for record in records)
        try:
            if not wait_applied:
                if len(records) == 1:
                    await self._threads.accept(records[0])
                else:
                    await asyncio.gather(*(self._threads.accept(record) for record in records))
                return Receipt(message_ids)
            placed = await asyncio.gather(*(self._threads.accept_applied(record) for record in records))
        except Full as error:
            raise _no_room() from error
        except Conflict:
            # The message id was given and is there already: its first arrival stands.
            return Receipt(message_ids)
        return Receipt(message_ids, tuple(place for places in placed for place in places))


def _is_held(arrival: Arrival, decision: Decision) -> bool:
    return decision.action is Action.HOLD and arrival.source is not Source.LOCAL


def _source(identity: Identity | None) -> Source:
    return Source.SUBMISSION if identity else Source.MX


def _octets_to_write(record: Accepted) -> int:
    """Return what apply will write: a file for each inbox and one for the queue."""
    return content_octets(record.content) * (len(record.local) + bool(record.remote))


def _no_room() -> Refusal:
    return Refusal(452, "4.3.1", "Insufficient system storage, try again later")


def _sender_organization(arrival: Arrival) -> str:
    assert arrival.identity is not None, "queued mail names its organization"
    return arrival.identity.organization_id


def _with_keyword(arrival: Arrival) -> str:
    if arrival.source is Source.API:
        return "HTTP"
    if arrival.source is Source.LOCAL:
        return "local"
    return trace.transmission(
        arrival.peer, smtputf8=arrival.envelope.smtputf8, lmtp=arrival.source is Source.LMTP
    )


async def _at_once(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what is too quick for a thread, in the form of Threads.run."""
    return function(*args, **kwargs)


def _confirmations(arrival: Arrival, group: Group, *, message_id: str, now: int) -> Iterator[Event]:
    """Yield the successes that senders asked to hear of: an inbox is the end of the way (RFC 3461 5.2.3)."""
    if arrival.envelope.reverse_path is None:
        return
    for recipient, local in group.local:
        if recipient.notify is not None and "SUCCESS" in recipient.notify:
            yield Event(
                id=ids.new("evt"),
                kind=SUCCESS,
                at=now,
                organization_id=group.organization_id,
                message_id=message_id,
                mailbox_id=local.mailbox.id,
                data={"recipient": recipient.address, "orcpt": recipient.orcpt or "", "code": 250},
            )


def _accepted_event(
    arrival: Arrival, group: Group, judgement: Judgement, *, message_id: str, now: int, is_signed: bool
) -> Event:
    data: dict[str, object] = {
        "source": arrival.source.value,
        "from": arrival.envelope.reverse_path or "",
        "recipients": len(group.local) + len(group.remote) + len(group.dropped),
        "octets": judgement.letter.octets,
        "action": judgement.decision.action.value,
    }
    if arrival.peer.address:
        data |= {
            "peer": arrival.peer.address,
            "helo": arrival.peer.helo,
            "tls": arrival.peer.tls_version or "",
        }
    if is_signed:
        data["signed"] = domain_of(judgement.letter.from_addresses[0])
    if judgement.verdicts:
        data["verdicts"] = {f"{v.method} {v.domain}".strip(): v.result for v in judgement.verdicts}
    matched = [step.rule for step in judgement.decision.trace if step.matched]
    if matched:
        data["rules"] = matched
    if arrival.envelope.hold_until is not None:
        data["hold_until"] = arrival.envelope.hold_until
    if group.dropped:
        data["dropped"] = [recipient.address for recipient in group.dropped]
    return Event(
        # One a message: a fresh id serves for both. A given one may stem from an event's id already.
        id=ids.new("evt") if arrival.message_id else ids.of("evt", message_id),
        kind="message.accepted",
        at=now,
        organization_id=group.organization_id,
        message_id=message_id,
        data=data,
    )
