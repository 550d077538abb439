"""TLS reports to others: made of what was counted, sent by mail or HTTPS.

Owns what a report says and to whom it goes. A destination that is not to be had for now is asked
again until the counts are too old; a report by mail goes out whatever the recipient's TLS is like
(`TLS-Required: No`). RFC 8460 3, 4 and 5; RFC 8689 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from server.delivery.reporter import PAGE, RETRY_SECONDS, Reporter
from server.dns import DnsFailure, DnsTemporary
from server.events.posting import UrlRefused, read_url
from server.mail.compose import Attachment
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
from server.sections_transport import TlsReports
from server.transport.tlsrpt import read_record
from storage import tls_reports
from storage.report_tables import DAY, SECOND

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.events.posting import Poster

# RFC 8460 5.4: for a day and no longer.
GIVE_UP = DAY
MAX_DETAILS = 1000
MEDIA_TYPE = "application/tlsrpt+gzip"


class TlsReporter(Reporter[tls_reports.Period, TlsReports]):
    """Sends TLS reports."""

    name = "TLS"
    kind = "tls"
    salt = "tls "
    tables = tls_reports.TABLES

    def __init__(self, *, poster: Poster, **given: Any) -> None:
        super().__init__(**given)
        self._poster = poster

    def _due(self, connection: Connection, *, at: int) -> Sequence[tls_reports.Period]:
        return tls_reports.due(connection, at=at, limit=PAGE)

    async def _report(self, period: tls_reports.Period, owner: str) -> None:
        places, is_open = await self._places(period.domain)
        done = await self._sent_to(period)
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
        await self._finish(period)

    async def _places(self, domain: str) -> tuple[tuple[str, ...], bool]:
        """Return where a domain wants its reports now, and whether that is not known."""
        try:
            answer = await self._resolver.resolve(f"_smtp._tls.{domain}", "TXT")
        except DnsTemporary:
            return (), True
        except DnsFailure:
            return (), False
        return read_record(answer.records) or (), False

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
            message_id = await self._send(period, owner, address, report, packed)
        except Refusal as refusal:
            if refusal.temporary:
                return True
            await self._tell(period, owner, place, "failed", facts={"text": refusal.public})
        else:
            await self._tell(period, owner, place, "sent", facts=facts, message_id=message_id)
        return False

    async def _post(
        self, period: tls_reports.Period, owner: str, place: str, packed: bytes, facts: dict[str, object]
    ) -> bool:
        """RFC 8460 5.4: a POST; what the other side does not take is tried again for a day."""
        try:
            target = read_url(place)
        except UrlRefused as error:
            await self._tell(period, owner, place, "failed", facts={"text": str(error)})
            return False
        headers = [
            ("Host", target.authority.encode("ascii")),
            ("User-Agent", b"mailagents"),
            ("Content-Type", MEDIA_TYPE.encode("ascii")),
        ]
        posted = await self._poster.call(target, headers, packed)
        if posted.is_taken:
            await self._tell(period, owner, place, "sent", facts=facts)
            return False
        if self._clock.now() + RETRY_SECONDS * SECOND < period.end_at + GIVE_UP:
            return True
        text = posted.text or f"the answer was {posted.status}"
        await self._tell(period, owner, place, "failed", facts={"text": text})
        return False

    async def _send(
        self, period: tls_reports.Period, owner: str, address: str, report: TlsReport, packed: bytes
    ) -> str:
        name = file_name(report, submitter=self._hostname, domain=period.domain, unique_id=report.report_id)
        return await self._mail(
            period,
            owner,
            address,
            subject=subject(report, submitter=self._hostname, domain=period.domain),
            text=_text(period, report),
            attachment=Attachment(name, MEDIA_TYPE, packed),
            headers=(
                ("TLS-Report-Domain", period.domain),
                ("TLS-Report-Submitter", self._hostname),
                ("TLS-Required", "No"),
            ),
            report_type="tlsrpt",
        )

    async def _tell(
        self,
        period: tls_reports.Period,
        owner: str,
        place: str,
        state: str,
        *,
        facts: dict[str, object],
        message_id: str | None = None,
    ) -> None:
        told = {"destination": place.removeprefix("mailto:"), **facts}
        await self._note(period, owner, place, state, facts=told, message_id=message_id)


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
