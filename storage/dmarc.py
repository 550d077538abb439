"""DMARC aggregate reports as rows: counts for reports to others, and reports that others sent.

Owns the five tables and their limits. Counts belong to a period of time and the domain
where the policy lies; they go when the period's reports have gone, and after KEPT
at the latest. Reports of others belong to the organization whose domain they are about, and
every question after them names it. Parses nothing and sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from storage import events, ids, schema, schema_dmarc
from storage.records import Event
from storage.rendition import clean
from storage.selection import insert_rows, run

SECOND = 1_000_000
DAY = 86_400 * SECOND
MAX_DOMAINS = 20_000  # of one period
MAX_ROWS = 5000  # of one domain in a period
KEPT = 7 * DAY  # counts, from the end of their period, however the sending went
SENT_KEPT = 90 * DAY
MAX_REPORTS = 5000  # of one organization's domain
MAX_REPORT_ROWS = 2000  # of one report that are kept, those with most messages
PRUNE_ROWS = 500
CURSOR = "dmarc-reports"


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
    left_out = 0
    open_periods: set[tuple[int, str]] = set()
    for one in sorted(counted, key=lambda c: (c.begin_at, c.domain, c.digest)):
        period = one.begin_at, one.domain
        if period not in open_periods:
            if not _open(connection, one):
                left_out += one.count
                continue
            open_periods.add(period)
        _count(connection, one)
    return left_out


def _open(connection: Connection, one: Counted) -> bool:
    """Make a domain's row of a period, or renew the policy in it; False where there are too many."""
    table = schema_dmarc.dmarc_periods
    known = select(table.c.rows).where(table.c.begin_at == one.begin_at, table.c.domain == one.domain)
    if connection.execute(known).first() is None:
        total = select(func.count()).select_from(table).where(table.c.begin_at == one.begin_at)
        if connection.execute(total).scalar_one() >= MAX_DOMAINS:
            return False
    run(
        connection,
        "INSERT INTO dmarc_periods (begin_at, domain, end_at, policy, rows, omitted, due_at) "
        "VALUES (?, ?, ?, ?, 0, 0, ?) ON CONFLICT (begin_at, domain) DO UPDATE SET policy = excluded.policy",
        (one.begin_at, one.domain, one.end_at, one.policy, one.due_at),
    )
    return True


def _count(connection: Connection, one: Counted) -> None:
    key = (one.begin_at, one.domain, one.digest)
    text = "UPDATE dmarc_counts SET count = count + ? WHERE begin_at = ? AND domain = ? AND digest = ?"
    if run(connection, text, (one.count, *key)).rowcount:
        return
    text = "UPDATE dmarc_periods SET rows = rows + 1 WHERE begin_at = ? AND domain = ? AND rows < ?"
    if not run(connection, text, (one.begin_at, one.domain, MAX_ROWS)).rowcount:
        text = "UPDATE dmarc_periods SET omitted = omitted + ? WHERE begin_at = ? AND domain = ?"
        run(connection, text, (one.count, one.begin_at, one.domain))
        return
    run(
        connection,
        "INSERT INTO dmarc_counts (begin_at, domain, digest, source_ip, facts, count) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (begin_at, domain, digest) "
        "DO UPDATE SET count = dmarc_counts.count + excluded.count",
        (*key, one.source_ip, one.facts, one.count),
    )


def due(connection: Connection, *, at: int, limit: int) -> list[Period]:
    """Return periods whose reports are due, the longest due first."""
    table = schema_dmarc.dmarc_periods
    query = select(table).where(table.c.due_at <= at).order_by(table.c.due_at).limit(limit)
    return [
        Period(row.begin_at, row.end_at, row.domain, json.loads(row.policy), row.omitted)
        for row in connection.execute(query)
    ]


def counts(connection: Connection, *, begin_at: int, domain: str) -> list[tuple[str, dict[str, Any], int]]:
    """Return a period's rows: source address, facts, messages; those with most messages first."""
    table = schema_dmarc.dmarc_counts
    query = select(table).where(table.c.begin_at == begin_at, table.c.domain == domain)
    ordered = query.order_by(table.c.count.desc(), table.c.digest).limit(MAX_ROWS)
    return [
        (row.source_ip, json.loads(row.facts), row._mapping["count"]) for row in connection.execute(ordered)
    ]


def sent_to(connection: Connection, *, begin_at: int, domain: str) -> set[str]:
    """Return the destinations that a period's report went to, or will never go to."""
    table = schema_dmarc.dmarc_sent
    query = select(table.c.destination).where(table.c.begin_at == begin_at, table.c.domain == domain)
    return set(connection.execute(query).scalars())


def note_sent(
    connection: Connection,
    *,
    begin_at: int,
    domain: str,
    destination: str,
    state: str,
    event: Event,
) -> None:
    """Write down how it ended for a destination, with the event that says so."""
    made = run(
        connection,
        "INSERT INTO dmarc_sent (begin_at, domain, destination, state, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (begin_at, domain, destination) DO NOTHING",
        (begin_at, domain, destination, state, event.at),
    )
    if made.rowcount:
        events.append(connection, [event])


def postpone(connection: Connection, *, begin_at: int, domain: str, due_at: int) -> None:
    """Look at a period again later."""
    text = "UPDATE dmarc_periods SET due_at = ? WHERE begin_at = ? AND domain = ?"
    run(connection, text, (due_at, begin_at, domain))


def finish(connection: Connection, *, begin_at: int, domain: str) -> None:
    """Forget what was counted for a domain in a period."""
    for table in ("dmarc_counts", "dmarc_periods"):
        text = f"DELETE FROM {table} WHERE begin_at = ? AND domain = ?"  # noqa: S608 - names of our own schema
        run(connection, text, (begin_at, domain))


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
    _limit(connection, report.organization_id, report.domain)
    return True


def _limit(connection: Connection, organization_id: str, domain: str) -> None:
    table = schema_dmarc.dmarc_reports
    query = select(table.c.id).where(table.c.organization_id == organization_id, table.c.domain == domain)
    old = query.order_by(table.c.received_at.desc(), table.c.id.desc()).offset(MAX_REPORTS).limit(PRUNE_ROWS)
    _delete(connection, connection.execute(old).scalars().all())


def _delete(connection: Connection, report_ids: Collection[str]) -> None:
    for one in report_ids:
        run(connection, "DELETE FROM dmarc_report_rows WHERE report_id = ?", (one,))
        run(connection, "DELETE FROM dmarc_reports WHERE id = ?", (one,))


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
    table = schema_dmarc.dmarc_reports
    query = select(table).where(table.c.organization_id == organization_id)
    if domain is not None:
        query = query.where(table.c.domain == domain)
    if before:
        query = query.where(table.c.id < before)
    return [
        _report(row, _rows(connection, row.id, with_rows) if with_rows else ())
        for row in connection.execute(query.order_by(table.c.id.desc()).limit(limit)).all()
    ]


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


def prune(connection: Connection, *, at: int, reports_kept: int) -> bool:
    """Take away what is too old, PRUNE_ROWS of a kind at most; whether there may be more."""
    periods, sent, table = schema_dmarc.dmarc_periods, schema_dmarc.dmarc_sent, schema_dmarc.dmarc_reports
    old = select(periods.c.begin_at, periods.c.domain).where(periods.c.end_at < at - KEPT)
    gone = connection.execute(old.limit(PRUNE_ROWS)).all()
    for row in gone:
        finish(connection, begin_at=row.begin_at, domain=row.domain)
    told = select(sent).where(sent.c.at < at - SENT_KEPT).limit(PRUNE_ROWS)
    for row in connection.execute(told).all():
        text = "DELETE FROM dmarc_sent WHERE begin_at = ? AND domain = ? AND destination = ?"
        run(connection, text, (row.begin_at, row.domain, row.destination))
    aged = select(table.c.id).where(table.c.received_at < at - reports_kept).limit(PRUNE_ROWS)
    aged_ids = connection.execute(aged).scalars().all()
    _delete(connection, aged_ids)
    return PRUNE_ROWS in (len(gone), len(aged_ids))
