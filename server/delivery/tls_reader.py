"""TLS reports of others: recognised in the mail for report addresses, read, and kept.

Owns the reading and whose report it is: that of the organization which has the domain that
the mail says it is about, or the domains of its policies. Takes what anybody may send: a
report is a stranger's word, and whether its mail passed DMARC is kept beside it.
RFC 8460 4, 5.3 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from server.delivery.report_mail import (
    ReportMail,
    Unit,
    Unreadable,
    find_owner,
    is_authenticated,
    telling,
)
from server.mail.header import fields, split
from server.mail.report_file import TLS, find_report
from server.mail.tls_report import (
    MAX_PACKED_OCTETS,
    PolicyResult,
    ReportSyntax,
    TlsReport,
    parse_report,
    totals,
)
from storage import events, ids, tls_reports
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Hub, Threads
    from storage.maildir import Maildir

REPORT_LOCAL_PART = "tls-reports"
LOCAL_PARTS = (REPORT_LOCAL_PART, "postmaster")
MAX_MAIL_OCTETS = 2 * MAX_PACKED_OCTETS
MAX_NAMES = 50
SECOND = 1_000_000


class TlsReader:
    """Reads reports as they come, from start to stop. address: the configured one, '' without."""

    def __init__(
        self, *, threads: Threads, hub: Hub, maildir: Maildir, clock: Clock, address: str = ""
    ) -> None:
        self._threads = threads
        self._clock = clock
        own = [address.partition("@")[0]] if address else []
        self._mail = ReportMail(
            threads=threads,
            hub=hub,
            maildir=maildir,
            clock=clock,
            kind="tls",
            cursor=tls_reports.CURSOR,
            local_parts=tuple(dict.fromkeys((*own, *LOCAL_PARTS))),
            max_octets=MAX_MAIL_OCTETS,
            read=self._read,
        )
        self.start, self.stop, self.catch_up = self._mail.start, self._mail.stop, self._mail.catch_up

    async def _read(self, event: Event, content: bytes) -> Sequence[Unit]:
        """Return what keeps the report in a placed message, or tells that nobody here is meant."""
        try:
            found = await self._threads.compute(parse_mail, content)
        except ReportSyntax as error:
            raise Unreadable(str(error)) from None
        if found is None:
            return []
        report, about = found
        kept = await self._threads.read(partial(self._assigned, event=event, report=report, about=about))
        if kept is not None:
            return [partial(self._keep, report=kept)]
        text = f"{next(_names(report, about), '')[:253]!a} is no domain of this appliance"
        return [telling(self._mail.event(event, "tls.report_ignored", {"text": text}))]

    def _keep(self, connection: Connection, report: tls_reports.Report) -> None:
        if tls_reports.keep(connection, report):
            events.append(connection, [self._received(report)])

    def _assigned(
        self, connection: Connection, *, event: Event, report: TlsReport, about: str
    ) -> tls_reports.Report | None:
        """Return a report as rows of the organization that it is about, None where that is nobody here."""
        for name in _names(report, about):
            owner = find_owner(connection, name)
            if owner is not None:
                return self._kept(connection, event, report, owner)
        return None

    def _kept(
        self, connection: Connection, event: Event, report: TlsReport, owner: tuple[str, str]
    ) -> tls_reports.Report:
        organization_id, domain = owner
        successes, failures = totals(report.policies)
        return tls_reports.Report(
            id=tls_reports.new_id(),
            organization_id=organization_id,
            domain=domain,
            reporter=report.organization_name or report.contact_info,
            report_id=report.report_id,
            contact=report.contact_info,
            begin_at=report.begin * SECOND,
            end_at=report.end * SECOND,
            successes=min(successes, _MOST),
            failures=min(failures, _MOST),
            omitted_rows=0,
            authenticated=is_authenticated(connection, event),
            # What came to another organization's inbox is not this one's to see.
            message_id=(event.message_id or "") if organization_id == event.organization_id else "",
            received_at=self._clock.now(),
            rows=tuple(row for policy in report.policies for row in _rows(policy)),
        )

    def _received(self, report: tls_reports.Report) -> Event:
        return Event(
            id=ids.new("evt"),
            kind="tls.report_received",
            at=self._clock.now(),
            organization_id=report.organization_id,
            message_id=report.message_id or None,
            data={
                "report": report.id,
                "domain": report.domain,
                "reporter": report.reporter,
                "sessions": report.successes + report.failures,
                "failed": report.failures,
            },
        )


_MOST = (1 << 63) - 1


def parse_mail(content: bytes) -> tuple[TlsReport, str] | None:
    """Return the report in a mail and the domain that the mail says it is about; None without one.

    Raises ReportSyntax for what looks like a report and is none.
    """
    octets = find_report(content, limit_octets=MAX_PACKED_OCTETS, form=TLS)
    if octets is None:
        return None
    header = fields(content[: split(content)])
    told = [one.value for one in header if one.name.lower() == b"tls-report-domain"]
    about = told[0].decode("ascii", "replace").rstrip(".").lower() if len(told) == 1 else ""
    return parse_report(octets), about


def _names(report: TlsReport, about: str) -> Iterator[str]:
    """Yield the names that say whose report it is, the best first."""
    if about:
        yield about
    for policy in report.policies[:MAX_NAMES]:
        if policy.domain:
            yield policy.domain


def _rows(policy: PolicyResult) -> Iterator[tls_reports.ReportRow]:
    kind = policy.type
    if policy.successes:
        yield tls_reports.ReportRow(kind, policy.domain, "", policy.successes)
    for one in policy.details:
        yield tls_reports.ReportRow(
            policy_type=kind,
            policy_domain=policy.domain,
            result_type=one.result_type,
            sessions=one.count,
            sending_ip=one.sending_mta_ip,
            receiving_host=one.receiving_mx_hostname or one.receiving_mx_helo,
            receiving_ip=one.receiving_ip,
            reason=one.failure_reason_code or one.additional_information,
        )
