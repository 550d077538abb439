"""TLS reports to others: made of what was counted, sent by mail or HTTPS.

Owns when a day is reported, to whom, and that nobody gets one report twice: the message id
follows from day, domain and destination, and what was sent is written down. A destination
that is not to be had for now is asked again until the counts are too old. Sends only as a
domain of this appliance that signs; a report by mail goes out whatever the recipient's TLS
is like (`TLS-Required: No`). RFC 8460 3, 4 and 5; RFC 8689 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from server.arrival import Arrival
from server.dns import DnsFailure, DnsTemporary
from server.events.posting import UrlRefused, read_url
from server.mail.address import parse_mailbox
from server.mail.compose import Attachment, Draft, NamedAddress, compose
from server.mail.tls_report import (
    FailureDetail,
    PolicyResult,
    TlsReport,
    file_name,
    pack,
    subject,
    totals,
    write_report,
)
from server.refusal import Refusal
from server.transport.tlsrpt import read_record
from storage import accounts, ids, tls_reports
from storage.errors import StorageError
from storage.records import Envelope, Event, Peer, Recipient, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Resolver
    from server.events.posting import Poster
    from server.intake import Intake
    from server.sections_transport import TlsReports
    from server.threads import Threads

LOOK_SECONDS = 60.0
PAGE = 50
AT_ONCE = 10
RETRY_SECONDS = 1800
# RFC 8460 5.4: for a day and no longer.
GIVE_UP = tls_reports.DAY
SECOND = 1_000_000
MAX_DETAILS = 1000
MEDIA_TYPE = "application/tlsrpt+gzip"

log = structlog.get_logger("transport")


class TlsReporter:
    """Sends what is due, from start to stop; without settings to send it only prunes."""

    def __init__(
        self,
        *,
        threads: Threads,
        intake: Intake,
        resolver: Resolver,
        clock: Clock,
        poster: Poster,
        settings: TlsReports,
        hostname: str,
    ) -> None:
        self._threads = threads
        self._intake = intake
        self._resolver = resolver
        self._clock = clock
        self._poster = poster
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
                log.error("TLS reports wait, trying again", problem=str(error))
            except Exception:
                log.exception("TLS reports wait, trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stop.wait()

    async def look(self) -> None:
        """Send every report that is due, and forget what is too old."""
        kept = self._settings.keep_days * tls_reports.DAY
        while await self._threads.write(partial(tls_reports.prune, at=self._clock.now(), reports_kept=kept)):
            pass
        if not self._settings.sends:
            return
        full = True
        while full:
            now = self._clock.now()
            page = await self._threads.read(partial(tls_reports.due, at=now, limit=PAGE))
            full = len(page) >= PAGE
            owner = await self._sender() if page else ""
            for start in range(0, len(page), AT_ONCE):
                await self._handle(page[start : start + AT_ONCE], owner)

    async def _handle(self, periods: Sequence[tls_reports.Period], owner: str) -> None:
        """Report some days beside each other: the DNS of one must not hold up the rest."""
        ends = await asyncio.gather(*(self._try(one, owner) for one in periods), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _try(self, period: tls_reports.Period, owner: str) -> None:
        """Report a day, or look at it later where that fails by an error of ours."""
        try:
            if owner and self._clock.now() >= period.end_at:
                await self._report(period, owner)
                return
        except (StorageError, OSError):
            raise
        except Exception:
            log.exception("a TLS report is not made", domain=period.domain)
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
            # RFC 8460 3: a report by mail carries a DKIM signature of the reporter.
            log.error("no TLS report is sent: the domain has no DKIM key here", domain=domain)
        return owner

    async def _report(self, period: tls_reports.Period, owner: str) -> None:
        places, is_open = await self._places(period.domain)
        done = await self._threads.read(
            partial(tls_reports.sent_to, begin_at=period.begin_at, domain=period.domain)
        )
        left = [one for one in places if one not in done]
        rows = await self._threads.read(
            partial(tls_reports.counts, begin_at=period.begin_at, domain=period.domain)
        )
        if left and rows:
            report, packed = await self._threads.compute(self._made, period, rows)
            for place in left:
                is_open = await self._send_to(period, owner, place, report, packed) or is_open
        if is_open and self._clock.now() < period.end_at + GIVE_UP:
            await self._postpone(period)
            return
        await self._threads.write(partial(tls_reports.finish, begin_at=period.begin_at, domain=period.domain))

    async def _places(self, domain: str) -> tuple[tuple[str, ...], bool]:
        """Return where a domain wants its reports now, and whether that is not known."""
        try:
            answer = await self._resolver.resolve(f"_smtp._tls.{domain}", "TXT")
        except DnsTemporary:
            return (), True
        except DnsFailure:
            return (), False
        return read_record(answer.records) or (), False

    async def _postpone(self, period: tls_reports.Period) -> None:
        later = max(self._clock.now(), period.end_at) + RETRY_SECONDS * SECOND
        await self._threads.write(
            partial(tls_reports.postpone, begin_at=period.begin_at, domain=period.domain, due_at=later)
        )

    def _made(
        self, period: tls_reports.Period, rows: Sequence[tuple[Any, Any, int]]
    ) -> tuple[TlsReport, bytes]:
        report = make_report(
            period,
            rows,
            organization_name=self._settings.organization_name or self._hostname,
            contact=self._settings.report_address,
            report_id=self._key("tlr", period, "").partition("_")[2],
        )
        return report, pack(write_report(report))

    def _key(self, prefix: str, period: tls_reports.Period, destination: str) -> str:
        key = f"tls {self._hostname} {period.domain} {period.begin_at} {destination}".encode()
        return ids.derived(prefix, key, at=period.end_at)

    async def _send_to(
        self, period: tls_reports.Period, owner: str, place: str, report: TlsReport, packed: bytes
    ) -> bool:
        """Send a report to one place; whether that is to be tried again."""
        good, failed = totals(report.policies)
        facts: dict[str, object] = {"sessions": good + failed, "failed": failed, "octets": len(packed)}
        if place.startswith("https:"):
            return await self._post(period, owner, place, packed, facts)
        address = place.removeprefix("mailto:")
        try:
            message_id = await self._mail(period, owner, address, report, packed)
        except Refusal as refusal:
            if refusal.temporary:
                return True
            await self._note(period, owner, place, "failed", facts={"text": refusal.public})
        else:
            await self._note(period, owner, place, "sent", facts=facts, message_id=message_id)
        return False

    async def _post(
        self, period: tls_reports.Period, owner: str, place: str, packed: bytes, facts: dict[str, object]
    ) -> bool:
        """RFC 8460 5.4: a POST; what the other side does not take is tried again for a day."""
        try:
            target = read_url(place)
        except UrlRefused as error:
            await self._note(period, owner, place, "failed", facts={"text": str(error)})
            return False
        headers = [
            ("Host", target.authority.encode("ascii")),
            ("User-Agent", b"mailagents"),
            ("Content-Type", MEDIA_TYPE.encode("ascii")),
        ]
        posted = await self._poster.call(target, headers, packed)
        if posted.is_taken:
            await self._note(period, owner, place, "sent", facts=facts)
            return False
        if self._clock.now() + RETRY_SECONDS * SECOND < period.end_at + GIVE_UP:
            return True
        text = posted.text or f"the answer was {posted.status}"
        await self._note(period, owner, place, "failed", facts={"text": text})
        return False

    async def _mail(
        self, period: tls_reports.Period, owner: str, address: str, report: TlsReport, packed: bytes
    ) -> str:
        """Commit the mail that brings a report; a second time for the same destination does nothing."""
        message_id = self._key("msg", period, address)
        ours = parse_mailbox(self._settings.report_address, smtputf8=False)
        name = file_name(report, submitter=self._hostname, domain=period.domain, unique_id=report.report_id)
        draft = Draft(
            from_=NamedAddress(ours),
            to=(NamedAddress(parse_mailbox(address, smtputf8=True)),),
            subject=subject(report, submitter=self._hostname, domain=period.domain),
            message_id=f"{message_id}@{self._hostname}",
            at=self._clock.now(),
            text=_text(period, report),
            attachments=(Attachment(name, MEDIA_TYPE, packed),),
            headers=(
                ("TLS-Report-Domain", period.domain),
                ("TLS-Report-Submitter", self._hostname),
                ("TLS-Required", "No"),
                ("Auto-Submitted", "auto-generated"),
            ),
            report_type="tlsrpt",
        )
        envelope = Envelope(
            # RFC 3461: NEVER, so that nobody answers a report with a notice.
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
        period: tls_reports.Period,
        owner: str,
        place: str,
        state: str,
        *,
        facts: Mapping[str, object],
        message_id: str | None = None,
    ) -> None:
        event = Event(
            id=ids.new("evt"),
            kind=f"tls.report_{state}",
            at=self._clock.now(),
            organization_id=owner,
            message_id=message_id,
            data={
                "domain": period.domain,
                "destination": place.removeprefix("mailto:"),
                "begin_at": period.begin_at,
                **facts,
            },
        )
        await self._threads.write(
            partial(
                tls_reports.note_sent,
                begin_at=period.begin_at,
                domain=period.domain,
                destination=place,
                state=state,
                event=event,
            )
        )


def make_report(
    period: tls_reports.Period,
    rows: Sequence[tuple[Any, Any, int]],
    *,
    organization_name: str,
    contact: str,
    report_id: str,
) -> TlsReport:
    """Return the report of a day. rows: policy and fault as TlsResults wrote them, sessions."""
    together: dict[str, tuple[Any, list[tuple[Any, int]]]] = {}
    for policy, fault, count in rows:
        together.setdefault(repr(policy), (policy, []))[1].append((fault, count))
    return TlsReport(
        organization_name=organization_name,
        contact_info=contact,
        report_id=report_id,
        begin=period.begin_at // SECOND,
        end=period.end_at // SECOND - 1,
        policies=tuple(_result(policy, counted) for policy, counted in together.values()),
    )


def _result(policy: Any, counted: Sequence[tuple[Any, int]]) -> PolicyResult:
    failures = [(fault, count) for fault, count in counted if fault is not None]
    return PolicyResult(
        type=policy["type"],
        domain=policy["domain"],
        strings=tuple(policy["lines"]),
        mx_hosts=tuple(policy["hosts"]),
        successes=sum(count for fault, count in counted if fault is None),
        failures=sum(count for _, count in failures),
        details=tuple(
            FailureDetail(
                result_type=fault["type"],
                count=count,
                sending_mta_ip=fault["source"],
                receiving_mx_hostname=fault["host"],
                receiving_ip=fault["address"],
                failure_reason_code=fault["code"] or fault["text"],
            )
            for fault, count in failures[:MAX_DETAILS]
        ),
    )


def _text(period: tls_reports.Period, report: TlsReport) -> str:
    good, failed = totals(report.policies)
    left_out = (
        f"{period.omitted} sessions of too many different kinds are not listed.\n" if period.omitted else ""
    )
    return (
        f"This is a TLS report (RFC 8460) of {report.organization_name} about mail to {period.domain}:\n"
        f"{good} sessions went well, {failed} did not.\n{left_out}\n"
        "It is sent because the domain's TLS-RPT record asks for it with rua=.\n"
    )
