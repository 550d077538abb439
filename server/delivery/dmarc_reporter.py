"""Aggregate reports to others: made of what was counted, sent through intake by the queue.

Owns what a report says and to whom it goes. A destination that the DNS tells nothing of for now is
asked for again until the counts are too old. RFC 9990 3.5 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from server.delivery.reporter import PAGE, Reporter
from server.mail.compose import Attachment
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
from server.sections import Dmarc
from server.sender_auth.report_targets import Targets, find_targets
from storage import dmarc
from storage.report_tables import DAY, SECOND

if TYPE_CHECKING:
    from sqlalchemy import Connection

GIVE_UP = 2 * DAY  # after a period's end
GENERATOR = "Mailagents"


class DmarcReporter(Reporter[dmarc.Period, Dmarc]):
    """Sends DMARC's aggregate reports."""

    name = "DMARC"
    kind = "dmarc"
    salt = ""
    tables = dmarc.TABLES

    def _due(self, connection: Connection, *, at: int) -> Sequence[dmarc.Period]:
        return dmarc.due(connection, at=at, limit=PAGE)

    async def _report(self, period: dmarc.Period, owner: str) -> None:
        targets = await find_targets(
            self._resolver, domain=period.domain, rua=str(period.policy.get("rua", ""))
        )
        done = await self._sent_to(period)
        is_open = await self._send_all(period, owner, [one for one in targets.agreed if one not in done])
        for address, reason in targets.refused.items():
            await self._tell(period, owner, address, "withheld", facts={"text": reason})
        await self._end(period, owner, targets, is_open=is_open)

    async def _end(self, period: dmarc.Period, owner: str, targets: Targets, *, is_open: bool) -> None:
        """Forget a period that has nothing left to send, or is given up."""
        if targets.open or is_open:
            if self._clock.now() < period.end_at + GIVE_UP:
                await self._postpone(period)
                return
            for address, reason in targets.open.items():
                await self._tell(period, owner, address, "failed", facts={"text": reason})
        await self._finish(period)

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
                await self._tell(period, owner, address, "failed", facts={"text": refusal.public})
            else:
                await self._tell(period, owner, address, "sent", facts=facts, message_id=message_id)
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

    async def _send(
        self, period: dmarc.Period, owner: str, address: str, report: AggregateReport, packed: bytes
    ) -> str:
        name = file_name(report, receiver=self._hostname, unique_id=report.metadata.report_id)
        return await self._mail(
            period,
            owner,
            address,
            subject=subject(report, submitter=self._hostname),
            text=_text(report),
            attachment=Attachment(name, "application/gzip", packed),
        )

    async def _tell(
        self,
        period: dmarc.Period,
        owner: str,
        address: str,
        state: str,
        *,
        facts: dict[str, object],
        message_id: str | None = None,
    ) -> None:
        told = {"recipient": address, **facts}
        await self._note(period, owner, address, state, facts=told, message_id=message_id)


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
