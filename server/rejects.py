"""What is refused for its sender's reputation alone: kept, out of the way, for its recipients.

Owns which refused messages are kept and for whom, the record that goes through the
journal before the refusal is sent, and the taking away of what is old or too much.
A retry is known by its Message-ID and authors, or its octets. Mail for postmaster and
abuse is not refused for reputation (RFC 5321 4.5.1, RFC 2142 4): it goes to Junk.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from server.arrival import SECOND, Arrival, Judgement, listings, trace_fields
from server.mail import trace
from server.routing import Group, Local, is_role
from server.rulebook import refusal_of
from server.turns import Turns
from storage import ids, rejects
from storage.folder_names import REJECTS
from storage.records import (
    Accepted,
    Action,
    Decision,
    Event,
    LocalTarget,
    Recipient,
    RuleTrace,
    Spooled,
)

if TYPE_CHECKING:
    from server.clock import Clock
    from server.evidence import Letter
    from server.refusal import Refusal
    from server.threads import Threads

DIGEST_OCTETS = 16
PENDING_LIMIT = 10_000
INBOXES_LIMIT = 10_000
TURN_SECONDS = 60.0
WHOLE_TURNS = 60
SPARED = RuleTrace(
    "", "message", matched=True, effect="mail for postmaster and abuse is not refused for reputation: to Junk"
)
# What a rule wants somebody to look at, or nobody to have, is not handed out by way of a refusal.
_WITHHELD = frozenset({Action.DISCARD, Action.HOLD})


@dataclass(frozen=True, slots=True)
class RejectsSettings:
    """How long refused mail is kept, 0 for not at all, and how much of it an inbox holds."""

    keep_seconds: int = 7 * 86_400
    messages: int = 500
    octets: int = 25 << 20


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is refused for reputation, and how it is kept. takers: inboxes that get it."""

    refusal: Refusal
    digest: bytes
    takers: frozenset[str]
    octets: int
    _rejects: Rejects

    def record(self, arrival: Arrival, group: Group, judgement: Judgement, results: bytes) -> Accepted:
        """Return what is journaled for one organization. results: the field of authentication results."""
        return self._rejects.record(arrival, group, judgement, digest=self.digest, results=results)

    async def settle(self, committing: Awaitable[object]) -> None:
        """Wait until it is durable; where that fails, its retry is kept like a new message."""
        self._rejects.expect(self)
        try:
            await committing
        except BaseException:
            self._rejects.forget(self)
            raise


Sorted = tuple["Refused | None", Sequence[Group], Sequence[Judgement]]


class Rejects:
    """Keeps refused mail for a process, and keeps what is kept small."""

    def __init__(self, *, threads: Threads, clock: Clock, settings: RejectsSettings, hostname: str) -> None:
        self._threads = threads
        self._clock = clock
        self._settings = settings
        self._hostname = hostname
        # Committed and not applied yet, or lately: the database knows those before.
        self._pending: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._added: dict[str, tuple[int, int]] = {}  # messages and octets since the last pruning
        self._turns = Turns("pruning of refused mail", self.turn, seconds=TURN_SECONDS)
        self._turn = 0

    async def start(self) -> None:
        """Begin to prune."""
        self._turns.start()

    async def stop(self) -> None:
        """End."""
        await self._turns.stop()

    async def sort(
        self, arrival: Arrival, groups: Sequence[Group], judgements: Sequence[Judgement]
    ) -> Sorted:
        """Return who gets a message that some judgement refuses for reputation: an inbox gets it once.

        Refused is None where it is taken after all; then the judgements quarantine it.
        """
        decision = next(one.decision for one in judgements if one.decision.reason)
        if any(is_role(recipient.address) for recipient in arrival.envelope.recipients):
            return None, groups, [_spared(judgement) for judgement in judgements]
        refusal = refusal_of(decision)
        kept: list[Group] = []
        refused: list[Judgement] = []
        digest = await self._digest(arrival, judgements[0].letter)
        takers = await self._takers(groups, judgements, digest)
        left = set(takers)
        for group, judgement in zip(groups, judgements, strict=True):
            places = []
            for recipient, local in group.local:
                if local.mailbox.id in left:
                    left.remove(local.mailbox.id)
                    places.append((recipient, local))
            if places:
                kept.append(replace(group, local=places))
                refused.append(replace(judgement, decision=decision))
        octets = judgements[0].letter.octets
        return Refused(refusal, digest, takers, octets, self), kept, refused

    async def _takers(
        self, groups: Sequence[Group], judgements: Sequence[Judgement], digest: bytes
    ) -> frozenset[str]:
        """Return the inboxes that are to have a message."""
        octets = judgements[0].letter.octets
        if not self._settings.keep_seconds or octets > self._settings.octets:
            return frozenset()
        wanted = {
            local.mailbox.id
            for group, judgement in zip(groups, judgements, strict=True)
            if judgement.decision.action not in _WITHHELD
            for _, local in group.local
            if (local.mailbox.id, digest) not in self._pending and self._has_room(local.mailbox.id, octets)
        }
        if not wanted:
            return frozenset()
        known, full = await self._threads.read(
            lambda c: (
                rejects.known(c, digest=digest, mailbox_ids=wanted),
                rejects.full(c, mailbox_ids=wanted, octets=octets),
            )
        )
        return frozenset(one for one in wanted - known - full if (one, digest) not in self._pending)

    def _has_room(self, mailbox_id: str, octets: int) -> bool:
        """Return whether an inbox has not been filled since the last pruning; asks for one where it was."""
        messages, before = self._added.get(mailbox_id, (0, 0))
        limits = self._settings
        has_room = messages < limits.messages and before + octets <= limits.octets
        has_room = has_room and (mailbox_id in self._added or len(self._added) < INBOXES_LIMIT)
        if not has_room:
            self._turns.wake()
        return has_room

    def expect(self, refused: Refused) -> None:
        """Count what is about to be committed."""
        for mailbox_id in refused.takers:
            self._pending[mailbox_id, refused.digest] = None
            if len(self._pending) > PENDING_LIMIT:
                self._pending.popitem(last=False)
            messages, before = self._added.get(mailbox_id, (0, 0))
            self._added[mailbox_id] = messages + 1, before + refused.octets

    async def _digest(self, arrival: Arrival, letter: Letter) -> bytes:
        """Return what a message and its retries have in common."""
        message_id = letter.word(b"message-id").strip()
        if message_id:
            parts = [message_id, *letter.from_addresses, arrival.envelope.reverse_path or ""]
            seen = "\0".join(parts).encode("utf-8", "replace")
        elif isinstance(arrival.content, Spooled):
            seen = arrival.content.sha256.encode("ascii")
        else:
            seen = arrival.content
        if len(seen) > 1 << 16:
            return await self._threads.compute(_digest_of, seen)
        return _digest_of(seen)

    def record(
        self, arrival: Arrival, group: Group, judgement: Judgement, *, digest: bytes, results: bytes
    ) -> Accepted:
        """Return what is journaled for one organization; Rejects is its only place."""
        now = self._clock.now()
        message_id = ids.new("msg")
        envelope = replace(arrival.envelope, recipients=tuple(group.recipients))
        return Accepted(
            message_id=message_id,
            organization_id=group.organization_id,
            accepted_at=now,
            source=arrival.source,
            peer=arrival.peer,
            envelope=envelope,
            decision=judgement.decision,
            verdicts=judgement.verdicts,
            trace=trace_fields(
                arrival, hostname=self._hostname, results=results, ruled=b"", message_id=message_id, now=now
            ),
            local=tuple(_target(arrival, *place) for place in group.local),
            remote=(),
            content=arrival.content,
            events=tuple(
                self._event(judgement, place, message_id=message_id, digest=digest, now=now)
                for place in group.local
            ),
        )

    def _event(
        self,
        judgement: Judgement,
        place: tuple[Recipient, Local],
        *,
        message_id: str,
        digest: bytes,
        now: int,
    ) -> Event:
        decision = judgement.decision
        recipient, local = place
        rules = [step.rule for step in decision.trace if step.matched]
        return Event(
            id=ids.new("evt"),
            kind=rejects.KIND,
            at=now,
            organization_id=local.mailbox.organization_id,
            message_id=message_id,
            mailbox_id=local.mailbox.id,
            data={
                "recipient": recipient.address,
                "code": decision.code,
                "enhanced": decision.enhanced,
                "text": decision.text,
                "reason": decision.reason,
                "rules": rules,
                "octets": judgement.letter.octets,
                "digest": digest.hex(),
                "kept_until": now + self._settings.keep_seconds * SECOND,
                **listings(judgement.facts),
            },
        )

    def forget(self, refused: Refused) -> None:
        """Take back what could not be committed."""
        for mailbox_id in refused.takers:
            self._pending.pop((mailbox_id, refused.digest), None)

    async def turn(self) -> None:
        """Take away what is over its time or too much; all inboxes are looked at first and every hour."""
        whole = self._turn % WHOLE_TURNS == 0
        self._turn += 1
        touched = None if whole else sorted(self._added)
        self._added.clear()
        now = self._clock.now()
        unit = partial(
            rejects.prune,
            maildir=self._threads.store.maildir,
            before=now - self._settings.keep_seconds * SECOND,
            messages=self._settings.messages,
            octets=self._settings.octets,
            at=now,
            mailbox_ids=touched,
        )
        while await self._threads.write(unit) >= rejects.PRUNE_ROWS:
            pass


def _digest_of(seen: str | bytes) -> bytes:
    octets = seen if isinstance(seen, bytes) else seen.encode("utf-8", "replace")
    return hashlib.blake2b(octets, digest_size=DIGEST_OCTETS).digest()


def _target(arrival: Arrival, recipient: Recipient, local: Local) -> LocalTarget:
    prefix = trace.return_path(arrival.envelope.reverse_path) + trace.delivered_to(recipient.address)
    return LocalTarget(
        mailbox_id=local.mailbox.id, recipient=recipient.address, folder=REJECTS, prefix=prefix
    )


def _spared(judgement: Judgement) -> Judgement:
    """Return a judgement that quarantines where it refused."""
    decision = judgement.decision
    if not decision.reason:
        return judgement
    return replace(
        judgement,
        decision=Decision(
            action=Action.QUARANTINE,
            tags=decision.tags,
            headers=decision.headers,
            trace=(*decision.trace, SPARED),
        ),
    )
