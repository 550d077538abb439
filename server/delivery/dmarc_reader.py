"""Aggregate reports of others: recognised in the mail for report addresses, read, and kept.

Owns the reading and whose report it is: that of the organization which has the reported
domain, or the domains in its rows. Takes what anybody may send: a report is a stranger's
word, and whether its mail passed DMARC is kept beside it. RFC 9990 3, 8.1 and 8.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
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
from server.mail.dmarc_report import (
    MAX_PACKED_OCTETS,
    AggregateReport,
    Record,
    ReportSyntax,
    parse_aggregate,
)
from server.mail.report_file import find_report
from server.sender_auth.dmarc_counts import REPORT_LOCAL_PART
from storage import dmarc, events, ids
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Hub, Threads
    from storage.maildir import Maildir

MAX_MAIL_OCTETS = 2 * MAX_PACKED_OCTETS
LOCAL_PARTS = (REPORT_LOCAL_PART, "postmaster")
SECOND = 1_000_000


class DmarcReader:
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
            kind="dmarc",
            cursor=dmarc.CURSOR,
            local_parts=tuple(dict.fromkeys((*own, *LOCAL_PARTS))),
            max_octets=MAX_MAIL_OCTETS,
            read=self._read,
        )
        self.start, self.stop, self.catch_up = self._mail.start, self._mail.stop, self._mail.catch_up

    async def _read(self, event: Event, content: bytes) -> Sequence[Unit]:
        """Return what keeps the reports in a placed message, or tells that nobody here is meant."""
        try:
            report = await self._threads.compute(_parsed, content)
        except ReportSyntax as error:
            raise Unreadable(str(error)) from None
        if report is None:
            return []
        kept = await self._threads.read(partial(self._assigned, event=event, report=report))
        if kept:
            return [partial(self._keep, report=one) for one in kept]
        text = f"{report.policy.domain!a} is no domain of this appliance"
        return [telling(self._mail.event(event, "dmarc.report_ignored", {"text": text}))]

    def _keep(self, connection: Connection, report: dmarc.Report) -> None:
        if dmarc.keep(connection, report):
            events.append(connection, [self._received(report)])

    def _assigned(
        self, connection: Connection, *, event: Event, report: AggregateReport
    ) -> list[dmarc.Report]:
        """Return a report as rows of the organizations that it is about."""
        owner = find_owner(connection, report.policy.domain)
        if owner is not None:
            return [self._kept(connection, event, report, owner, report.records)]
        # A policy above our domain: each organization sees the rows about its own names.
        rows: dict[tuple[str, str], list[Record]] = {}
        names = {one.header_from for one in report.records}
        owners = {name: find_owner(connection, name) for name in names}
        for one in report.records:
            found = owners[one.header_from]
            if found is not None:
                rows.setdefault(found, []).append(one)
        return [self._kept(connection, event, report, found, chosen) for found, chosen in rows.items()]

    def _kept(
        self,
        connection: Connection,
        event: Event,
        report: AggregateReport,
        owner: tuple[str, str],
        records: Iterable[Record],
    ) -> dmarc.Report:
        organization_id, domain = owner
        about, policy = report.metadata, report.policy
        chosen = tuple(records)
        is_theirs = organization_id == event.organization_id
        return dmarc.Report(
            id=dmarc.new_id(),
            organization_id=organization_id,
            domain=domain,
            policy_domain=policy.domain,
            reporter=about.org_name or about.email,
            report_id=about.report_id,
            email=about.email,
            begin_at=about.begin * SECOND,
            end_at=about.end * SECOND,
            policy=asdict(policy),
            messages=sum(one.count for one in chosen),
            passed=sum(one.count for one in chosen if one.passed),
            omitted_rows=0,
            authenticated=is_authenticated(connection, event),
            # What came to another organization's inbox is not this one's to see.
            message_id=(event.message_id or "") if is_theirs else "",
            received_at=self._clock.now(),
            rows=tuple(map(_row, chosen)),
        )

    def _received(self, report: dmarc.Report) -> Event:
        return Event(
            id=ids.new("evt"),
            kind="dmarc.report_received",
            at=self._clock.now(),
            organization_id=report.organization_id,
            message_id=report.message_id or None,
            data={
                "report": report.id,
                "domain": report.domain,
                "reporter": report.reporter,
                "messages": report.messages,
                "passed": report.passed,
            },
        )


def _parsed(content: bytes) -> AggregateReport | None:
    octets = find_report(content, limit_octets=MAX_PACKED_OCTETS)
    return None if octets is None else parse_aggregate(octets)


def _row(record: Record) -> dmarc.ReportRow:
    return dmarc.ReportRow(
        source_ip=record.source_ip,
        count=record.count,
        disposition=record.disposition,
        dkim=record.dkim,
        spf=record.spf,
        header_from=record.header_from,
        envelope_from=record.envelope_from or "",
        detail={
            "reasons": [asdict(one) for one in record.reasons],
            "dkim": [asdict(one) for one in record.dkim_results],
            "spf": [asdict(one) for one in record.spf_results],
        },
    )
