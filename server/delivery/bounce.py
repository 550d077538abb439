"""Notices to senders: what could not be delivered, or is late, as messages from the null reverse-path.

Owns the consumer of failure events with its durable cursor, and the decision of
who is told. Never answers the null reverse-path, nor a sender who asked not to
be told; senders by API read events instead. A replay makes the same message id,
so that no notice goes twice. RFC 3461 5.2, 6.2, RFC 3464, RFC 5321 4.5.5 and 6.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from server.arrival import Arrival
from server.delivery.home import derived_id
from server.delivery.ledger import discard_files
from server.mail.address import AddressSyntax
from server.mail.dsn import Action, RecipientStatus, Report, Returned, compose_dsn
from server.mail.seven_bit import has_short_lines
from server.refusal import Refusal
from storage import events as event_log
from storage import ids, notices, queue
from storage.errors import StorageError
from storage.notices import Addressed, Concerned
from storage.records import Envelope, Event, Handover, Peer, Recipient, Source

if TYPE_CHECKING:
    from server.clock import Clock
    from server.intake import Intake
    from server.threads import Hub, Threads
    from storage.db import Notice

PAGE = 500
# A sender gets the whole message back when asked for, up to here; the header beyond.
FULL_OCTETS = 1024 * 1024
HEADER_OCTETS = 256 * 1024
PAUSE_SECONDS = 0.2
LOOK_SECONDS = 60.0
TROUBLE_SECONDS = 30.0
# The cursor is moved without a notice only when it lags this much: a commit for nothing costs too.
CURSOR_LAG = 10_000
ATTEMPTS = 3

log = structlog.get_logger("bounces")


class Bouncer:
    """Tells senders about failures, from start to stop; of several processes one at a time may."""

    def __init__(self, *, threads: Threads, hub: Hub, intake: Intake, clock: Clock, hostname: str) -> None:
        self._threads = threads
        self._hub = hub
        self._intake = intake
        self._clock = clock
        self._hostname = hostname
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._seen = 0
        self._stored = 0
        self._troubles = 0

    async def start(self) -> None:
        """Go on where the last run ended."""
        self._seen = self._stored = await self._threads.read(
            lambda c: event_log.cursor(c, name=queue.NOTICE_CURSOR)
        )
        self._wake.set()
        self._unsubscribe = self._hub.subscribe("events", None, self._on_notice)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what was not told yet is told after the next start."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _on_notice(self, _notice: Notice) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.catch_up()
                self._troubles = 0
                # Under load every commit has events: look at many at once.
                await asyncio.sleep(PAUSE_SECONDS)
            except (Refusal, StorageError, OSError) as error:
                log.error("notice not sent, trying again", problem=str(error))
                await self._rest()
            except Exception:
                log.exception("notice failed, trying again")
                self._troubles += 1
                await self._rest()

    async def _rest(self) -> None:
        await asyncio.sleep(TROUBLE_SECONDS)
        self._wake.set()

    async def catch_up(self) -> None:
        """Work through all failure events there are."""
        full = True
        while full:
            page = await self._threads.read(partial(notices.page, after=self._seen, limit=PAGE))
            full = len(page.events) >= PAGE
            groups = list(_groups(page.events))
            if full and len(groups) > 1:
                groups.pop()  # its other half may be on the next page
            for group in groups:
                await self._tell(group)
            if not full:
                self._seen = page.seq
        if self._seen - self._stored >= CURSOR_LAG:
            await self._advance(self._seen, [], [])

    async def _advance(self, seq: int, told: Sequence[Event], message_ids: Sequence[str]) -> None:
        unit = partial(notices.seen, seq=seq, told=told, message_ids=message_ids)
        await discard_files(self._threads, await self._threads.write(unit))
        self._seen = self._stored = seq

    async def _tell(self, group: Sequence[Event]) -> None:
        """Send the notice of one message's failures, if anybody is to be told, and move on."""
        first = group[0]
        assert first.message_id is not None
        told: list[Event] = []
        try:
            told = await self._notify(first.message_id, group)
        except AddressSyntax as error:
            told = [self._event(first, "message.notice_failed", {"text": str(error)})]
        except Refusal as refusal:
            if refusal.temporary:
                raise
            told = [self._event(first, "message.notice_failed", {"text": refusal.public})]
        except (StorageError, OSError):
            raise
        except Exception:
            if self._troubles < ATTEMPTS:
                raise
            log.exception("notice given up", message=first.message_id)
            told = [self._event(first, "message.notice_failed", {"text": "an error in this server"})]
        await self._advance(group[-1].seq, told, [first.message_id])
        if any(event.kind == "message.notified" for event in told):
            await self._threads.run(self._tidy, _aside_files(group, told))

    def _tidy(self, names: Sequence[str]) -> None:
        """Remove what lay aside until its sender was told."""
        for name in names:
            self._threads.store.aside_path(name).unlink(missing_ok=True)

    async def _notify(self, message_id: str, group: Sequence[Event]) -> list[Event]:
        """Send what is to be told; returns the events of it, and of what policy keeps back."""
        wanted = [event.delivery_id for event in group if event.delivery_id is not None]
        about = await self._threads.read(
            partial(notices.concerned, message_id=message_id, delivery_ids=wanted)
        )
        if about is None or not may_answer(about):
            return []
        wished = [(event, status) for event in group for status in _statuses(about, event)]
        withheld = [event for event, status in wished if not self._is_allowed(about, event, status)]
        statuses = tuple(status for event, status in wished if event not in withheld)
        made = [
            self._event(event, "message.notice_withheld", {"recipient": _text(event, "recipient")})
            for event in withheld
        ]
        if not statuses:
            return made
        path, start = self._threads.store.message_path(message_id), 0
        for event in [one for one in group if one.data.get("file")][:1]:
            # No inbox took it and no queue has it: it lies aside.
            path = self._threads.store.aside_path(_text(event, "file"))
            start = int(_text(event, "prefix_octets") or 0)
        returned = returned_part(about, group)
        content, returned = await self._threads.run(_returned, path, returned, start)
        notice_id = derived_id(group[0].id)
        report = Report(
            reporting_mta=self._hostname,
            sender=f"postmaster@{self._hostname}",
            to=about.envelope.reverse_path or "",
            message_id=f"{notice_id}@{self._hostname}",
            at=self._clock.now(),
            recipients=statuses,
            content=content,
            returned=returned,
            envelope_id=about.envelope.envid,
            arrived_at=about.accepted_at,
            in_reply_to=about.message_id_header or None,
        )
        await self._send(about, notice_id, await self._threads.compute(compose_dsn, report))
        return [*made, self._event(group[0], "message.notified", {"notice": notice_id})]

    def _is_allowed(self, about: Concerned, event: Event, status: RecipientStatus) -> bool:
        return self._intake.may_notify(
            sender=about.envelope.reverse_path or "",
            recipient=status.final_recipient,
            reply_code=int(str(event.data.get("code", 0))),
            reply_status=status.status,
            notice=_occasion(event).lower(),
        )

    async def _send(self, about: Concerned, notice_id: str, content: bytes) -> None:
        reverse_path = about.envelope.reverse_path
        assert reverse_path is not None
        # RFC 3461 6.1: the notice itself asks for none; the null reverse-path says so as well.
        recipient = Recipient(reverse_path, frozenset({"NEVER"}))
        envelope = Envelope(
            reverse_path=None,
            recipients=(recipient,),
            body="7BIT" if content.isascii() else "8BITMIME",
            smtputf8=not reverse_path.isascii(),
        )
        await self._intake.accept(
            Arrival(
                source=Source.NOTICE,
                peer=Peer(address="", helo=self._hostname),
                envelope=envelope,
                content=content,
                message_id=notice_id,
                organization_id=about.organization_id,
            )
        )

    def _event(self, about: Event, kind: str, data: dict[str, object]) -> Event:
        return Event(
            id=ids.new("evt"),
            kind=kind,
            at=self._clock.now(),
            organization_id=about.organization_id,
            message_id=about.message_id,
            data={**data, "about": about.kind},
        )


_OCCASIONS = {"message.delayed": "DELAY", queue.SUCCESS: "SUCCESS"}


def _groups(found: Sequence[Event]) -> Iterator[list[Event]]:
    """Yield what one settling wrote about one message: it is always seen whole, so a replay groups alike."""
    for _, members in groupby(found, key=lambda event: (event.message_id, event.at, event.kind)):
        yield list(members)


def _aside_files(group: Sequence[Event], told: Sequence[Event] = ()) -> list[str]:
    """Return the files of a group's messages that lie aside, but for those whose notice policy withheld."""
    withheld = {_text(event, "recipient") for event in told if event.kind == "message.notice_withheld"}
    return [
        _text(event, "file")
        for event in group
        if event.data.get("file") and _text(event, "recipient") not in withheld
    ]


def may_answer(about: Concerned) -> bool:
    """Whether a message's sender gets notices at all (RFC 5321 4.5.5: never the null reverse-path)."""
    return about.envelope.reverse_path is not None and about.source is not Source.API


def returned_part(about: Concerned, group: Sequence[Event]) -> Returned:
    """Return how much of the message goes back (RFC 3461 4.3: all of it only for a failure)."""
    failed = all(event.kind in queue.FAILURES for event in group)
    # RFC 8689 5: the body of a message that had to be protected goes back to nobody. RFC 3030: nor does
    # what only a binary way can carry.
    is_protected = about.envelope.require_tls or about.envelope.tls_only
    is_whole = about.envelope.ret == "FULL" and not is_protected
    is_whole = is_whole and about.envelope.body != "BINARYMIME"
    return Returned.FULL if failed and is_whole else Returned.HDRS


def _statuses(about: Concerned, event: Event) -> Iterator[RecipientStatus]:
    known = _local(event) if event.delivery_id is None else about.deliveries.get(event.delivery_id)
    delayed = event.kind == "message.delayed"
    if known is None or not wants(known.recipient, _occasion(event)):
        return
    yield RecipientStatus(
        final_recipient=known.recipient.address,
        action=_action(event),
        status=_status(event, delayed=delayed),
        original_recipient=known.recipient.orcpt,
        remote_mta=_text(event, "host") or None,
        diagnostic=_diagnostic(event) or None,
        last_attempt_at=event.at,
        will_retry_until=known.expires_at if delayed else None,
    )


def _local(event: Event) -> Addressed:
    """Return the recipient of a message that went straight into an inbox: intake said it in the event."""
    recipient = Recipient(
        _text(event, "recipient"), frozenset({_occasion(event)}), _text(event, "orcpt") or None
    )
    return Addressed(recipient, event.at)


def _occasion(event: Event) -> str:
    return _OCCASIONS.get(event.kind, "FAILURE")


def wants(recipient: Recipient, occasion: str) -> bool:
    """Whether a recipient's NOTIFY lets the sender be told (RFC 3461 4.1); without one, it does."""
    return recipient.notify is None or occasion in recipient.notify


def _action(event: Event) -> Action:
    if event.kind == queue.SUCCESS:
        return Action.RELAYED if _is_relayed(event) else Action.DELIVERED
    return Action.DELAYED if event.kind == "message.delayed" else Action.FAILED


def _is_relayed(event: Event) -> bool:
    return event.data.get("handover") == Handover.RELAYED.value


def _text(event: Event, name: str) -> str:
    return str(event.data.get(name, ""))


def _status(event: Event, *, delayed: bool) -> str:
    enhanced = _text(event, "enhanced")
    if event.kind == queue.SUCCESS:
        # RFC 3463 3.2, X.1.9: relayed to a mailer that does not speak RFC 3461.
        return "2.1.9" if _is_relayed(event) else "2.0.0"
    if delayed or event.kind in ("message.bounced", "message.suppressed"):
        return enhanced
    # RFC 3463 3.5: X.4.7, delivery time expired.
    return "5.4.7"


def _diagnostic(event: Event) -> str:
    code = event.data.get("code")
    return " ".join(
        part for part in (str(code or ""), _text(event, "enhanced"), _text(event, "text")) if part
    )


def _returned(path: Path, returned: Returned, start: int) -> tuple[bytes, Returned]:
    """Return what the notice is made of; a file that is gone leaves the notice without its header."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(FULL_OCTETS + 1)
    except FileNotFoundError:
        return b"", Returned.HDRS
    # A message is attached as it is: what has lines that not every way carries is returned by its header.
    if returned is Returned.FULL and len(content) <= FULL_OCTETS and has_short_lines(content):
        return content, returned
    return content[:HEADER_OCTETS], Returned.HDRS
