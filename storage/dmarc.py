"""DMARC aggregate reports as rows: counts for reports to others, and reports that others sent.

Owns the five tables and their limits. Counts belong to a period of time and the domain
where the policy lies; they go when the period's reports have gone, and after KEPT
at the latest. Reports of others belong to the organization whose domain they are about, and
every question after them names it. Parses nothing and sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from storage import ids, schema, schema_dmarc
from storage.records import Event
from storage.rendition import clean
from storage.report_tables import MAX_REPORT_ROWS, ReportTables
from storage.selection import insert_rows, run

CURSOR = "dmarc-reports"
MAX_ROWS = 5000  # of one domain in a period
TABLES = ReportTables(
    periods=schema_dmarc.dmarc_periods,
    counts=schema_dmarc.dmarc_counts,
    sent=schema_dmarc.dmarc_sent,
    reports=schema_dmarc.dmarc_reports,
    rows=schema_dmarc.dmarc_report_rows,
    max_rows=MAX_ROWS,
)
sent_to, note_sent = TABLES.sent_to, TABLES.note_sent
postpone, finish, prune = TABLES.postpone, TABLES.finish, TABLES.prune


@dataclass(frozen=True, slots=True)
class Counted:
    """Messages of one kind in one period: policy and facts are JSON, digest that of source and facts."""

    begin_at: int
    end_at: int
    due_at: int
    domain: str
    policy: str
    digest: bytes
    source_ip: str
    facts: str
    count: int


@dataclass(frozen=True, slots=True)
class Period:
    """What is to be reported to a domain's destinations; times in microseconds."""

    begin_at: int
    end_at: int
    domain: str
    policy: Mapping[str, Any]
    omitted: int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One row of a report of others; detail is JSON-able."""

    source_ip: str
    count: int
    disposition: str
    dkim: str
    spf: str
    header_from: str
    envelope_from: str
    detail: Mapping[str, object]

    @property
    def passed(self) -> bool:
        """Whether one aligned identifier passed."""
        return "pass" in (self.dkim, self.spf)


@dataclass(frozen=True, slots=True)
class Report:
    """A report of others about one domain of an organization; rows may be left out in lists."""

    id: str
    organization_id: str
    domain: str
    policy_domain: str
    reporter: str
    report_id: str
    email: str
    begin_at: int
    end_at: int
    policy: Mapping[str, Any]
    messages: int
    passed: int
    omitted_rows: int
    authenticated: bool
    message_id: str
    received_at: int
    rows: tuple[ReportRow, ...] = ()


def add(connection: Connection, counted: Sequence[Counted]) -> int:
    """Add messages to their rows; returns how many were left out, their period having too many domains."""
    return TABLES.add(connection, counted, begin=_begin, put=_put)


def _begin(connection: Connection, one: Counted) -> None:
    """Make a domain's row of a period, or renew the policy in it."""
    run(
        connection,
        "INSERT INTO dmarc_periods (begin_at, domain, end_at, policy, rows, omitted, due_at) "
        "VALUES (?, ?, ?, ?, 0, 0, ?) ON CONFLICT (begin_at, domain) DO UPDATE SET policy = excluded.policy",
        (one.begin_at, one.domain, one.end_at, one.policy, one.due_at),
    )


def _put(connection: Connection, one: Counted) -> None:
    run(
        connection,
        "INSERT INTO dmarc_counts (begin_at, domain, digest, source_ip, facts, count) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (begin_at, domain, digest) "
        "DO UPDATE SET count = dmarc_counts.count + excluded.count",
        (one.begin_at, one.domain, one.digest, one.source_ip, one.facts, one.count),
    )


def due(connection: Connection, *, at: int, limit: int) -> list[Period]:
    """Return periods whose reports are due, the longest due first."""
    return [
        Period(row.begin_at, row.end_at, row.domain, json.loads(row.policy), row.omitted)
        for row in TABLES.due(connection, at=at, limit=limit)
    ]


def counts(connection: Connection, *, begin_at: int, domain: str) -> list[tuple[str, dict[str, Any], int]]:
    """Return a period's rows: source address, facts, messages; those with most messages first."""
    found = TABLES.counted(connection, begin_at=begin_at, domain=domain)
    return [(row.source_ip, json.loads(row.facts), row._mapping["count"]) for row in found]


def received(connection: Connection, *, after: int, local_parts: Iterable[str], limit: int) -> list[Event]:
    """Return events of messages placed for these local parts of any domain, above a seq, in order."""
    table = schema.events
    named = [
        func.lower(table.c.data).contains(f'"recipient":"{one}@', autoescape=True) for one in local_parts
    ]
    matching = named[0]
    for one in named[1:]:
        matching = matching | one
    query = select(table).where(table.c.seq > after, table.c.kind == "message.received", matching)
    return [
        Event(
            row.id, row.kind, row.at, row.organization_id, row.message_id, row.mailbox_id, None,
            json.loads(row.data), row.seq,
        )
        for row in connection.execute(query.order_by(table.c.seq).limit(limit))
    ]  # fmt: skip


def newest_seq(connection: Connection) -> int:
    """Return the seq of the newest event, 0 without any."""
    return connection.execute(select(func.max(schema.events.c.seq))).scalar() or 0


def keep(connection: Connection, report: Report) -> bool:
    """Insert a report with its rows; False where it is known already. The oldest beyond MAX_REPORTS go."""
    columns = (
        "id, organization_id, domain, policy_domain, reporter, report_id, email, begin_at, end_at, policy, "
        "messages, passed, omitted_rows, authenticated, message_id, received_at"
    )
    chosen = sorted(report.rows, key=lambda row: row.count, reverse=True)[:MAX_REPORT_ROWS]
    values = (
        report.id, report.organization_id, clean(report.domain), clean(report.policy_domain),
        clean(report.reporter), clean(report.report_id), clean(report.email), report.begin_at, report.end_at,
        json.dumps(dict(report.policy)), report.messages, report.passed, len(report.rows) - len(chosen),
        int(report.authenticated), report.message_id, report.received_at,
    )  # fmt: skip
    marks = ", ".join("?" * len(values))
    text = (
        f"INSERT INTO dmarc_reports ({columns}) VALUES ({marks}) "  # noqa: S608 - names and marks only
        "ON CONFLICT (organization_id, domain, reporter, report_id) DO NOTHING"
    )
    if not run(connection, text, values).rowcount:
        return False
    insert_rows(
        connection,
        "dmarc_report_rows",
        "report_id, position, source_ip, count, disposition, dkim, spf, header_from, envelope_from, detail",
        [
            (
                report.id, position, row.source_ip, row.count, row.disposition, row.dkim, row.spf,
                clean(row.header_from), clean(row.envelope_from), json.dumps(dict(row.detail)),
            )
            for position, row in enumerate(chosen)
        ],
    )  # fmt: skip
    TABLES.limit(connection, organization_id=report.organization_id, domain=report.domain)
    return True


def reports(
    connection: Connection,
    *,
    organization_id: str,
    domain: str | None = None,
    before: str = "",
    limit: int,
    with_rows: int = 0,
) -> list[Report]:
    """Return a tenant's reports, the newest first, below an id; with_rows: how many rows of each."""
    found = TABLES.page(
        connection, organization_id=organization_id, domain=domain, before=before, limit=limit
    )
    return [_report(row, _rows(connection, row.id, with_rows) if with_rows else ()) for row in found]


def newest(connection: Connection, *, limit: int, with_rows: int) -> list[Report]:
    """Return the newest reports of all organizations: for the operator's console."""
    table = schema_dmarc.dmarc_reports
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    return [_report(row, _rows(connection, row.id, with_rows)) for row in connection.execute(query).all()]


def sources(
    connection: Connection, *, organization_id: str, domain: str, since: int, limit: int
) -> list[dict[str, object]]:
    """Return who sent as a tenant's domain since a time: address, messages, how many passed, most first."""
    table, rows = schema_dmarc.dmarc_reports, schema_dmarc.dmarc_report_rows
    total = func.sum(rows.c.count)
    query = (
        select(rows.c.source_ip, rows.c.disposition, rows.c.dkim, rows.c.spf, total.label("messages"))
        .join_from(rows, table, rows.c.report_id == table.c.id)
        .where(table.c.organization_id == organization_id, table.c.domain == domain, table.c.end_at >= since)
        .group_by(rows.c.source_ip, rows.c.disposition, rows.c.dkim, rows.c.spf)
        .order_by(total.desc(), rows.c.source_ip)
        .limit(limit)
    )
    return [
        {
            "source_ip": row.source_ip,
            "messages": int(row.messages),
            "disposition": row.disposition,
            "dkim": row.dkim,
            "spf": row.spf,
            "dmarc": "pass" if "pass" in (row.dkim, row.spf) else "fail",
        }
        for row in connection.execute(query)
    ]


def _rows(connection: Connection, report_id: str, limit: int) -> tuple[ReportRow, ...]:
    table = schema_dmarc.dmarc_report_rows
    query = select(table).where(table.c.report_id == report_id).order_by(table.c.position).limit(limit)
    return tuple(
        ReportRow(
            row.source_ip, row._mapping["count"], row.disposition, row.dkim, row.spf, row.header_from,
            row.envelope_from, json.loads(row.detail),
        )
        for row in connection.execute(query)
    )  # fmt: skip


def _report(row: Any, rows: tuple[ReportRow, ...]) -> Report:
    return Report(
        row.id, row.organization_id, row.domain, row.policy_domain, row.reporter, row.report_id, row.email,
        row.begin_at, row.end_at, json.loads(row.policy), row.messages, row.passed, row.omitted_rows,
        bool(row.authenticated), row.message_id, row.received_at, rows,
    )  # fmt: skip


def new_id() -> str:
    """Return a fresh report's id."""
    return ids.new("dmr")
