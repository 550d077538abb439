"""A message at the door, and the record that it becomes.

Owns the nouns of intake (arrival, receipt, judgement) and the making of what is
journaled: trace fields, queue entries, the events of acceptance. Decides nothing,
waits for nothing and reads no clock.
RFC 5321 4.4 (trace), 3461 5.2.3 (success), 4865 (hold), 8601.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.mail import trace
from server.mail.address import domain_of
from storage import ids
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
    from server.evidence import Facts, Letter
    from server.login import Identity
    from server.routing import Group
    from server.scanners.scanning import Scans

SECOND = 1_000_000
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
WEBHOOK = "message.webhook"
FEEDBACK = "message.feedback"
NOTICE_READ = "message.notice_read"
FROM_OUTSIDE = frozenset({Source.MX, Source.LMTP})


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message at the door: complete content, envelope and who brought it.

    content has CRLF line ends only and no NUL, unless the envelope says BINARYMIME.
    identity: the authenticated sender.
    message_id: given by callers whose retry must not double the message.
    append: the place that IMAP APPEND asks for; then nothing is judged.
    keep: a copy for the sender's own folder, with the flags given there.
    recoded: whether intake has encoded content anew for its way.
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
    recoded: bool = False


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
    received_spf: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice of failure and what it proves. proof: 'return path', 'trace', 'signature', '' for nothing.

    failures: of deliveries of ours, in a form that an event can hold.
    """

    proof: str
    failures: tuple[dict[str, object], ...] = ()

    def event(self, *, organization_id: str, message_id: str, at: int) -> Event:
        """Return the event that has the notice worked through, at the notice's own message."""
        data = {"proof": self.proof or "none", "deliveries": list(self.failures)}
        return Event(ids.new("evt"), NOTICE_READ, at, organization_id, message_id, data=data)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found out about a message for one organization, and the decision on it.

    verdicts: of sender authentication. scans: what scanners were asked. notice: of a failure, as read.
    """

    letter: Letter
    verdicts: tuple[Verdict, ...]
    facts: Facts
    decision: Decision
    scans: Scans | None = None
    notice: Notice | None = None

    @property
    def all_verdicts(self) -> tuple[Verdict, ...]:
        """Of sender authentication and of the scanners that were waited for."""
        return self.verdicts if self.scans is None else self.verdicts + self.scans.verdicts


def is_checked(arrival: Arrival) -> bool:
    """Whether the sender is checked: not where a host of this house has taken the message in before."""
    return arrival.source is Source.MX or (arrival.source is Source.LMTP and bool(arrival.peer.address))


def trace_fields(
    arrival: Arrival, *, hostname: str, results: bytes, ruled: bytes, message_id: str, now: int
) -> bytes:
    """Return what is put on top of every copy: the field of results, fields by policy, Received."""
    fields = results + ruled
    return (
        fields if arrival.source is Source.NOTICE else fields + _received(arrival, hostname, message_id, now)
    )


def _received(arrival: Arrival, hostname: str, message_id: str, now: int) -> bytes:
    recipients = arrival.envelope.recipients
    # Who asked over HTTP is no relay of the message: its address is not the recipients' affair.
    peer = Peer("", helo=hostname) if arrival.source is Source.API else arrival.peer
    return trace.received(
        peer,
        host=hostname,
        protocol=_with_keyword(arrival),
        id=message_id,
        # RFC 5321 7.2: more than one recipient in the trace would tell them of each other.
        recipient=recipients[0].address if len(recipients) == 1 else None,
        at=now,
    )


def remote_target(
    arrival: Arrival,
    decision: Decision,
    recipient: Recipient,
    domain: str,
    *,
    settings: IntakeSettings,
    now: int,
) -> RemoteTarget:
    """Return the queue's entry for one recipient."""
    by_api = arrival.source is Source.API
    begin = arrival.envelope.hold_until or now
    seconds = settings.expiry_api_seconds if by_api else settings.expiry_submission_seconds
    return RemoteTarget(
        delivery_id=ids.new("dlv"),
        recipient=recipient,
        domain=domain,
        # What comes out of the queue was released, and is not held again.
        next_attempt_at=None if _is_held(arrival, decision) else begin,
        expires_at=begin + seconds * SECOND,
        priority=decision.priority,
    )


def appended(arrival: Arrival, target: LocalTarget, *, now: int) -> Accepted:
    """Return the record of a message that IMAP APPEND puts into a place."""
    assert arrival.organization_id is not None, "APPEND names its organization"
    return Accepted(
        message_id=arrival.message_id or ids.new("msg"),
        organization_id=arrival.organization_id,
        accepted_at=now,
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


def _is_held(arrival: Arrival, decision: Decision) -> bool:
    return decision.action is Action.HOLD and arrival.source is not Source.LOCAL


def _with_keyword(arrival: Arrival) -> str:
    if arrival.source is Source.API:
        return "HTTP"
    if arrival.source is Source.LOCAL:
        return "local"
    return trace.transmission(
        arrival.peer, smtputf8=arrival.envelope.smtputf8, lmtp=arrival.source is Source.LMTP
    )


def confirmations(arrival: Arrival, group: Group, *, message_id: str, now: int) -> Iterator[Event]:
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


def feedback(
    arrival: Arrival, letter: Letter, organization_id: str, *, message_id: str, now: int
) -> tuple[Event, ...]:
    """Return the event that has a feedback report read (RFC 5965 2), where one seems to come from outside."""
    if arrival.source not in FROM_OUTSIDE or "feedback-report" not in letter.word(b"content-type").lower():
        return ()
    return (Event(ids.new("evt"), FEEDBACK, now, organization_id, message_id),)


def webhook_calls(
    decision: Decision, organization_id: str, *, message_id: str, now: int
) -> tuple[Event, ...]:
    """Return the events that have a URL called once the message is applied (storage/webhooks.py)."""
    return tuple(
        Event(
            ids.new("evt"),
            WEBHOOK,
            now,
            organization_id,
            message_id,
            data={"rule": rule, "url": url, "content": content},
        )
        for rule, url, content in decision.webhooks
    )


_LISTINGS = (
    ("blocklists", "dnsbl_zones"),
    ("blocklist_score", "dnsbl_score"),
    ("allowlists", "dnswl_zones"),
    ("blocklisted_domains", "dnsbl_domains"),
)


def listings(facts: Facts) -> dict[str, object]:
    """Return which DNS lists were found to have the client or its domains, where rules asked."""
    # By get, which asks for nothing that is not known yet.
    return {name: found for name, fact in _LISTINGS if (found := facts.get(fact))}


def listed(data: Mapping[str, object]) -> dict[str, object]:
    """Return the facts about DNS lists that an event of acceptance notes."""
    found = {fact: data[name] for name, fact in _LISTINGS if name in data}
    for zones, is_listed in (("dnsbl_zones", "dnsbl_listed"), ("dnswl_zones", "dnswl_listed")):
        if zones in found:
            found[is_listed] = True
    return found


def accepted_event(
    arrival: Arrival, group: Group, judgement: Judgement, *, message_id: str, now: int, is_signed: bool
) -> Event:
    """Return the event that stands first on a message's timeline."""
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
    if arrival.recoded:
        data["recoded"] = True
    if is_signed:
        data["signed"] = domain_of(judgement.letter.from_addresses[0])
    verdicts = judgement.all_verdicts
    if verdicts:
        data["verdicts"] = {f"{v.method} {v.domain}".strip(): v.result for v in verdicts}
        viruses = [v.properties["virus"] for v in verdicts if "virus" in v.properties]
        if viruses:
            data["virus"] = viruses[0]
    matched = [step.rule for step in judgement.decision.trace if step.matched]
    if matched:
        data["rules"] = matched
    data |= listings(judgement.facts)
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
