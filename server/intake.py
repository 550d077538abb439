"""The one intake: every message enters here, whatever its door.

Owns the steps verify, decide, complete, commit; what a session asks before content
is the door's, what changes in a message is editing's. Refuses by raising Refusal;
a return from `accept` is the promise that the message is on stable storage.
RFC 5321 (transaction), 6409 (submission), 8601 (results), 3461 (DSN parameters).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from server import completion, evidence
from server.apiece import Apiece
from server.arrival import (
    FROM_OUTSIDE,
    STAGES_OF,
    Arrival,
    IntakeSettings,
    Judgement,
    Notice,
    Receipt,
    accepted_event,
    appended,
    confirmations,
    feedback,
    is_checked,
    remote_target,
    trace_fields,
)
from server.door import Door, no_room
from server.editing import Editing
from server.mail import header, trace
from server.mail.address import domain_of
from server.refusal import Refusal
from server.routing import Group, Local, sort
from server.rulebook import UNRULED, merge, refuse
from server.scan_facts import begin_scans
from server.sender_auth import received_spf
from server.sender_auth.arc_seal import status_of
from server.sender_auth.results import forged
from server.senders import Senders
from server.steering import QUEUED, Steering
from storage import accounts, ids
from storage.codec import content_octets
from storage.errors import Conflict, Full
from storage.records import (
    Accepted,
    Action,
    LocalTarget,
    Recipient,
    Source,
    Spooled,
    Verdict,
)

if TYPE_CHECKING:
    from server.client_facts import ClientFacts
    from server.clock import Clock
    from server.correspondents import Correspondents
    from server.fresh import Fresh
    from server.notices_in import NoticeReader
    from server.rejects import Refused, Rejects
    from server.routing import Routing
    from server.rulebook import Rulebook
    from server.scanners.scanning import Scanning, Scans
    from server.sender_auth.dmarc_counts import DmarcCounts
    from server.sender_auth.signer import Signer
    from server.sender_auth.verify import Verifier
    from server.standing import Standing
    from server.threads import Threads
    from server.unsubscribe import Unsubscribe
    from storage.spool import SpoolWriter


FROM_SENDERS = frozenset({Source.SUBMISSION, Source.API})
# RFC 8601 5: fields of results that bear our name are ours alone.
NAMES_NOBODY_HERE = FROM_OUTSIDE | FROM_SENDERS
SIGNED = frozenset({Source.SUBMISSION, Source.API, Source.NOTICE})


class Intake(Door):
    """A door that also takes messages in: judges them and commits what is accepted.

    fresh: sent messages in memory for their first attempt, None where another process delivers.
    """

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
        correspondents: Correspondents | None = None,
        rejects: Rejects | None = None,
        dmarc_counts: DmarcCounts | None = None,
        scanning: Scanning | None = None,
        client_facts: ClientFacts | None = None,
        fresh: Fresh | None = None,
        notices: NoticeReader | None = None,
        unsubscribing: Unsubscribe | None = None,
    ) -> None:
        senders = Senders(threads, routing)
        super().__init__(
            threads=threads,
            routing=routing,
            rulebook=rulebook,
            senders=senders,
            standing=standing,
            client_facts=client_facts,
            own_name=settings.hostname,
        )
        self._clock = clock
        self._settings = settings
        self._verifier = verifier
        self._signer = signer
        self._correspondents = correspondents
        self._rejects = rejects
        self._dmarc_counts = dmarc_counts
        self._scanning = scanning
        self.fresh = fresh
        self._notices = notices
        self._unsubscribing = unsubscribing
        self._editing = Editing(threads, senders, clock, settings.hostname)
        self._steering = Steering(routing)

    def spool(self) -> SpoolWriter:
        """Return a writer for content too large for memory."""
        return self._threads.store.spool()

    async def accept(self, arrival: Arrival, *, wait_applied: bool = False) -> Receipt:
        """Take a message in; returns when it is durable, or applied where that is asked.

        Raises Refusal: by policy, for a sender that does not own its From, when the
        disk is full (452 4.3.1) or nothing can be committed (451 4.3.0). Spooled content
        is intake's from here on, and gone where nothing was committed.
        """
        files = [arrival.content] if isinstance(arrival.content, Spooled) else []
        if arrival.message_id and await self._is_known(arrival.message_id):
            await self._editing.give_up(files)
            return Receipt((arrival.message_id,))
        if arrival.append is not None:
            made = appended(arrival, arrival.append, now=self._clock.now())
            return await self._commit([made], wait_applied=wait_applied)
        try:
            records, refused = await self._judge(arrival, files)
        except Exception:
            await self._editing.give_up(files)
            raise
        if refused is not None:
            if records:
                await refused.settle(self._commit(records, wait_applied=False))
            else:
                await self._editing.give_up(files)
            raise refused.refusal
        receipt = await self._commit(records, wait_applied=wait_applied)
        if self._dmarc_counts is not None:
            actions = [record.decision.action for record in records]
            self._dmarc_counts.note(arrival.peer, arrival.envelope, records[0].verdicts, actions)
        return receipt

    def _count_refused(self, arrival: Arrival, verdicts: Sequence[Verdict], refusal: Refusal) -> None:
        if self._dmarc_counts is not None and not refusal.temporary:
            self._dmarc_counts.note(arrival.peer, arrival.envelope, verdicts, None)

    async def accept_each(self, arrival: Arrival) -> tuple[Receipt | Refusal, ...]:
        """Take a message in for as many recipients as can be; returns an answer for each, in order."""
        apiece = Apiece(self.accept, self._routing, self._threads)
        if self._correspondents is not None:
            apiece = replace(apiece, is_apart=self._correspondents.sets_apart)
        return await apiece.accept(arrival)

    async def _judge(self, arrival: Arrival, files: list[Spooled]) -> tuple[list[Accepted], Refused | None]:
        """Return a record for each organization, and what is refused for its reputation.

        files: the spool files that the message now lies in.
        """
        letter = await self._editing.read(arrival.content)
        if self._client_facts is not None and is_checked(arrival):
            peer = await self._client_facts.introduced(arrival.peer)
            if peer is not arrival.peer:
                arrival = replace(arrival, peer=peer)
        if self._scanning is None:
            return await self._judge_read(arrival, letter, files, None)
        scans = await begin_scans(self._scanning, self._rulebook, arrival, letter)
        try:
            return await self._judge_read(arrival, letter, files, scans)
        finally:
            await scans.end()

    async def _judge_read(
        self, arrival: Arrival, letter: evidence.Letter, files: list[Spooled], scans: Scans | None
    ) -> tuple[list[Accepted], Refused | None]:
        """The same of a message whose header is read and whose scans have begun."""
        if arrival.source is Source.LOCAL and letter.received_count >= self._settings.max_received:
            # RFC 5321 6.3: forwards that lead back to each other pass no door that counts.
            raise Refusal(554, "5.4.6", "Too many Received fields: mail loop")
        if arrival.source in FROM_SENDERS:
            arrival, letter = await self._editing.complete(arrival, letter, files)
        elif arrival.source is Source.NOTICE and not letter.has(b"auto-submitted"):
            # RFC 3834 5: so that nobody's program answers what this one says.
            arrival, letter = await self._editing.rewrite(
                arrival, letter, files, added=b"Auto-Submitted: auto-generated\r\n", select=lambda _head: []
            )
        verdicts = await self._verify(arrival)
        if verdicts and self._client_facts is not None:
            verdicts += await self._client_facts.verdicts(arrival.peer)
        if arrival.source in NAMES_NOBODY_HERE and letter.has(b"authentication-results"):
            hostname = self._settings.hostname
            arrival, letter = await self._editing.rewrite(
                arrival, letter, files, select=lambda head: forged(head, hostname)
            )
        if arrival.source in FROM_OUTSIDE and letter.has(b"return-path"):
            arrival, letter = await self._editing.rewrite(
                arrival, letter, files, select=completion.return_paths
            )
        groups: Sequence[Group] = await self._group(arrival)
        notice = None
        if arrival.envelope.reverse_path is None and self._notices is not None:
            notice = await self._notices.look(arrival, {group.organization_id for group in groups})
        try:
            judgements: Sequence[Judgement]
            judgements = [
                await self._decide(arrival, group, letter, verdicts, scans, notice=notice) for group in groups
            ]
        except Refusal as refusal:
            self._count_refused(arrival, verdicts, refusal)
            raise
        refused: Refused | None = None
        if self._rejects is not None and any(one.decision.reason for one in judgements):
            refused, groups, judgements = await self._rejects.sort(arrival, groups, judgements)
            if refused is not None:
                self._count_refused(arrival, verdicts, refused.refusal)
        records: list[Accepted] = []
        for group, judgement in zip(groups, judgements, strict=True):
            if refused is None:
                record = await self._record(arrival, group, judgement)
            else:
                record = refused.record(arrival, group, judgement, self._results(arrival, judgement))
            if records and isinstance(record.content, Spooled):
                # The store lets a file go with the record that names it: each has its own.
                record = replace(record, content=await self._editing.duplicate(record.content, files))
            records.append(record)
        if not self._threads.store.has_room(sum(map(_octets_to_write, records))):
            raise no_room()
        return records, refused

    async def _is_known(self, message_id: str) -> bool:
        return await self._threads.read(lambda c: accounts.message_exists(c, message_id=message_id))

    async def _verify(self, arrival: Arrival) -> tuple[Verdict, ...]:
        if self._verifier is None or not is_checked(arrival):
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
        self,
        arrival: Arrival,
        group: Group,
        letter: evidence.Letter,
        verdicts: tuple[Verdict, ...],
        scans: Scans | None,
        *,
        notice: Notice | None = None,
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
            places=group.local,
            scans=scans,
            own_name=self._own_name,
        )
        facts = evidence.Facts(case)
        if notice is not None:
            facts.update(is_dsn=True, dsn_proved=bool(notice.proof))
        if self._correspondents is not None:
            await self._correspondents.look(facts, [local.mailbox.id for _, local in group.local])
        decision = UNRULED
        for stage in STAGES_OF[arrival.source]:
            if self._rulebook.asks(stage):
                decision = merge(decision, await self.ruled(stage, facts))
                if decision.pause and identity is not None and self._standing is not None:
                    await self._standing.pause(identity, decision)
                if decision.reason and self._rejects is not None and arrival.source in FROM_OUTSIDE:
                    break  # the others' rules may have better reasons
                refuse(decision)
        if arrival.source in FROM_SENDERS and self._standing is not None:
            self._standing.record(facts)
        return Judgement(letter, verdicts, facts, decision, scans, notice)

    async def _place(
        self, arrival: Arrival, judgement: Judgement, recipient: Recipient, local: Local
    ) -> LocalTarget | None:
        """Return the place of one local recipient, by the rules asked for each; None: it gets nothing."""
        decision = judgement.decision
        known = self._correspondents
        if self._rulebook.asks("deliver") and not (known and known.spares(local.mailbox.id)):
            facts = evidence.of_placement(judgement.facts, recipient.address, local.mailbox.id)
            if known is not None:
                await known.look(facts, (local.mailbox.id,))
            decision = merge(decision, await self.ruled("deliver", facts))
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
        if decision.require_tls:
            envelope = replace(envelope, tls_only=True)
        if decision.ask_in_doubt:
            envelope = replace(envelope, ask_in_doubt=True)
        events = arrival.events + feedback(
            arrival, judgement.letter, group.organization_id, message_id=message_id, now=now
        )
        if judgement.notice is not None:
            owner = group.organization_id
            events += (judgement.notice.event(organization_id=owner, message_id=message_id, at=now),)
        if decision is not UNRULED:
            events += await self._steering.steer(arrival, group, decision, message_id=message_id, now=now)
        ruled = b""
        if decision.headers:
            ruled = b"".join(header.fold(name, header.encode(value)) for name, value in decision.headers)
        if self._unsubscribing is not None:
            ruled += self._unsubscribing.fields(arrival, judgement.letter, message_id=message_id)
        signature = await self._sign(arrival, group, judgement.letter, ruled, now)
        fields = signature + trace_fields(
            arrival,
            hostname=self._settings.hostname,
            results=self._results(arrival, judgement),
            ruled=ruled,
            message_id=message_id,
            now=now,
        )
        if group.remote and arrival.source in FROM_OUTSIDE:
            fields = await self._seal(arrival, group, judgement, fields, now) + fields
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
            verdicts=judgement.all_verdicts,
            trace=fields,
            local=tuple(local),
            remote=tuple(
                remote_target(arrival, decision, *pair, settings=self._settings, now=now)
                for pair in group.remote
            ),
            content=arrival.content,
            events=(
                *events,
                accepted_event(
                    arrival, group, judgement, message_id=message_id, now=now, is_signed=bool(signature)
                ),
                *confirmations(arrival, group, message_id=message_id, now=now),
            ),
            idempotency_key=arrival.idempotency_key,
        )

    def _results(self, arrival: Arrival, judgement: Judgement) -> bytes:
        if self._verifier is None or not is_checked(arrival):
            return b""
        found = self._verifier.results_field(judgement.verdicts)
        if self._settings.received_spf:
            found = received_spf.field(self._settings.hostname, arrival.peer, judgement.verdicts) + found
        return found

    async def _sign(
        self, arrival: Arrival, group: Group, letter: evidence.Letter, ruled: bytes, now: int
    ) -> bytes:
        """Return the DKIM-Signature fields over a sent message, b'' where its domain has no key."""
        if arrival.source not in SIGNED or not letter.from_addresses:
            return b""
        return await self._signer.sign(
            domain=domain_of(letter.from_addresses[0]),
            organization_id=group.organization_id,
            added=ruled,
            content=arrival.content,
            at=now,
        )

    async def _seal(
        self, arrival: Arrival, group: Group, judgement: Judgement, fields: bytes, now: int
    ) -> bytes:
        """Return the ARC set of a message that goes on to other servers; b'' where nothing was checked."""
        if self._verifier is None or "@" not in group.recipients[0].address:
            return b""
        return await self._signer.seal(
            domain=domain_of(group.recipients[0].address),
            organization_id=group.organization_id,
            authserv_id=self._settings.hostname,
            status=status_of(judgement.verdicts),
            added=fields,
            content=arrival.content,
            at=now,
        )

    async def _commit(self, records: Sequence[Accepted], *, wait_applied: bool) -> Receipt:
        """Commit all of a message's records in one batch; all of them stand before the 250."""
        message_ids = tuple(record.message_id for record in records)
        if self.fresh is not None:
            self.fresh.put(records)
        try:
            if not wait_applied:
                if len(records) == 1:
                    await self._threads.accept(records[0])
                else:
                    await asyncio.gather(*(self._threads.accept(record) for record in records))
                return Receipt(message_ids)
            placed = await asyncio.gather(*(self._threads.accept_applied(record) for record in records))
        except Full as error:
            raise no_room() from error
        except Conflict:
            # The message id was given and is there already: its first arrival stands.
            return Receipt(message_ids)
        return Receipt(message_ids, tuple(place for places in placed for place in places))


def _octets_to_write(record: Accepted) -> int:
    """Return what apply will write: a file for each inbox and one for the queue."""
    return content_octets(record.content) * (len(record.local) + bool(record.remote))


def _sender_organization(arrival: Arrival) -> str:
    assert arrival.identity is not None, "queued mail names its organization"
    return arrival.identity.organization_id
