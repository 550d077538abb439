"""TLS reports as rows: sessions counted for reports to others, and reports that others sent.

Owns five tables and their limits. Counts belong to a UTC day and a recipient domain; they go
when the day's reports have gone, and after KEPT at the latest. Reports of others belong to
the organization whose domain they are about, and every question after them names it.
Parses nothing and sends nothing. RFC 8460 4.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from storage import events, ids, schema_tls
from storage.records import Event
from storage.rendition import clean
from storage.selection import insert_rows, run

SECOND = 1_000_000
DAY = 86_400 * SECOND
MAX_DOMAINS = 20_000  # of one day
MAX_ROWS = 1000  # of one domain on a day
KEPT = 7 * DAY  # counts, from the end of their day, however the sending went
SENT_KEPT = 90 * DAY
MAX_REPORTS = 5000  # of one organization's domain
MAX_REPORT_ROWS = 2000  # of one report that are kept, those with most sessions
PRUNE_ROWS = 500
CURSOR = "tls-reports"


@dataclass(frozen=True, slots=True)
class Counted:
    """Sessions of one kind on one day: policy and fault are JSON, '' where no fault; digest that of both."""

    begin_at: int
    end_at: int
    due_at: int
    domain: str
    policy: str
    fault: str
    digest: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Period:
    """What is to be reported to a domain's destinations; times in microseconds."""

    begin_at: int
    end_at: int
    domain: str
    omitted: int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Sessions of one kind in a report of others; result_type '' for those that went well."""

    policy_type: str
    policy_domain: str
    result_type: str
    sessions: int
    sending_ip: str = ""
    receiving_host: str = ""
    receiving_ip: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A report of others about one domain of an organization; rows may be left out in lists."""

    id: str
    organization_id: str
    domain: str
    reporter: str
    report_id: str
    contact: str
    begin_at: int
    end_at: int
    successes: int
    failures: int
    omitted_rows: int
    authenticated: bool
    message_id: str
    received_at: int
    rows: tuple[ReportRow, ...] = ()


def add(connection: Connection, counted: Sequence[Counted]) -> int:
    """Add sessions to their rows; returns how many were left out, their day having too many domains."""
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
    """Make a domain's row of a day; False where there are too many."""
    table = schema_tls.tls_periods
    known = select(table.c.rows).where(table.c.begin_at == one.begin_at, table.c.domain == one.domain)
    if connection.execute(known).first() is not None:
        return True
    total = select(func.count()).select_from(table).where(table.c.begin_at == one.begin_at)
    if connection.execute(total).scalar_one() >= MAX_DOMAINS:
        return False
    run(
        connection,
        "INSERT INTO tls_periods (begin_at, domain, end_at, rows, omitted, due_at) "
        "VALUES (?, ?, ?, 0, 0, ?) ON CONFLICT (begin_at, domain) DO NOTHING",
        (one.begin_at, one.domain, one.end_at, one.due_at),
    )
    return True


def _count(connection: Connection, one: Counted) -> None:
    key = (one.begin_at, one.domain, one.digest)
    text = "UPDATE tls_counts SET count = count + ? WHERE begin_at = ? AND domain = ? AND digest = ?"
    if run(connection, text, (one.count, *key)).rowcount:
        return
    text = "UPDATE tls_periods SET rows = rows + 1 WHERE begin_at = ? AND domain = ? AND rows < ?"
    if not run(connection, text, (one.begin_at, one.domain, MAX_ROWS)).rowcount:
        text = "UPDATE tls_periods SET omitted = omitted + ? WHERE begin_at = ? AND domain = ?"
        run(connection, text, (one.count, one.begin_at, one.domain))
        return
    run(
        connection,
        "INSERT INTO tls_counts (begin_at, domain, digest, policy, fault, count) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (begin_at, domain, digest) DO UPDATE SET count = tls_counts.count + excluded.count",
        (*key, one.policy, one.fault, one.count),
    )


def due(connection: Connection, *, at: int, limit: int) -> list[Period]:
    """Return days whose reports are due, the longest due first."""
    table = schema_tls.tls_periods
    query = select(table).where(table.c.due_at <= at).order_by(table.c.due_at).limit(limit)
    return [Period(row.begin_at, row.end_at, row.domain, row.omitted) for row in connection.execute(query)]


def counts(connection: Connection, *, begin_at: int, domain: str) -> list[tuple[Any, Any, int]]:
    """Return a day's rows: policy, fault (None without one), sessions; those with most sessions first."""
    table = schema_tls.tls_counts
    query = select(table).where(table.c.begin_at == begin_at, table.c.domain == domain)
    ordered = query.order_by(table.c.count.desc(), table.c.digest).limit(MAX_ROWS)
    return [
        (json.loads(row.policy), json.loads(row.fault) if row.fault else None, row._mapping["count"])
        for row in connection.execute(ordered)
    ]


def sent_to(connection: Connection, *, begin_at: int, domain: str) -> set[str]:
    """Return the destinations that a day's report went to, or will never go to."""
    table = schema_tls.tls_sent
    query = select(table.c.destination).where(table.c.begin_at == begin_at, table.c.domain == domain)
    return set(connection.execute(query).scalars())


def note_sent(
    connection: Connection, *, begin_at: int, domain: str, destination: str, state: str, event: Event
) -> None:
    """Write down how it ended for a destination, with the event that says so."""
    made = run(
        connection,
        "INSERT INTO tls_sent (begin_at, domain, destination, state, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (begin_at, domain, destination) DO NOTHING",
        (begin_at, domain, destination, state, event.at),
    )
    if made.rowcount:
        events.append(connection, [event])


def postpone(connection: Connection, *, begin_at: int, domain: str, due_at: int) -> None:
    """Look at a day again later."""
    text = "UPDATE tls_periods SET due_at = ? WHERE begin_at = ? AND domain = ?"
    run(connection, text, (due_at, begin_at, domain))


def finish(connection: Connection, *, begin_at: int, domain: str) -> None:
    """Forget what was counted for a domain on a day."""
    for table in ("tls_counts", "tls_periods"):
        text = f"DELETE FROM {table} WHERE begin_at = ? AND domain = ?"  # noqa: S608 - names of our own schema
        run(connection, text, (begin_at, domain))


def keep(connection: Connection, report: Report) -> bool:
    """Insert a report with its rows; False where it is known already. The oldest beyond MAX_REPORTS go."""
    columns = (
        "id, organization_id, domain, reporter, report_id, contact, begin_at, end_at, successes, failures, "
        "omitted_rows, authenticated, message_id, received_at"
    )
    chosen = sorted(report.rows, key=lambda row: row.sessions, reverse=True)[:MAX_REPORT_ROWS]
    values = (
        report.id, report.organization_id, clean(report.domain), clean(report.reporter),
        clean(report.report_id), clean(report.contact), report.begin_at, report.end_at, report.successes,
        report.failures, report.omitted_rows + len(report.rows) - len(chosen), int(report.authenticated),
        report.message_id, report.received_at,
    )  # fmt: skip
    marks = ", ".join("?" * len(values))
    text = (
        f"INSERT INTO tls_reports ({columns}) VALUES ({marks}) "  # noqa: S608 - names and marks only
        "ON CONFLICT (organization_id, domain, reporter, report_id) DO NOTHING"
    )
    if not run(connection, text, values).rowcount:
        return False
    insert_rows(
        connection,
        "tls_report_rows",
        "report_id, position, policy_type, policy_domain, result_type, sessions, sending_ip, receiving_host, "
        "receiving_ip, reason",
        [
            (
                report.id, position, clean(row.policy_type), clean(row.policy_domain), clean(row.result_type),
                row.sessions, clean(row.sending_ip), clean(row.receiving_host), clean(row.receiving_ip),
                clean(row.reason),
            )
            for position, row in enumerate(chosen)
        ],
    )  # fmt: skip
    _limit(connection, report.organization_id, report.domain)
    return True


def _limit(connection: Connection, organization_id: str, domain: str) -> None:
    table = schema_tls.tls_reports
    query = select(table.c.id).where(table.c.organization_id == organization_id, table.c.domain == domain)
    old = query.order_by(table.c.received_at.desc(), table.c.id.desc()).offset(MAX_REPORTS).limit(PRUNE_ROWS)
    _delete(connection, connection.execute(old).scalars().all())


def _delete(connection: Connection, report_ids: Collection[str]) -> None:
    for one in report_ids:
        run(connection, "DELETE FROM tls_report_rows WHERE report_id = ?", (one,))
        run(connection, "DELETE FROM tls_reports WHERE id = ?", (one,))


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
    table = schema_tls.tls_reports
    query = select(table).where(table.c.organization_id == organization_id)
    if domain is not None:
        query = query.where(table.c.domain == domain)
    if before:
        query = query.where(table.c.id < before)
    return [
        _report(row, _rows(connection, row.id, with_rows) if with_rows else ())
        for row in connection.execute(query.order_by(table.c.id.desc()).limit(limit)).all()
    ]


def results(
    connection: Connection, *, organization_id: str, domain: str, since: int, limit: int
) -> list[dict[str, object]]:
    """Return how sessions to a tenant's domain went since a time, by result and host, most first."""
    table, rows = schema_tls.tls_reports, schema_tls.tls_report_rows
    total = func.sum(rows.c.sessions)
    query = (
        select(rows.c.policy_type, rows.c.result_type, rows.c.receiving_host, total.label("sessions"))
        .join_from(rows, table, rows.c.report_id == table.c.id)
        .where(table.c.organization_id == organization_id, table.c.domain == domain, table.c.end_at >= since)
        .group_by(rows.c.policy_type, rows.c.result_type, rows.c.receiving_host)
        .order_by(total.desc(), rows.c.policy_type, rows.c.result_type, rows.c.receiving_host)
        .limit(limit)
    )
    return [
        {
            "policy": row.policy_type,
            "result": row.result_type or "success",
            "host": row.receiving_host,
            "sessions": int(row.sessions),
        }
        for row in connection.execute(query)
    ]


def _rows(connection: Connection, report_id: str, limit: int) -> tuple[ReportRow, ...]:
    table = schema_tls.tls_report_rows
    query = select(table).where(table.c.report_id == report_id).order_by(table.c.position).limit(limit)
    return tuple(
        ReportRow(
            row.policy_type, row.policy_domain, row.result_type, row.sessions, row.sending_ip,
            row.receiving_host, row.receiving_ip, row.reason,
        )
        for row in connection.execute(query)
    )  # fmt: skip


def _report(row: Any, rows: tuple[ReportRow, ...]) -> Report:
    return Report(
        row.id, row.organization_id, row.domain, row.reporter, row.report_id, row.contact, row.begin_at,
        row.end_at, row.successes, row.failures, row.omitted_rows, bool(row.authenticated), row.message_id,
        row.received_at, rows,
    )  # fmt: skip


def new_id() -> str:
    """Return a fresh report's id."""
    return ids.new("tlr")


def prune(connection: Connection, *, at: int, reports_kept: int) -> bool:
    """Take away what is too old, PRUNE_ROWS of a kind at most; whether there may be more."""
    periods, sent, table = schema_tls.tls_periods, schema_tls.tls_sent, schema_tls.tls_reports
    old = select(periods.c.begin_at, periods.c.domain).where(periods.c.end_at < at - KEPT)
    gone = connection.execute(old.limit(PRUNE_ROWS)).all()
    for row in gone:
        finish(connection, begin_at=row.begin_at, domain=row.domain)
    told = select(sent).where(sent.c.at < at - SENT_KEPT).limit(PRUNE_ROWS)
    for row in connection.execute(told).all():
        text = "DELETE FROM tls_sent WHERE begin_at = ? AND domain = ? AND destination = ?"
        run(connection, text, (row.begin_at, row.domain, row.destination))
    aged = select(table.c.id).where(table.c.received_at < at - reports_kept).limit(PRUNE_ROWS)
    aged_ids = connection.execute(aged).scalars().all()
    _delete(connection, aged_ids)
    return PRUNE_ROWS in (len(gone), len(aged_ids))
