"""What DMARC's and TLS' reports have in common as rows: counts by period, whom reports went to, their end.

Owns the five tables of one kind of reports and the limits that hold for both kinds. Counts belong to a
period and a domain; they go when the period's reports have gone, and after KEPT at the latest. What a
row says is the kind's own: storage/dmarc.py and storage/tls_reports.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Row, Table, func, select

from storage import events
from storage.records import Event
from storage.selection import run

SECOND = 1_000_000
DAY = 86_400 * SECOND
MAX_DOMAINS = 20_000  # of one period
KEPT = 7 * DAY  # counts, from the end of their period, however the sending went
SENT_KEPT = 90 * DAY
MAX_REPORTS = 5000  # of one organization's domain
MAX_REPORT_ROWS = 2000  # of one report that are kept, the weightiest
PRUNE_ROWS = 500


class Counted(Protocol):
    """What is counted: of which period, domain and kind, and how often."""

    @property
    def begin_at(self) -> int:
        """When the period began, in microseconds."""
        ...

    @property
    def domain(self) -> str:
        """Whom the report is for."""
        ...

    @property
    def digest(self) -> bytes:
        """The kind's name."""
        ...

    @property
    def count(self) -> int:
        """How often."""
        ...


C = TypeVar("C", bound=Counted)


@dataclass(frozen=True, slots=True)
class ReportTables:
    """The tables of one kind of reports. max_rows: of one domain in a period."""

    periods: Table
    counts: Table
    sent: Table
    reports: Table
    rows: Table
    max_rows: int

    def add(
        self,
        connection: Connection,
        counted: Sequence[C],
        *,
        begin: Callable[[Connection, C], None],
        put: Callable[[Connection, C], None],
    ) -> int:
        """Add counts to their rows; returns how many were left out, their period having too many domains.

        begin: makes or renews a period's row; put: makes the row of a new kind.
        """
        left_out = 0
        begun: set[tuple[int, str]] = set()
        for one in sorted(counted, key=lambda c: (c.begin_at, c.domain, c.digest)):
            period = one.begin_at, one.domain
            if period not in begun:
                if not self._has_room(connection, *period):
                    left_out += one.count
                    continue
                begin(connection, one)
                begun.add(period)
            self._count(connection, one, put)
        return left_out

    def _has_room(self, connection: Connection, begin_at: int, domain: str) -> bool:
        table = self.periods
        known = select(table.c.rows).where(table.c.begin_at == begin_at, table.c.domain == domain)
        if connection.execute(known).first() is not None:
            return True
        total = select(func.count()).select_from(table).where(table.c.begin_at == begin_at)
        return int(connection.execute(total).scalar_one()) < MAX_DOMAINS

    def _count(self, connection: Connection, one: C, put: Callable[[Connection, C], None]) -> None:
        key = (one.begin_at, one.domain)
        where = "WHERE begin_at = ? AND domain = ?"
        text = f"UPDATE {self.counts} SET count = count + ? {where} AND digest = ?"  # noqa: S608 - our names
        if run(connection, text, (one.count, *key, one.digest)).rowcount:
            return
        text = f"UPDATE {self.periods} SET rows = rows + 1 {where} AND rows < ?"  # noqa: S608 - our names
        if run(connection, text, (*key, self.max_rows)).rowcount:
            put(connection, one)
            return
        text = f"UPDATE {self.periods} SET omitted = omitted + ? {where}"  # noqa: S608 - our names
        run(connection, text, (one.count, *key))

    def due(self, connection: Connection, *, at: int, limit: int) -> list[Row[Any]]:
        """Return the rows of periods whose reports are due, the longest due first."""
        table = self.periods
        query = select(table).where(table.c.due_at <= at).order_by(table.c.due_at).limit(limit)
        return list(connection.execute(query))

    def counted(self, connection: Connection, *, begin_at: int, domain: str) -> list[Row[Any]]:
        """Return what was counted for a domain in a period, the most frequent first."""
        table = self.counts
        query = select(table).where(table.c.begin_at == begin_at, table.c.domain == domain)
        return list(
            connection.execute(query.order_by(table.c.count.desc(), table.c.digest).limit(self.max_rows))
        )

    def sent_to(self, connection: Connection, *, begin_at: int, domain: str) -> set[str]:
        """Return the destinations that a period's report went to, or will never go to."""
        table = self.sent
        query = select(table.c.destination).where(table.c.begin_at == begin_at, table.c.domain == domain)
        return set(connection.execute(query).scalars())

    def note_sent(
        self,
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
            f"INSERT INTO {self.sent} (begin_at, domain, destination, state, at) VALUES (?, ?, ?, ?, ?) "  # noqa: S608 - our names
            "ON CONFLICT (begin_at, domain, destination) DO NOTHING",
            (begin_at, domain, destination, state, event.at),
        )
        if made.rowcount:
            events.append(connection, [event])

    def postpone(self, connection: Connection, *, begin_at: int, domain: str, due_at: int) -> None:
        """Look at a period again later."""
        text = f"UPDATE {self.periods} SET due_at = ? WHERE begin_at = ? AND domain = ?"  # noqa: S608 - our names
        run(connection, text, (due_at, begin_at, domain))

    def finish(self, connection: Connection, *, begin_at: int, domain: str) -> None:
        """Forget what was counted for a domain in a period."""
        for table in (self.counts, self.periods):
            text = f"DELETE FROM {table} WHERE begin_at = ? AND domain = ?"  # noqa: S608 - our names
            run(connection, text, (begin_at, domain))

    def limit(self, connection: Connection, *, organization_id: str, domain: str) -> None:
        """Take away the oldest reports of others about a domain that has more than MAX_REPORTS."""
        table = self.reports
        query = select(table.c.id).where(table.c.organization_id == organization_id, table.c.domain == domain)
        old = query.order_by(table.c.received_at.desc(), table.c.id.desc()).offset(MAX_REPORTS)
        self._delete(connection, connection.execute(old.limit(PRUNE_ROWS)).scalars().all())

    def _delete(self, connection: Connection, report_ids: Collection[str]) -> None:
        for one in report_ids:
            run(connection, f"DELETE FROM {self.rows} WHERE report_id = ?", (one,))  # noqa: S608 - our names
            run(connection, f"DELETE FROM {self.reports} WHERE id = ?", (one,))  # noqa: S608 - our names

    def page(
        self, connection: Connection, *, organization_id: str, domain: str | None, before: str, limit: int
    ) -> list[Row[Any]]:
        """Return the rows of a tenant's reports, the newest first, below an id."""
        table = self.reports
        query = select(table).where(table.c.organization_id == organization_id)
        if domain is not None:
            query = query.where(table.c.domain == domain)
        if before:
            query = query.where(table.c.id < before)
        return list(connection.execute(query.order_by(table.c.id.desc()).limit(limit)))

    def prune(self, connection: Connection, *, at: int, reports_kept: int) -> bool:
        """Take away what is too old, PRUNE_ROWS of a kind at most; whether there may be more."""
        periods, sent, reports = self.periods, self.sent, self.reports
        old = select(periods.c.begin_at, periods.c.domain).where(periods.c.end_at < at - KEPT)
        gone = connection.execute(old.limit(PRUNE_ROWS)).all()
        for row in gone:
            self.finish(connection, begin_at=row.begin_at, domain=row.domain)
        told = connection.execute(select(sent).where(sent.c.at < at - SENT_KEPT).limit(PRUNE_ROWS)).all()
        for row in told:
            text = f"DELETE FROM {sent} WHERE begin_at = ? AND domain = ? AND destination = ?"  # noqa: S608 - our names
            run(connection, text, (row.begin_at, row.domain, row.destination))
        aged = select(reports.c.id).where(reports.c.received_at < at - reports_kept).limit(PRUNE_ROWS)
        aged_ids = connection.execute(aged).scalars().all()
        self._delete(connection, aged_ids)
        return PRUNE_ROWS in (len(gone), len(told), len(aged_ids))
