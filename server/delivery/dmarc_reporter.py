"""Aggregate reports to others: made of what was counted, sent through intake by the queue.

Owns when a period is reported, to whom, and that nobody gets one report twice: the
message id follows from period, domain and destination, and what was sent is written down.
A destination that the DNS tells nothing of for now is asked for again until the counts are
too old. Sends only as a domain of this appliance that signs. RFC 9990 3.5 and 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from server.arrival import Arrival
from server.mail.address import parse_mailbox
from server.mail.compose import Attachment, Draft, NamedAddress, compose
from server.mail.dmarc_report import (
    AggregateReport,
    DkimResult,
    Metadata,
    PolicyPublished,
    Reason,
    Record,
    SpfResult,
)
from server.mail.dmarc_writer import file_name, pack, subject, write_aggregate
from server.refusal import Refusal
from server.sender_auth.report_targets import Targets, find_targets
from storage import accounts, dmarc, ids
from storage.errors import StorageError
from storage.records import Envelope, Event, Peer, Recipient, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Resolver
    from server.intake import Intake
    from server.sections import Dmarc
    from server.threads import Threads

LOOK_SECONDS = 60.0
PAGE = 50
AT_ONCE = 10
RETRY_SECONDS = 1800
GIVE_UP = 2 * dmarc.DAY  # after a period's end
SECOND = 1_000_000
GENERATOR = "Mailagents"

log = structlog.get_logger("dmarc")


class DmarcReporter:
    """Sends what is due, from start to stop; without settings to send it only prunes."""

    def __init__(
        self,
        *,
        threads: Threads,
        intake: Intake,
        resolver: Resolver,
        clock: Clock,
        settings: Dmarc,
        hostname: str,
    ) -> None:
        self._threads = threads
        self._intake = intake
        self._resolver = resolver
        self._clock = clock
        self._settings = settings
        self._hostname = hostname
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look for what is due."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what was not sent is sent after the next start."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                await self.look()
            except (Refusal, StorageError, OSError) as error:
                log.error("DMARC reports wait, trying again", problem=str(error))
            except Exception:
                log.exception("DMARC reports wait, trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stop.wait()

    async def look(self) -> None:
        """Send every report that is due, and forget what is too old."""
        kept = self._settings.keep_days * dmarc.DAY
        while await self._threads.write(partial(dmarc.prune, at=self._clock.now(), reports_kept=kept)):
            pass
        if not self._settings.sends:
            return
        full = True
        while full:
            now = self._clock.now()
            page = await self._threads.read(partial(dmarc.due, at=now, limit=PAGE))
            full = len(page) >= PAGE
            owner = await self._sender() if page else ""
            for start in range(0, len(page), AT_ONCE):
                await self._handle(page[start : start + AT_ONCE], owner)

    async def _handle(self, periods: Sequence[dmarc.Period], owner: str) -> None:
        """Report some periods beside each other: the DNS of one must not hold up the rest."""
        ends = await asyncio.gather(*(self._try(one, owner) for one in periods), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _try(self, period: dmarc.Period, owner: str) -> None:
        """Report a period, or look at it later where that fails by an error of ours."""
        try:
            if owner and self._clock.now() >= period.end_at:
                await self._report(period, owner)
                return
        except (StorageError, OSError):
            raise
        except Exception:
            log.exception("a DMARC report is not made", domain=period.domain)
        await self._postpone(period)

    async def _sender(self) -> str:
        """Return the organization that sends, '' where its domain is not ours or signs nothing."""
        domain = self._settings.report_address.rpartition("@")[2]

        def unit(connection: Connection) -> str:
            found = accounts.find_domain(connection, name=domain)
            keys = accounts.dkim_keys(connection, domain=domain)
            return found.organization_id if found is not None and keys else ""

        owner = await self._threads.read(unit)
        if not owner:
            # RFC 9990 3.5.2: mail that brings reports must pass DMARC itself.
            log.error("no DMARC report is sent: the domain has no DKIM key here", domain=domain)
        return owner

    async def _report(self, period: dmarc.Period, owner: str) -> None:
        targets = await find_targets(
            self._resolver, domain=period.domain, rua=str(period.policy.get("rua", ""))
        )
        done = await self._threads.read(
            partial(dmarc.sent_to, begin_at=period.begin_at, domain=period.domain)
        )
        open_ = await self._send_all(period, owner, [one for one in targets.agreed if one not in done])
        for address, reason in targets.refused.items():
            await self._note(period, owner, address, "withheld", facts={"text": reason})
        await self._end(period, owner, targets, is_open=open_)

    async def _end(self, period: dmarc.Period, owner: str, targets: Targets, *, is_open: bool) -> None:
        """Forget a period that has nothing left to send, or is given up."""
        if targets.open or is_open:
            if self._clock.now() < period.end_at + GIVE_UP:
                await self._postpone(period)
                return
            for address, reason in targets.open.items():
                await self._note(period, owner, address, "failed", facts={"text": reason})
        await self._threads.write(partial(dmarc.finish, begin_at=period.begin_at, domain=period.domain))

    async def _postpone(self, period: dmarc.Period) -> None:
        later = max(self._clock.now(), period.end_at) + RETRY_SECONDS * SECOND
        await self._threads.write(
            partial(dmarc.postpone, begin_at=period.begin_at, domain=period.domain, due_at=later)
        )

    async def _send_all(self, period: dmarc.Period, owner: str, addresses: Sequence[str]) -> bool:
        """Send a period's report to each; whether some of them are to be tried again."""
        if not addresses:
            return False
        rows = await self._threads.read(partial(dmarc.counts, begin_at=period.begin_at, domain=period.domain))
        if not rows:
            return False
        report, packed = await self._threads.compute(self._made, period, rows)
        is_open = False
        for address in addresses:
            facts: dict[str, object] = {
                "rows": len(rows),
                "messages": sum(count for _, _, count in rows),
                "octets": len(packed),
            }
            try:
                message_id = await self._send(period, owner, address, report, packed)
            except Refusal as refusal:
                if refusal.temporary:
                    is_open = True
                    continue
                await self._note(period, owner, address, "failed", facts={"text": refusal.public})
            else:
                await self._note(period, owner, address, "sent", facts=facts, message_id=message_id)
        return is_open

    def _made(
        self, period: dmarc.Period, rows: Sequence[tuple[str, dict[str, Any], int]]
    ) -> tuple[AggregateReport, bytes]:
        report = make_report(
            period,
            rows,
            org_name=self._settings.organization_name or self._hostname,
            email=self._settings.report_address,
            report_id=self._key("dmr", period, "").partition("_")[2],
        )
        return report, pack(write_aggregate(report))

    def _key(self, prefix: str, period: dmarc.Period, destination: str) -> str:
        key = f"{self._hostname} {period.domain} {period.begin_at} {destination}".encode()
        return ids.derived(prefix, key, at=period.end_at)

    async def _send(
        self, period: dmarc.Period, owner: str, address: str, report: AggregateReport, packed: bytes
    ) -> str:
        """Commit the mail that brings a report; a second time for the same destination does nothing."""
        message_id = self._key("msg", period, address)
        ours = parse_mailbox(self._settings.report_address, smtputf8=False)
        unique = report.metadata.report_id
        name = file_name(report, receiver=self._hostname, unique_id=unique)
        draft = Draft(
            from_=NamedAddress(ours),
            to=(NamedAddress(parse_mailbox(address, smtputf8=True)),),
            subject=subject(report, submitter=self._hostname),
            message_id=f"{message_id}@{self._hostname}",
            at=self._clock.now(),
            text=_text(report),
            attachments=(Attachment(name, "application/gzip", packed),),
            headers=(("Auto-Submitted", "auto-generated"),),
        )
        envelope = Envelope(
            # Aligned by SPF too; RFC 3461: NEVER, so that nobody answers a report with a notice.
            reverse_path=str(ours),
            recipients=(Recipient(address, frozenset({"NEVER"})),),
            smtputf8=not address.isascii(),
        )
        await self._intake.accept(
            Arrival(
                source=Source.NOTICE,
                peer=Peer(address="", helo=self._hostname),
                envelope=envelope,
                content=await self._threads.compute(compose, draft),
                message_id=message_id,
                organization_id=owner,
            )
        )
        return message_id

    async def _note(
        self,
        period: dmarc.Period,
        owner: str,
        address: str,
        state: str,
        *,
        facts: dict[str, object],
        message_id: str | None = None,
    ) -> None:
        event = Event(
            id=ids.new("evt"),
            kind=f"dmarc.report_{state}",
            at=self._clock.now(),
            organization_id=owner,
            message_id=message_id,
            data={"domain": period.domain, "recipient": address, "begin_at": period.begin_at, **facts},
        )
        await self._threads.write(
            partial(
                dmarc.note_sent,
                begin_at=period.begin_at,
                domain=period.domain,
                destination=address,
                state=state,
                event=event,
            )
        )


def make_report(
    period: dmarc.Period,
    rows: Sequence[tuple[str, dict[str, Any], int]],
    *,
    org_name: str,
    email: str,
    report_id: str,
) -> AggregateReport:
    """Return the report of a period. rows: source address, facts as DmarcCounts wrote them, messages."""
    policy = period.policy
    errors: tuple[str, ...] = ()
    if period.omitted:
        errors = (f"{period.omitted} messages of too many different kinds are not listed",)
    return AggregateReport(
        metadata=Metadata(
            org_name=org_name,
            email=email,
            report_id=report_id,
            begin=period.begin_at // SECOND,
            end=period.end_at // SECOND - 1,
            errors=errors,
            generator=GENERATOR,
        ),
        policy=PolicyPublished(
            domain=period.domain,
            p=policy["p"],
            sp=policy["sp"],
            np=policy["np"],
            adkim=policy["adkim"],
            aspf=policy["aspf"],
            fo=policy["fo"],
            is_testing=policy["testing"],
            discovery_method="treewalk",
        ),
        records=tuple(_record(*row) for row in rows),
    )


def _record(source_ip: str, facts: dict[str, Any], count: int) -> Record:
    reason = facts["reason"]
    comment = f"sealed by {facts['forwarder']}" if facts["forwarder"] else ""
    domain, result = facts["spf_result"]
    return Record(
        source_ip=source_ip,
        count=count,
        disposition=facts["disposition"],
        dkim=facts["dkim"],
        spf=facts["spf"],
        header_from=facts["header_from"],
        envelope_from=facts["envelope_from"],
        reasons=(Reason(reason, comment),) if reason else (),
        dkim_results=tuple(DkimResult(*one) for one in facts["signatures"]),
        spf_results=(SpfResult(domain, result, "mfrom"),) if domain else (),
    )


def _text(report: AggregateReport) -> str:
    messages = sum(one.count for one in report.records)
    return (
        f"This is a DMARC aggregate report (RFC 9990) of {report.metadata.org_name}\n"
        f"about {messages} messages that came as {report.policy.domain}.\n\n"
        "It is sent because the domain's DMARC record asks for it with rua=.\n"
    )
