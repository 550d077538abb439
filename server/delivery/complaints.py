"""Complaints that come back: feedback reports in mail from outside, matched to what was sent.

Owns the consumer of those reports: recognised at intake whatever inbox they come to, read
here, noted at the message they are about, so that rates of complaints move and no more mail
goes to who complained. A report is a stranger's word: it counts only where the report's own
sender passes a check (or none is made), names a message that did leave from here and a
recipient of it, and only once. RFC 5965, RFC 6591, RFC 6650.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.arrival import FEEDBACK
from server.events.follower import Follower, Unit
from server.mail.address import AddressSyntax, domain_of, normalise
from server.mail.address_list import parse_address_list
from server.mail.arf import Feedback, addresses, parse_feedback
from server.mail.header import Header, decode
from storage import accounts, complaints, events, ids, later, replaying
from storage.complaints import Sent
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.return_tokens import ReturnTokens
    from server.threads import Hub, Threads

CURSOR = "complaints"
MAX_MAIL_OCTETS = 2 << 20
DOMAINS_LIMIT = 10
LOOKS = 3
COMPLAINTS = frozenset({"abuse", "fraud", "virus"})
# Of the drafts before RFC 5965, and still sent: the reader wants no more, and blames nobody.
FAREWELLS = frozenset({"opt-out", "opt-out-list"})


class Complaints:
    """Reads feedback reports as they come. hostname: ours, as Received fields have it."""

    def __init__(
        self,
        *,
        threads: Threads,
        hub: Hub,
        clock: Clock,
        hostname: str,
        tokens: ReturnTokens | None = None,
    ) -> None:
        self._tokens = tokens
        self._threads = threads
        self._clock = clock
        self._hostname = hostname.lower()
        follower = Follower(name=CURSOR, kinds=(FEEDBACK,), handle=self.handle, threads=threads, hub=hub)
        self.start, self.stop, self.catch_up = follower.start, follower.stop, follower.catch_up

    async def handle(self, event: Event) -> Unit:
        """Return what is to be written for one report."""
        content = await self._content(event)
        if content is None:
            return self._told(event, "", "gone")
        found = await self._threads.compute(parse_feedback, content)
        if found is None:
            return self._told(event, "", "unreadable")
        if found.feedback_type not in COMPLAINTS | FAREWELLS:
            return self._told(event, found.feedback_type, "no_complaint")
        doubted = partial(
            complaints.is_doubted, organization_id=event.organization_id, message_id=event.message_id or ""
        )
        if await self._threads.read(doubted):
            return self._told(event, found.feedback_type, "not_authenticated")
        sent = await self._threads.read(partial(self._matched, found=found))
        if sent is None:
            return self._told(event, found.feedback_type, "no_message_of_ours")
        return partial(self._note, report=event, found=found, sent=sent)

    async def _content(self, event: Event) -> bytes | None:
        """Return the report's mail; None where it is gone, or larger than a report is."""
        assert event.message_id is not None, "intake names the message"
        for _ in range(LOOKS):
            places = await self._threads.read(partial(replaying.places_of, wanted=[event.message_id]))
            paths = [
                self._threads.store.maildir.entry_path(inbox, folder, entry)
                for inbox, _, folder, entry in places.get(event.message_id, ())[:LOOKS]
            ]
            for path in [*paths, self._threads.store.message_path(event.message_id)]:
                content = await self._threads.run(_read, path)
                if content is not None:
                    return content
        return None

    def _matched(self, connection: Connection, *, found: Feedback) -> Sent | None:
        """Return the message of ours that a report is about, of one reader where its return path tells."""
        for delivery_id in self._return_paths(found):
            for one in later.by_delivery(connection, delivery_id=delivery_id):
                return Sent(one.message_id, one.organization_id, (one.recipient,))
        returned = found.returned
        if returned is None:
            return None
        for host, message_id in returned.traces:
            sent = complaints.by_id(connection, message_id=message_id) if host == self._hostname else None
            if sent is not None:
                return sent
        if not returned.message_id:
            return None
        for domain in _domains(found)[:DOMAINS_LIMIT]:
            known = accounts.find_domain(connection, name=domain)
            if known is not None:
                sent = complaints.by_header(
                    connection,
                    organization_id=known.organization_id,
                    message_id_header=returned.message_id.strip(),
                )
                if sent is not None:
                    return sent
        return None

    def _return_paths(self, found: Feedback) -> list[str]:
        """Return the deliveries whose signed return paths a report names: nobody else can have made them."""
        if self._tokens is None:
            return []
        texts = [found.original_mail_from or ""]
        if found.returned is not None:
            texts += [decode(value) for value in Header(found.returned.header).all(b"return-path")[:3]]
        now = self._clock.now()
        named = (self._tokens.delivery(_normal(one), now=now) for one in addresses(tuple(texts)))
        return [one for one in named if one is not None]

    def _note(self, connection: Connection, *, report: Event, found: Feedback, sent: Sent) -> None:
        is_complaint = found.feedback_type in COMPLAINTS
        is_theirs = sent.organization_id == report.organization_id
        recipient = concerned(found, sent)
        data: dict[str, object] = {"recipient": recipient, "type": found.feedback_type}
        if found.user_agent:
            data["reporter"] = found.user_agent[:200]
        if is_theirs:  # what came to another organization's inbox is not this one's to see
            data["report"] = report.message_id or ""
        event = Event(
            ids.new("evt"),
            complaints.COMPLAINED if is_complaint else "message.unsubscribed",
            self._clock.now(),
            sent.organization_id,
            sent.message_id,
            data=data,
        )
        is_new = complaints.note(
            connection,
            sent,
            recipient=recipient,
            event=event,
            cause="complaint" if is_complaint else "unsubscribe",
            evidence=f"{found.feedback_type} reported by {found.user_agent or 'a feedback loop'}",
        )
        about = {"about": sent.message_id} if is_theirs else {}
        outcome = "noted" if is_new else "noted_before"
        self._told(report, found.feedback_type, outcome, **about)(connection)

    def _told(self, report: Event, kind: str, outcome: str, **more: object) -> Unit:
        """Return the writing of what became of a report, on the report's own timeline."""
        data = {"type": kind[:50], "outcome": outcome, **more}
        event = Event(
            ids.new("evt"),
            "message.feedback_read",
            self._clock.now(),
            report.organization_id,
            report.message_id,
            data=data,
        )
        return lambda connection: _append(connection, event)


def concerned(found: Feedback, sent: Sent) -> str:
    """Return who complained, as an address in normal form, '' where that is not told.

    Who is named must have got the message. Many providers name nobody: then it is clear only
    where there was one recipient.
    """
    known = {one: _normal(one) for one in sent.recipients}
    for address in addresses((*found.original_recipients, *found.removal_recipients)):
        if _normal(address) in known.values():
            return _normal(address)
    return next(iter(known.values())) if len(known) == 1 else ""


def _normal(address: str) -> str:
    try:
        return normalise(address)
    except AddressSyntax:
        return address.lower()


def _domains(found: Feedback) -> list[str]:
    """Return the domains that the message may have come from, the likeliest first."""
    author = found.returned.author if found.returned is not None and found.returned.author else ""
    named = [one for one in parse_address_list(author.encode("utf-8", "replace")) if one.domain]
    candidates = [(one.domain or b"").decode("utf-8", "replace") for one in named[:3]]
    candidates += [one.rpartition("@")[2] for one in addresses((found.original_mail_from or "",))]
    candidates += [*found.reported_domains[:5], found.dkim_domain or ""]
    domains: dict[str, None] = {}
    for one in candidates:
        try:
            domains[domain_of(f"x@{one.strip().rstrip('.')}")] = None
        except AddressSyntax:
            continue
    return list(domains)


def _append(connection: Connection, event: Event) -> None:
    events.append(connection, [event])


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MAIL_OCTETS + 1)
    except FileNotFoundError:
        return None
    return content[:MAX_MAIL_OCTETS]
