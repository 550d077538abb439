"""TLS reports as rows: sessions counted for reports to others, and reports that others sent.

Owns five tables and their limits. Counts belong to a UTC day and a recipient domain; they go
when the day's reports have gone, and after KEPT at the latest. Reports of others belong to
the organization whose domain they are about, and every question after them names it.
Parses nothing and sends nothing. RFC 8460 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from storage import ids, schema_tls
from storage.rendition import clean
from storage.report_tables import MAX_REPORT_ROWS, ReportTables
from storage.selection import insert_rows, run

MAX_ROWS = 1000  # of one domain in a period
TABLES = ReportTables(
    periods=schema_tls.tls_periods,
    counts=schema_tls.tls_counts,
    sent=schema_tls.tls_sent,
    reports=schema_tls.tls_reports,
    rows=schema_tls.tls_report_rows,
    max_rows=MAX_ROWS,
)
sent_to, note_sent = TABLES.sent_to, TABLES.note_sent
postpone, finish, prune = TABLES.postpone, TABLES.finish, TABLES.prune


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
    """Add sessions to their rows; returns how many were left out, their period having too many domains."""
    return TABLES.add(connection, counted, begin=_begin, put=_put)


def _begin(connection: Connection, one: Counted) -> None:
    """Make a domain's row of a day."""
    run(
        connection,
        "INSERT INTO tls_periods (begin_at, domain, end_at, rows, omitted, due_at) "
        "VALUES (?, ?, ?, 0, 0, ?) ON CONFLICT (begin_at, domain) DO NOTHING",
        (one.begin_at, one.domain, one.end_at, one.due_at),
    )


def _put(connection: Connection, one: Counted) -> None:
    run(
        connection,
        "INSERT INTO tls_counts (begin_at, domain, digest, policy, fault, count) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (begin_at, domain, digest) DO UPDATE SET count = tls_counts.count + excluded.count",
        (one.begin_at, one.domain, one.digest, one.policy, one.fault, one.count),
    )


def due(connection: Connection, *, at: int, limit: int) -> list[Period]:
    """Return days whose reports are due, the longest due first."""
    found = TABLES.due(connection, at=at, limit=limit)
    return [Period(row.begin_at, row.end_at, row.domain, row.omitted) for row in found]


def counts(connection: Connection, *, begin_at: int, domain: str) -> list[tuple[Any, Any, int]]:
    """Return a day's rows: policy, fault (None without one), sessions; those with most sessions first."""
    found = TABLES.counted(connection, begin_at=begin_at, domain=domain)
    return [
        (json.loads(row.policy), json.loads(row.fault) if row.fault else None, row._mapping["count"])
        for row in found
    ]


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
